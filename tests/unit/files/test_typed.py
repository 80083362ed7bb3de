"""The typed reader: a dataclass, or exactly one error line that names file, key, value and what is valid."""

import os
import random
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masp.errors import DataError, InputError, MaspError
from masp.files.typed import Json, decode, encode, read


@dataclass(frozen=True)
class Item:
    name: str
    size: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if min(self.size) < 1:
            raise ValueError("must have a size above 0")


@dataclass(frozen=True)
class Whole:
    kind: Literal["a", "b"]
    share: float
    items: tuple[Item, ...] = ()
    named: dict[str, Item] | None = None
    anything: Json = None
    flag: bool = False


WHOLE = Whole("a", 0.5, (Item("x"), Item("y", (3, 4))), {"k.1": Item("ä\n")}, {"deep": [1, None, 2.5, "z"]}, True)


def test_what_is_encoded_is_decoded():
    assert decode(Whole, encode(WHOLE), "it") == WHOLE
    assert encode(Item("ä")) == b'{"name":"\\u00e4","size":[1,1]}'
    assert b"named" in encode(Whole("a", 1.0)) and b"named" not in encode(Whole("a", 1.0), omit_none=True)
    assert decode(Whole, encode(Whole("a", 1.0), omit_none=True), "it") == Whole("a", 1.0)
    with pytest.raises(ValueError, match="not JSON compliant|Out of range"):
        encode(Whole("a", float("nan")))


GOOD = '{"kind":"a","share":1'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("null", "it: must be an object, not null"),
        ("[1]", "it: [1]: must be an object"),
        ("", "it: not valid JSON: EOF while parsing a value at line 1 column 0"),
        ("{", "it: not valid JSON: EOF while parsing an object at line 1 column 1"),
        (GOOD + "} x", "it: not valid JSON: trailing characters at line 1 column 24"),
        ("{}", "it: kind is missing"),
        ('{"kind":"c","share":1}', "it: kind = 'c': must be 'a' or 'b'"),
        ('{"kind":"a","share":"1"}', "it: share = '1': must be a valid number"),
        ('{"kind":"a","share":true}', "it: share = true: must be a valid number"),
        ('{"kind":"a","share":1e999}', "it: share = inf: must be a finite number"),
        ('{"kind":"a","share":NaN}', "it: share = nan: must be a finite number"),
        ('{"kind":"a","share":-Infinity}', "it: share = -inf: must be a finite number"),
        (GOOD + ',"flag":1}', "it: flag = 1: must be a valid boolean"),
        (GOOD + ',"items":{}}', "it: items = {}: must be a valid array"),
        (GOOD + ',"items":[{"name":"x","size":[1,2.0]}]}', "it: items[0].size[1] = 2.0: must be a valid integer"),
        (GOOD + ',"items":[{"name":"x"},{"size":[1,2]}]}', "it: items[1].name is missing"),
        (GOOD + ',"items":[{"name":"x","siz":1}]}', "it: items[0].siz: unknown key; valid keys: name, size"),
        (
            GOOD + ',"named":{"k":{"name":"x","size":[0,1]}}}',
            "it: named.k = {'name': 'x', 'size': [0, 1]}: must have a size above 0",
        ),
        (GOOD + ',"shar":1}', "it: shar: unknown key; valid keys: kind, share, items, named, anything, flag"),
        (GOOD + ',"share":1}', "it: not valid JSON: 'share' is given twice"),
        (GOOD + ',"anything":{"a":[1e999]}}', "it: anything = {'a': [inf]}: must hold finite numbers only"),
        (GOOD + ',"anything":"\\ud800"}', "it: not valid JSON: "),
        (GOOD + ',"anything":' + "[" * 5000 + "]" * 5000 + "}", "it: not valid JSON: recursion limit exceeded"),
        (GOOD + ',"items":[{"name":"x","size":[1,1' + "0" * 5000 + "]}]}", "it: not valid JSON: number out of range"),
    ],
)
def test_what_is_wrong_is_one_line_that_says_what_would_be_valid(text, line):
    with pytest.raises(DataError) as raised:
        decode(Whole, text.encode(), "it")
    assert str(raised.value).startswith(line) if line.endswith((" ", "ed", "ge")) else str(raised.value) == line


def test_long_values_and_keys_are_cut_and_bytes_that_are_not_text_are_refused():
    for text in (
        f'{{"kind":"{"x" * 9999}","share":1}}',
        f'{{"kind":"a","share":1{"0" * 400}}}',
        f'{{"kind":"a","share":1,"{"k" * 9999}\\u001b":2}}',
        f'{{"kind":"a","share":1,"items":{list(range(9999))}}}',
    ):
        with pytest.raises(DataError) as raised:
            decode(Whole, text.encode(), "it")
        assert len(str(raised.value)) < 300 and str(raised.value).isprintable()
    with pytest.raises(DataError, match="not valid JSON"):
        decode(Whole, b'{"kind":"a\xff","share":1}', "it")


def test_the_caller_chooses_the_kind_of_error():
    with pytest.raises(InputError, match="kind is missing"):
        decode(Whole, b"{}", "it", error=InputError)


def test_halves_of_surrogate_pairs_are_accepted_on_request_only():
    data = encode(Item("name\udc80", (2, 3)))
    with pytest.raises(DataError, match="surrogate"):
        decode(Item, data, "it")
    assert decode(Item, data, "it", surrogates=True) == Item("name\udc80", (2, 3))
    with pytest.raises(DataError, match=r"^it: size\[0\] = '2': must be a valid integer$"):
        decode(Item, data.replace(b"[2,", b'["2",'), "it", surrogates=True)


def test_read(tmp_path):
    path = tmp_path / "whole.json"
    assert read(Whole, path) is None
    path.write_bytes(encode(WHOLE))
    assert read(Whole, path) == WHOLE
    with pytest.raises(InputError, match="at most 10"):
        read(Whole, path, max_bytes=10)
    path.write_bytes(b"{}")
    with pytest.raises(DataError, match=f"^--x: {path}: kind is missing$"):
        read(Whole, path, key="--x")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(InputError, match="not a regular file"):
        read(Whole, tmp_path / "fifo")


def test_whatever_happens_to_the_bytes_one_error_line_is_all_that_leaves():
    draw, data = random.Random(3407), encode(WHOLE)
    pieces = [b"null", b"1e999", b"NaN", b'"', b"\\ud800", b"[", b"{", b"\xff", b"9" * 500, b"-", b"\0", b",", b"1.0"]
    num_refused = 0
    for _ in range(20_000):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 3)):
            place = draw.randrange(len(damaged))
            if draw.random() < 0.5:
                damaged[place] ^= 1 << draw.randrange(8)
            else:
                damaged[place : place + draw.randint(0, 6)] = draw.choice(pieces)
        try:
            found = decode(Whole, bytes(damaged), "it", surrogates=draw.random() < 0.5)
        except MaspError as error:
            num_refused += 1
            assert str(error).startswith("it") and str(error).isprintable() and len(str(error)) < 600
        else:
            assert isinstance(found, Whole)
    assert num_refused > 15_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(derandomize=True, max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(["kind", "share", "items", "named", "anything", "flag", "x"]), JSON))
def test_any_json_is_the_dataclass_or_an_error(value):
    import json

    try:
        found = decode(Whole, json.dumps(value).encode(), "it")
    except DataError:
        return
    assert decode(Whole, encode(found), "it") == found
