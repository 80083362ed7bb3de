"""Results go to stdout, plain and from rank 0; notes go to stderr, with time and rank where there are several ranks."""

import logging
import re
import sys

import pytest
from tqdm import tqdm

from masp.runtime.log import rank_of_environment, say, say_error, setup


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


def test_a_note_has_its_level_and_is_one_line(capsys):
    setup()
    setup()  # not twice
    logging.getLogger("masp.cache.fingerprint").info("%s is\nodd", "this")
    logging.getLogger("launch.submit").warning("look")
    logging.getLogger("masp").debug("not shown")
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "note: this is\\nodd\nwarning: look\n"


def test_a_note_has_time_and_rank_if_there_are_several(capsys, monkeypatch):
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
    time = r"\d\d:\d\d:\d\d"
    assert re.fullmatch(f"{time} rank 2 note: a\nnote: b\n{time} rank 0 note: c\n", capsys.readouterr().err)


@pytest.mark.parametrize("value", ["", "-1", "first", "\u00b2", "9" * 5000])
def test_an_odd_rank_does_not_keep_a_message_back(capsys, monkeypatch, value):
    monkeypatch.setenv("RANK", value)
    setup()
    logging.getLogger("masp").info("a")
    assert capsys.readouterr().err == "note: a\n"


def test_a_line_does_not_end_up_in_a_progress_bar(capsys):
    setup()
    with tqdm(total=10, desc="extract", file=sys.stderr, mininterval=0) as bar:
        bar.update(5)
        logging.getLogger("masp").info("a")
        say_error("b\nc")
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().err.split("\n")]
    assert "note: a" in lines and "error: b\\nc" in lines, lines
