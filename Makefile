# Requires only Python 3.11 or 3.12 and make; `make PYTHON=python3.12 …` selects an interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.installing
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 15
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-full lint types clean distclean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf 'make %-10s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## install everything into .venv

demo: $(STAMP) ## run the whole pipeline on drawn images: extract, train both stages, evaluate, report
	$(BIN)/masp demo $(ARGS)

test: $(STAMP) ## run the tests, except the long ones
	$(PYTEST) -m "not full" $(ARGS)

test-full: $(STAMP) ## run all tests
	$(PYTEST) $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check the types of masp and launch
	$(BIN)/mypy

clean: ## remove the output of tests and of the demo
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis outputs/demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## also remove .venv
	rm -rf $(VENV)

# An interrupted installation may look complete to pip, so a marker exists while it runs and makes the next one start
# from scratch. A .venv that was created by hand is kept and completed.
$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
		{ echo 'error: MASP needs Python 3.11 or 3.12; select one with make PYTHON=python3.12 …' >&2; exit 2; }
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo 'creating $(VENV)'; $(PYTHON) -m venv --clear $(VENV); fi
	@rm -f $(STAMP)
	@touch $(UNFINISHED)
	@# First and alone: other packages that require torch then find this build instead of one of several GB.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@mv $(UNFINISHED) $(STAMP) && touch $(STAMP)
