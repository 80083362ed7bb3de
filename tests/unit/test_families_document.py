"""The tables of `docs/families.md` are those that the command writes."""

import pytest

from benchmarks.families import EXAMPLES, table_of_examples, table_of_refusals
from tests.runs import REPOSITORY


@pytest.mark.parametrize("table", [table_of_examples, table_of_refusals])
def test_a_table_is_what_the_command_writes(table):
    assert "\n".join(table()) in (REPOSITORY / "docs" / "families.md").read_text()


def test_the_size_follows_from_the_tokens():
    qwen3 = next(each for each in EXAMPLES if each.checkpoint == "Qwen3-VL 8B")
    assert qwen3.megabytes == pytest.approx(768 * 4096 * 2 * 4 / 1e6)
