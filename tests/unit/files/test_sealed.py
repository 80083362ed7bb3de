"""A flipped byte is noticed, and the spelling on disk stays what it was."""

import hashlib
import json
import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masp.errors import DataError, InputError
from masp.files.sealed import create_sealed, digest_file, read_sealed, read_sealed_object, sealed, unseal, unseal_object


@dataclass(frozen=True)
class Note:
    name: str
    values: tuple[float | None, ...] = ()
    more: dict[str, str] | None = None


NOTE = Note("x", (1.0, 2.5, None), {"ä": "\udc80", "b": "c"})
VALUES = [
    {},
    {"a": 1},
    {"zzz": {}, "list": [[], [[]], [{}]]},
    {"a": [1, 2.5, None], "b": {"ä": "\udc80"}},
    {"a": ': "x', "b\\": '": ', '"': ["{", "}", '": "', "\\", " "], "digest ": "d", "k ": 1},
    {"nested": {"digest": "0" * 64}, "e": {"digest": 1}},
]


def spelled(value: dict) -> bytes:
    """The file format, written out."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    whole = {**value, "digest": hashlib.sha256(canonical).hexdigest()}
    return json.dumps(whole, sort_keys=True, indent=1).encode() + b"\n"


@pytest.mark.parametrize("value", VALUES)
def test_the_format_is_what_it_was(value):
    assert sealed(value) == spelled(value)
    assert unseal_object(spelled(value), "it") == value


def test_a_dataclass_is_spelled_as_the_object_with_its_fields():
    assert sealed(NOTE) == spelled({"name": "x", "values": [1.0, 2.5, None], "more": {"ä": "\udc80", "b": "c"}})
    assert sealed(Note("x"), omit_none=True) == spelled({"name": "x", "values": []})
    assert unseal(Note, sealed(NOTE), "it") == NOTE


@pytest.mark.parametrize("value", VALUES)
def test_every_flipped_byte_is_noticed(value):
    data = sealed(value)
    changes = [1 << bit for bit in range(8)] + [ord(" ") ^ ord("\n"), ord(" ") ^ ord("\t"), ord("\n") ^ ord("\r")]
    for position in range(len(data)):
        for change in changes:
            flipped = bytearray(data)
            flipped[position] ^= change
            with pytest.raises(DataError, match="it is damaged"):
                unseal_object(bytes(flipped), "it")
    for length in range(len(data)):
        with pytest.raises(DataError):
            unseal_object(data[:length], "it")


@pytest.mark.parametrize("text", ["a: b", 'a ": b'])
def test_several_damaged_bytes_are_noticed(text):
    value = {"samples": [{"key": f"k{i}", "size": [i, {}], "text": text[: i % 7]} for i in range(9)], "a": 1.5}
    draw, data = random.Random(3407), sealed(value)
    for _ in range(20_000):
        damaged = bytearray(data)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(data))] = (
                draw.choice(b' \n\t,:"{}[]a0') if draw.random() < 0.7 else draw.randrange(256)
            )
        if damaged == data:
            continue
        with pytest.raises(DataError, match="^it is damaged"):
            unseal_object(bytes(damaged), "it")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.sampled_from('a" :\\,{}[]\nä\udc80'), max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('a": \\', max_size=3), inner, max_size=3),
    max_leaves=12,
)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(st.dictionaries(st.text('a": \\z', max_size=4), JSON, max_size=4), st.data())
def test_any_object_comes_back_and_no_change_does(value, data):
    text = sealed(value)
    assert text == spelled(value) and unseal_object(text, "it") == value
    changed = bytearray(text)
    changed[data.draw(st.integers(0, len(text) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DataError):
        unseal_object(bytes(changed), "it")


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity"])
def test_numbers_that_are_not_finite_are_damage(number):
    compact = f'{{"a":{number}}}'.encode()
    digest = hashlib.sha256(compact).hexdigest()
    with pytest.raises(DataError, match="it is damaged"):
        unseal_object(f'{{\n "a": {number},\n "digest": "{digest}"\n}}\n'.encode(), "it")


def test_the_right_digest_and_the_wrong_shape_is_one_line():
    with pytest.raises(DataError, match="^it: name is missing$"):
        unseal(Note, sealed({"values": []}), "it")
    with pytest.raises(DataError, match=r"^it: values\[0\] = 'x': must be a valid number$"):
        unseal(Note, sealed({"name": "\udc80", "values": ["x"]}), "it")
    for text in (b"", b"[]", b"null", b"[" * 9999, b"{}\n", b"\xff", b'{"digest": {}}'):
        with pytest.raises(DataError, match="it is damaged"):
            unseal(Note, text, "it")


def test_files(tmp_path):
    path = tmp_path / "file"
    assert read_sealed(Note, path) is None and read_sealed_object(path) is None
    assert create_sealed(path, NOTE)
    assert not create_sealed(path, {"a": 2})
    assert read_sealed(Note, path) == NOTE
    assert read_sealed_object(path)["name"] == "x"
    assert digest_file(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(InputError, match="at most 5"):
        read_sealed(Note, path, max_bytes=5)
    with pytest.raises(InputError, match="cannot be read"):
        read_sealed(Note, tmp_path)
