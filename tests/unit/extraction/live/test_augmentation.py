"""Random changes: a function of seed, epoch and key, within their bounds, of the image's own size."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from masp.extraction.live.augmentation import MAX_RATIO, MIN_AREA, Change

SIZE = (90, 60)


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def test_the_same_numbers_for_the_same_seed_epoch_and_key():
    changes = [
        Change(kind, *place)
        for kind in ("flip", "crop")
        for place in ((1, 0, "a"), (2, 0, "a"), (1, 1, "a"), (1, 0, "b"))
    ]
    numbers = [change._numbers() for change in changes]
    assert len(set(numbers)) == len(numbers) and numbers == [change._numbers() for change in changes]
    # a resumed run draws them again, so another version must not change them
    assert Change("crop", 3407, 2, "train/awe/1%2Ejpg")._numbers()[0] == pytest.approx(0.9637402480949788, abs=1e-12)


def test_a_flip_mirrors_about_every_second_image(image):
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    found = Counter()
    for number in range(400):
        changed = Change("flip", 1, 0, str(number))(image)
        found[changed.tobytes() == mirrored.tobytes(), changed.tobytes() == image.tobytes()] += 1
    assert found.keys() == {(True, False), (False, True)} and 160 < found[True, False] < 240


def test_a_crop_keeps_its_bounds_and_the_size(image):
    areas, ratios, centers = [], [], []
    for number in range(2000):
        left, top, right, bottom = Change("crop", 1, number, "a")._box(*SIZE)
        assert 0 <= left < right <= SIZE[0] and 0 <= top < bottom <= SIZE[1]
        wide, high = (right - left) / SIZE[0], (bottom - top) / SIZE[1]
        areas.append(wide * high)
        ratios.append(wide / high)
        centers.append((left + right) / 2)
    assert min(areas) >= MIN_AREA - 1e-9 and max(areas) <= 1
    assert min(areas) < 0.51 and max(areas) > 0.99 and abs(np.mean(areas) - 0.75) < 0.01
    assert 1 / MAX_RATIO - 1e-9 <= min(ratios) < 0.77 and 1.3 < max(ratios) <= MAX_RATIO + 1e-9
    assert abs(np.mean(np.log(ratios))) < 0.02 and abs(np.mean(centers) - SIZE[0] / 2) < 0.5
    changed = Change("crop", 1, 0, "a")(image)
    assert changed.size == SIZE and changed.mode == "RGB" and changed.tobytes() != image.tobytes()


def test_a_crop_shows_the_part_that_was_drawn():
    """Of an image whose red and green grow along its sides, the corners tell which part it was."""
    across, down = np.meshgrid(np.linspace(0, 255, 200), np.linspace(0, 255, 100))
    image = Image.fromarray(np.stack([across, down, 0 * down], -1).round().astype(np.uint8))
    change = Change("crop", 5, 3, "a")
    left, top, right, bottom = change._box(*image.size)
    pixels = np.asarray(change(image)).astype(float)
    assert pixels[:, 0, 0].mean() == pytest.approx(255 * left / 200, abs=3)
    assert pixels[:, -1, 0].mean() == pytest.approx(255 * right / 200, abs=3)
    assert pixels[0, :, 1].mean() == pytest.approx(255 * top / 100, abs=4)
    assert pixels[-1, :, 1].mean() == pytest.approx(255 * bottom / 100, abs=4)


def test_a_pixel_in_a_row_can_be_cropped():
    thin = Image.new("RGB", (150, 1), (9, 8, 7))
    assert Change("crop", 1, 0, "a")(thin).getcolors() == [(150, (9, 8, 7))]
