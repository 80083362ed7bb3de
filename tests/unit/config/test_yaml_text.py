"""YAML without the surprises of YAML 1.1: what any text gives, and what is written is read back."""

import contextlib
import itertools
import time

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from masp.config.yaml_text import dump_yaml, parse_yaml
from masp.errors import InputError


def test_a_few_aliases_are_fine():
    assert parse_yaml("a: &x [1, 2]\nb: *x\n", "text")[0] == {"a": [1, 2], "b": [1, 2]}


YAML_SIGNS = st.text(st.sampled_from("abc01 \n\t:-[]{}&*!|>'\"%@`#?,.\\\0~<=eE_+xuU/\ufeff\x85\u2028\udcff"))


@given(YAML_SIGNS | st.text())
@example('"\\UFFFFFFFF"')
@example("%YAML 1\n---")
@example("%TAG")
@example("!!int '' ")
@example("!!bool maybe")
@example("!!float [1]")
@example("!<")
@example("&a")
@example("? : ")
@example("--- |9\n")
def test_parsing_any_text_raises_only_input_errors(text):
    with contextlib.suppress(InputError):
        parse_yaml(text, "text")


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.dictionaries(st.text(min_size=1), SCALARS | st.lists(SCALARS), max_size=4))
def test_what_is_written_is_read_back_equal(tree):
    assert parse_yaml(dump_yaml(tree), "text")[0] == (tree or {})


@given(
    st.sampled_from(
        ["on", "yes", "1:30", "0o7", "0x1F", "1_0", "1e5", "2024-01-01", "~", "null", "Null", ".5", "=", "<<"]
    )
)
def test_text_that_looks_like_something_else_stays_text_for_every_reader(text):
    written = dump_yaml({"a": text})
    assert parse_yaml(written, "text")[0] == {"a": text}
    assert yaml.safe_load(written) == {"a": text}


def aliases_of_aliases(form, first="[x, x, x, x, x, x, x, x, x]"):
    """A few hundred bytes that mean 9 ** 10 values."""
    names = "abcdefghij"
    lines = [f"{name}: &{name} {form(f'*{before}')}" for before, name in itertools.pairwise(names)]
    return "\n".join([f"a: &a {first}", *lines])


BOMBS = {
    "lists of lists": aliases_of_aliases(lambda name: f"[{', '.join([name] * 9)}]"),
    "maps of maps": aliases_of_aliases(lambda name: "{" + ", ".join(f"k{i}: {name}" for i in range(9)) + "}"),
    "merged maps": aliases_of_aliases(lambda name: f"{{<<: [{', '.join([name] * 9)}], b: {name}}}", "{p: 1}"),
    "a list in itself": "a: &a [*a, *a]",
    "a map in itself": "&a {b: *a}",
    "a map as its own key": "&a {*a : 1}",
    "lists in lists": "[" * 100_000,
    "maps in maps": "{a: " * 100_000,
    "items in items": "- " * 100_000,
    "keys in keys": "? " * 100_000,
    "many items": "[" + "a, " * 300_000,
    "many documents": "---\n" * 200_000,
    "many aliases": "a: &a x\nb: [" + "*a, " * 250_000,
    "an integer of a million digits": f"a: {'9' * 1_000_000}",
    "a program": "!!python/object/apply:os.system [ls]",
    "an object as a key": "!!python/name:os.system x: 1",
    "a set": "a: !!set {b, c}",
    "a key given twice": "a: {b: 1, b: 2}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_text_that_means_too_much_is_one_line_in_a_moment(name):
    before = time.process_time()
    with pytest.raises(InputError, match=r"^text[^\n]{1,300}$"):
        parse_yaml(BOMBS[name], "text")
    assert time.process_time() - before < 5
    if len(BOMBS[name]) < 1_000:
        assert time.process_time() - before < 1
