"""YAML without the surprises of YAML 1.1: what any text gives, and what is written is read back."""

import contextlib

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
