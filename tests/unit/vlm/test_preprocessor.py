"""What a VLM's processor makes of an image: of other VLMs, of sizes alone, and where its tokens lie."""

import json
import pickle

import pytest
from PIL import Image

from masp.config.schema import VlmConfig
from masp.errors import InputError
from masp.vlm.features import ImageLayout
from masp.vlm.preprocessor import RefusedImage, check_token_grid, load_preprocessor, token_grid
from tests.tiny import make_vlm

PROCESSOR = "preprocessor_config.json"


@pytest.mark.parametrize(
    "values",
    [
        {"min_pixels": None, "max_pixels": None, "size": {"max_pixels": 1000, "min_pixels": 10}},
        {"size": 5},
    ],
)
def test_an_image_processor_of_another_kind(refused, change, values):
    change(PROCESSOR, **values)
    assert "has no usable image processor: " in refused(load_preprocessor)


def test_settings_of_the_image_processor_that_are_a_list(vlm, refused):
    (vlm / PROCESSOR).write_text("[]")
    assert "preprocessor_config.json" in refused(load_preprocessor)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (
            {"min_pixels": 10**12, "max_pixels": 10**13},
            "size.shortest_edge = 1,000,000,000,000: images would be enlarged",
        ),
        ({"size": {"shortest_edge": 8192**2 + 1, "longest_edge": 10**9}}, "must be at most 67,108,864 pixels"),
        ({"crop_size": {"height": 10**6, "width": 10}}, "crop_size.height = 1,000,000: images would be enlarged to it"),
    ],
)
def test_sizes_that_no_memory_holds(vlm, refused, change, values, problem):
    if "size" in values:
        settings = json.loads((vlm / PROCESSOR).read_text())
        (vlm / PROCESSOR).write_text(json.dumps({k: v for k, v in settings.items() if not k.endswith("_pixels")}))
    change(PROCESSOR, **values)
    line = refused(load_preprocessor)
    assert f"{vlm}/{PROCESSOR}: " in line and problem in line


def test_a_lower_limit_that_no_memory_holds(vlm):
    with pytest.raises(InputError, match=r"^vlm.min_pixels: size.shortest_edge = 10,000,000,000: images would be enl"):
        load_preprocessor(str(vlm), 10**10, 10**11)
    assert load_preprocessor(str(vlm), 10**4, 10**11).num_tokens(500, 500) == 324  # an upper limit enlarges nothing


@pytest.mark.parametrize(("name", "value"), [("patch_size", 16), ("merge_size", 4), ("temporal_patch_size", 1)])
def test_the_image_processor_of_another_vlm(refused, change, name, value):
    change(PROCESSOR, **{name: value})
    assert f"{name} = {value} in {PROCESSOR}, but vision_config." in refused(load_preprocessor)


def test_the_grid_is_that_of_the_pixels(vlm):
    preprocessor = load_preprocessor(str(vlm))
    for size in ((30, 300), (100, 60), (777, 333)):
        inputs, layout = preprocessor(Image.new("RGB", size))
        grid, pixels = preprocessor.grid(*size), inputs["pixel_values"]
        assert layout == ImageLayout(len(pixels) // 4, grid) and len(pixels) == grid[0] * grid[1] * grid[2]
        assert inputs["image_grid_thw"].tolist() == [list(grid)]
        assert preprocessor.num_tokens(*size) == layout.num_tokens


SMALL = [(w, h) for w in (1, 2, 3, 4, 40) for h in (1, 2, 3, 4, 40) if (w, h) != (40, 40)] + [(3, 300), (300, 3)]
"""Sizes whose number of rows or columns could be taken for a number of channels, and some that could not."""


def colors_are_kept(preprocessor, caplog):
    """An image of one color has that color's numbers at every size, and as many tokens as its header says."""
    color = (200, 100, 50)
    inputs, _ = preprocessor(Image.new("RGB", (56, 56), color))
    names = [name for name in inputs if name.endswith("pixel_values")]
    # images are padded with 0
    known = {name: {0.0, *inputs[name].round(decimals=1).unique().tolist()} for name in names}
    assert "pixel_values" in names
    for size in SMALL:
        found, layout = preprocessor(Image.new("RGB", size, color))
        for name in names:
            assert {*found[name].round(decimals=1).unique().tolist()} <= known[name], (size, name)
        assert preprocessor.planned(*size) == preprocessor.layout(*size) == layout, size
    assert not caplog.records


def test_images_of_one_or_three_rows_or_columns(vlm, caplog):
    colors_are_kept(load_preprocessor(str(vlm)), caplog)


# not deepseek_vl_hybrid, which scales a copy of the padded image down: colors mix at the edge
@pytest.mark.parametrize(
    "family",
    "qwen3_vl internvl llava llava_next gemma3 gemma4 paligemma smolvlm idefics3 glm4v glm46v minicpmv4_6 "
    "deepseek_vl granite4_vision".split(),
)
def test_images_of_one_or_three_rows_or_columns_of_every_family(family_vlm, caplog, family):
    colors_are_kept(load_preprocessor(str(family_vlm(family))), caplog)


def test_an_image_that_the_processor_refuses(vlm):
    preprocessor = load_preprocessor(str(vlm))
    for refuse in (lambda: preprocessor(Image.new("RGB", (1, 300))), lambda: preprocessor.planned(1, 300)):
        with pytest.raises(RefusedImage, match="^refused by the VLM's processor: absolute aspect ratio must be"):
            refuse()


def test_an_image_around_which_the_processor_writes_other_text(family_vlm):
    preprocessor = load_preprocessor(str(family_vlm("gemma3")))
    assert preprocessor.planned(60, 60) == preprocessor(Image.new("RGB", (60, 60)))[1]
    preprocessor.around = ((5,), ())  # as if others had had that
    for refuse in (lambda: preprocessor(Image.new("RGB", (60, 60))), lambda: preprocessor.layout(60, 60)):
        with pytest.raises(RefusedImage, match="^refused by the VLM's processor: it writes other text around"):
            refuse()


def test_another_process_gets_the_same_preprocessor(vlm):
    preprocessor = load_preprocessor(str(vlm), 28 * 28 * 4, 28 * 28 * 9)
    again = pickle.loads(pickle.dumps(preprocessor))
    assert again.origin == preprocessor.origin and again.planned(700, 90) == preprocessor.planned(700, 90)


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
