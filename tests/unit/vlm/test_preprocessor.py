"""What a VLM's processor makes of an image: of other VLMs, of sizes alone, and where its tokens lie."""

import json
import math
import pickle

import numpy as np
import pytest
from PIL import Image

from masp.config.schema import VlmConfig
from masp.errors import InputError
from masp.vlm.families import RASTER
from masp.vlm.features import ImageLayout, token_grid
from masp.vlm.preprocessor import RefusedImage, load_preprocessor, load_token_grid
from masp.vlm.vision import load_vision_half

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


@pytest.mark.parametrize("family", ["smolvlm", "idefics3"])
def test_images_with_the_same_tiles_lie_alike(family_vlm, family, monkeypatch):
    preprocessor, asked = load_preprocessor(str(family_vlm(family))), []
    layout = type(preprocessor).layout
    monkeypatch.setattr(type(preprocessor), "layout", lambda self, *size: asked.append(size) or layout(self, *size))
    draw = np.random.default_rng(0)
    sizes = [tuple(map(int, size)) for size in draw.integers(1, 700, (150, 2))]
    found = [preprocessor.planned(*size) for size in sizes]
    assert len(asked) < 40
    assert found == [layout(preprocessor, *size) for size in sizes]


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
        with pytest.raises(RefusedImage, match="^refused by the VLM's processor: it writes different text around"):
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


def test_tokens_of_a_square_into_which_the_image_was_stretched():
    assert token_grid(ImageLayout(256), is_square=True) == (16, 16)
    assert token_grid(ImageLayout(256)) is None and token_grid(ImageLayout(255), is_square=True) is None
    assert token_grid(ImageLayout(0), is_square=True) is None
    assert token_grid(ImageLayout(6, (1, 4, 6)), is_square=True) == (2, 3)  # the VLM's own grid comes first


def test_a_vlm_with_a_grid_is_taken(vlm):
    grid_of = load_token_grid(VlmConfig(str(vlm)), "--attention page.html")
    assert grid_of(ImageLayout(6, (1, 4, 6))) == (2, 3)


@pytest.mark.parametrize("family", ["internvl", "deepseek_vl", "gemma4", "llava_next"])
def test_a_vlm_without_one_is_refused_by_the_setting(family_vlm, family):
    with pytest.raises(InputError, match="^--attention page.html: the vision tokens of this VLM do not form one grid"):
        load_token_grid(VlmConfig(str(family_vlm(family))), "--attention page.html")


def test_a_vlm_that_sees_the_center_of_an_image(family_vlm):
    with pytest.raises(InputError, match="^--attention page.html: this VLM sees only the center of an image"):
        load_token_grid(VlmConfig(str(family_vlm("llava"))), "--attention page.html")


@pytest.mark.parametrize(("family", "side"), [("gemma3", 2), ("paligemma", 4)])
def test_a_vlm_that_makes_one_square_of_an_image(family_vlm, family, side):
    grid_of = load_token_grid(VlmConfig(str(family_vlm(family))), "--attention page.html")
    assert grid_of(load_preprocessor(str(family_vlm(family))).layout(1024, 300)) == (side, side)


@pytest.mark.parametrize("family", sorted(RASTER))
def test_the_features_of_a_square_are_its_rows(family_vlm, family):
    """Without attention between patches, what changes in a cell of the image changes the feature of that cell alone."""
    directory = str(family_vlm(family))
    preprocessor, vision = load_preprocessor(directory), load_vision_half(directory)
    projections = [module for name, module in vision.model.named_modules() if name.endswith("attn.out_proj")]
    assert projections
    for projection in projections:
        projection.weight.zero_()

    def features(image):
        inputs, layout = preprocessor(image)
        return vision.encode([inputs], [layout])[0].tokens

    plain = Image.new("RGB", (56, 56), (90, 90, 90))
    before = features(plain)
    side = math.isqrt(len(before))
    for cell in range(len(before)):
        row, column = divmod(cell, side)
        image, size = plain.copy(), 56 // side
        image.paste((250, 20, 20), (column * size, row * size, (column + 1) * size, (row + 1) * size))
        assert (features(image) != before).any(dim=-1).nonzero().tolist() == [[cell]]


def test_an_image_that_is_padded_is_not_stretched(family_vlm, monkeypatch):
    monkeypatch.setattr("masp.vlm.preprocessor.RASTER", {"deepseek_vl"})
    with pytest.raises(InputError, match="do not form one grid"):
        load_token_grid(VlmConfig(str(family_vlm("deepseek_vl"))), "evaluate.attention = true")
