"""Image processors of other models, and encoders that do not fit their weights: one line that names the directory."""

import json

import pytest
from PIL import Image

from masp.errors import InputError
from masp.vlm.features import ImageLayout
from masp.vlm.vision import load_preprocessor, load_vision_half

PROCESSOR = "preprocessor_config.json"


def refused(load, vlm) -> str:
    with pytest.raises(InputError) as error:
        load(str(vlm))
    assert str(vlm) in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize(
    "values",
    [
        {"min_pixels": None, "max_pixels": None, "size": {"max_pixels": 1000, "min_pixels": 10}},
        {"size": 5},
    ],
)
def test_an_image_processor_of_another_kind(vlm, change, values):
    change(PROCESSOR, **values)
    assert "has no usable image processor: " in refused(load_preprocessor, vlm)


def test_settings_of_the_image_processor_that_are_a_list(vlm):
    (vlm / PROCESSOR).write_text("[]")
    assert "preprocessor_config.json" in refused(load_preprocessor, vlm)


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
def test_sizes_that_no_memory_holds(vlm, change, values, problem):
    if "size" in values:
        settings = json.loads((vlm / PROCESSOR).read_text())
        (vlm / PROCESSOR).write_text(json.dumps({k: v for k, v in settings.items() if not k.endswith("_pixels")}))
    change(PROCESSOR, **values)
    line = refused(load_preprocessor, vlm)
    assert f"{vlm}/{PROCESSOR}: " in line and problem in line


def test_a_lower_limit_that_no_memory_holds(vlm):
    with pytest.raises(InputError, match=r"^vlm.min_pixels: size.shortest_edge = 10,000,000,000: images would be enl"):
        load_preprocessor(str(vlm), 10**10, 10**11)
    assert load_preprocessor(str(vlm), 10**4, 10**11).num_tokens(500, 500) == 324  # an upper limit enlarges nothing


@pytest.mark.parametrize(("name", "value"), [("patch_size", 16), ("merge_size", 4), ("temporal_patch_size", 1)])
def test_the_image_processor_of_another_vlm(vlm, change, name, value):
    change(PROCESSOR, **{name: value})
    assert f"{name} = {value} in {PROCESSOR}, but vision_config." in refused(load_preprocessor, vlm)


def test_the_patch_size_of_another_model(vlm, change):
    change("config.json", vision_config__patch_size=16)
    change(PROCESSOR, patch_size=16)
    line = refused(load_vision_half, vlm)
    assert "do not fit its config.json: 1 tensors are missing or of another shape: 'model.visual.patch_e" in line


def test_the_grid_is_that_of_the_pixels(vlm):
    preprocessor = load_preprocessor(str(vlm))
    for size in ((30, 300), (100, 60), (777, 333)):
        inputs, layout = preprocessor(Image.new("RGB", size))
        grid, pixels = preprocessor.grid(*size), inputs["pixel_values"]
        assert layout == ImageLayout(len(pixels) // 4, grid) and len(pixels) == grid[0] * grid[1] * grid[2]
        assert inputs["image_grid_thw"].tolist() == [list(grid)]
        assert preprocessor.num_tokens(*size) == layout.num_tokens
