"""Results go to stdout, plain and from rank 0; notes go to stderr with time and rank."""

import logging
import re

import pytest

from masp.runtime.log import rank_of_environment, say, setup


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    yield
    for name in ("masp", "launch", "tools"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.NOTSET)


def test_a_result_is_printed_as_it_is_by_rank_0_only(capsys, monkeypatch):
    say("accuracy 0.5")
    monkeypatch.setenv("RANK", "0")
    say("again")
    monkeypatch.setenv("RANK", "1")
    say("not this")
    assert capsys.readouterr() == ("accuracy 0.5\nagain\n", "")


def test_a_note_has_time_and_level_and_is_one_line(capsys):
    setup()
    setup()  # not twice
    logging.getLogger("masp.cache.fingerprint").info("%s is\nodd", "this")
    logging.getLogger("launch.submit").warning("look")
    logging.getLogger("masp").debug("not shown")
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d\d:\d\d:\d\d note: this is\\nodd\n\d\d:\d\d:\d\d warning: look\n", err)


def test_a_note_names_its_rank_if_there_are_several(capsys, monkeypatch):
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert rank_of_environment() == 3
    monkeypatch.setenv("RANK", "2")
    setup()
    logging.getLogger("masp.x").info("a")
    setup(0)
    logging.getLogger("masp.x").info("b")
    monkeypatch.setenv("WORLD_SIZE", "4")
    setup(0)
    logging.getLogger("masp.x").info("c")
    assert [line[9:] for line in capsys.readouterr().err.splitlines()] == [
        "rank 2 note: a",
        "note: b",
        "rank 0 note: c",
    ]
