"""Where in an image its tokens lie."""

import pytest

from masp.config.schema import VlmConfig
from masp.errors import InputError
from masp.vlm.features import ImageLayout
from masp.vlm.token_grid import check_token_grid, token_grid
from tests.tiny import make_vlm


@pytest.mark.parametrize(
    ("num_tokens", "grid", "expected"),
    [
        (6, (1, 4, 6), (2, 3)),  # four patches per token
        (24, (1, 4, 6), (4, 6)),  # one
        (4, (1, 6, 6), (2, 2)),  # nine
        (8, (2, 4, 4), (4, 2)),  # two frames below each other
        (12, (2, 4, 6), (4, 3)),
        (5, (1, 4, 6), None),  # pooled in some other way
        (12, (1, 4, 6), None),
        (48, (1, 4, 6), None),  # two per patch
        (6, (1, 3, 8), None),
        (6, None, None),
    ],
)
def test_rows_and_columns_of_tokens(num_tokens, grid, expected):
    assert token_grid(ImageLayout(num_tokens, grid)) == expected


def test_a_vlm_with_a_grid_is_taken(tmp_path):
    check_token_grid(VlmConfig(str(make_vlm(tmp_path / "vlm"))), "--attention page.html")


@pytest.mark.parametrize("family", ["gemma3", "internvl"])
def test_a_vlm_without_one_is_refused_by_the_setting(family_vlm, family):
    with pytest.raises(InputError, match="^--attention page.html: the tokens .* form no grid"):
        check_token_grid(VlmConfig(str(family_vlm(family))), "--attention page.html")
