"""Where a soft prompt's rows start, and numbers that do not fit; `test_store.py` reads whole files."""

import pytest
import torch

from masp.artifacts.released_format import TOKEN, padding_rows, read_released_soft_prompt
from masp.errors import InputError
from tests.tiny import make_tokenizer


def test_rows_are_those_that_the_published_code_takes(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    before = len(tokenizer)
    names = [TOKEN.format(i) for i in range(4)]
    tokenizer.add_special_tokens({"additional_special_tokens": [names[2]]})  # a VLM may have some of them
    found = padding_rows(tokenizer, 4, before + 4)
    assert found == (before + 1, before + 2, before, before + 3)
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    assert tuple(tokenizer.convert_tokens_to_ids(names)) == found


def test_a_table_without_room_is_refused(tmp_path):
    tokenizer = make_tokenizer(tmp_path)
    rows = len(tokenizer)
    assert padding_rows(tokenizer, 2, rows + 2) == (rows, rows + 1)
    with pytest.raises(InputError, match="room for 2 vectors, and stage2.num_soft_prompt_tokens = 3; give 2 at most"):
        padding_rows(tokenizer, 3, rows + 2)
    with pytest.raises(InputError, match="= 3; give another soft_prompt_init$"):
        padding_rows(tokenizer, 3, rows)


@pytest.mark.parametrize("value", [1e300, float("nan")])
def test_numbers_that_fp32_cannot_hold(tmp_path, value):
    path = str(tmp_path / "a.pt")
    torch.save({"<|reserved_special_token_0|>": torch.full((8,), value, dtype=torch.float64)}, path)
    with pytest.raises(InputError, match="not finite in fp32"):
        read_released_soft_prompt(path, 8)
