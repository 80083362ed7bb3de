"""Positions of an image's tokens: by the rule of transformers where there is a grid, else counted."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, LlavaConfig

from masp.vlm.positions import ImagePositions
from tests.tiny import FAMILIES, make_vlm

GRIDS = [(1, 4, 4), (1, 2, 6), (1, 6, 4), (1, 8, 2)]


@pytest.mark.parametrize("family", FAMILIES)
def test_they_are_those_of_the_whole_model(tmp_path, family):
    config = AutoConfig.from_pretrained(make_vlm(tmp_path / "vlm", family))
    positions = ImagePositions(config)
    assert positions.has_grid
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config)
    for grid in GRIDS:
        count = grid[1] * grid[2] // 4
        found, following = positions(count, grid)
        types = torch.tensor([[0, *[1] * count, 0, 0]])
        expected, _ = whole.model.get_rope_index(torch.ones_like(types), types, image_grid_thw=torch.tensor([grid]))
        # behind one word, and before two
        assert np.array_equal(found + 1, expected[:, 0, 1:-2].numpy())
        assert following + 1 == int(expected[0, 0, -2])


def test_without_a_grid_they_count_on():
    positions = ImagePositions(LlavaConfig())
    assert not positions.has_grid
    found, following = positions(5, None)
    assert found.tolist() == [[0, 1, 2, 3, 4]] * 3 and following == 5
