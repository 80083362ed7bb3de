"""Image folders as users have them: all formats and modes, and files that are not images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = ("joy", "quiet_fear")
GOOD = (
    "plain.png grey.png alpha.png palette.gif sixteen_bit.png cmyk.jpg turned.jpg one_wide.png small.webp old.bmp"
    " many_pages.tiff UPPER.JPG"
).split()
BROKEN = ("cut_short.jpg", "words.png", "empty.jpg")


def _pixels(seed: int, width: int = 70, height: int = 50) -> Image.Image:
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def _write(directory: Path, split: str, seed: int) -> None:
    directory.mkdir(parents=True)
    image = _pixels(seed)
    with_alpha = image.copy()
    with_alpha.putalpha(Image.linear_gradient("L").resize(image.size))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    images = {
        "plain.png": image,
        "grey.png": image.convert("L"),
        "alpha.png": with_alpha,
        "palette.gif": image.convert("P", palette=Image.Palette.ADAPTIVE),
        "sixteen_bit.png": Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257),
        "cmyk.jpg": image.convert("CMYK"),
        "turned.jpg": image,
        "one_wide.png": _pixels(seed, 1, 60),
        "small.webp": _pixels(seed, 30, 20),
        "old.bmp": _pixels(seed, 200, 90),
        "many_pages.tiff": image,
        "UPPER.JPG": image,
    }
    assert set(images) == set(GOOD)
    for name, converted in images.items():
        more = {"turned.jpg": {"exif": exif}, "many_pages.tiff": {"save_all": True, "append_images": [image]}}
        converted.save(directory / f"{split}_{name}", **more.get(name, {}))


def make_mixed(root: Path, broken: bool = True, annotated: bool = True) -> Path:
    """Write `train` and `test` with two categories; the broken files are in `train/joy`."""
    for seed, (split, category) in enumerate((s, c) for s in ("train", "test") for c in CATEGORIES):
        _write(root / split / category, split, seed)
    for i, category in enumerate(CATEGORIES if annotated else ()):
        notes = root / "annotation" / category
        notes.mkdir(parents=True)
        for name in GOOD[i::2]:
            answers = {"brightness": 0.0 if i else 1.0, "scene": "bakery/shop", "object": ["dog", "Tree "]}
            (notes / f"train_{Path(name).stem}.json").write_text(json.dumps(answers))
    if broken:
        directory = root / "train" / CATEGORIES[0]
        whole = directory / "whole.jpg"
        _pixels(9, 90, 90).save(whole)
        (directory / "cut_short.jpg").write_bytes(whole.read_bytes()[:900])
        whole.unlink()
        (directory / "words.png").write_text("no picture")
        (directory / "empty.jpg").write_bytes(b"")
    return root
