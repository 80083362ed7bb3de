# Everything here needs only Python 3.11 or 3.12 and make; `make PYTHON=python3.12 …` chooses one.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UNFINISHED := $(VENV)/.installing
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --durations 15
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help install demo test test-full lint types clean distclean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r name text; do printf 'make %-10s %s\n' "$$name" "$$text"; done

install: $(STAMP) ## install what everything else needs into .venv

demo: $(STAMP) ## the whole pipeline on drawn pictures: extract, train both stages, evaluate, report
	$(BIN)/masp demo $(ARGS)

test: $(STAMP) ## the tests, without the long ones
	$(PYTEST) -m "not full" $(ARGS)

test-full: $(STAMP) ## all tests
	$(PYTEST) $(ARGS)

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check the types of masp and launch
	$(BIN)/mypy

clean: ## remove what tests and the demo left behind
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis outputs/demo
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	rm -rf $(VENV)

# An installation that was interrupted may look whole to pip, so it is marked while it runs and made again from nothing.
# A .venv that somebody made by hand is kept and completed.
$(STAMP): setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' || \
		{ echo 'error: MASP needs Python 3.11 or 3.12; name one with make PYTHON=python3.12 …' >&2; exit 2; }
	@if [ -e $(UNFINISHED) ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		echo 'making $(VENV)'; $(PYTHON) -m venv --clear $(VENV); fi
	@rm -f $(STAMP)
	@touch $(UNFINISHED)
	@# Alone and first: whatever else asks for torch then finds this build, and not one of several GB.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@mv $(UNFINISHED) $(STAMP) && touch $(STAMP)
