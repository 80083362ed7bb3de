"""Images of one color, for tests of their sizes."""

from PIL import Image


def photographs(root, sizes, split="train"):
    """Images of one color and of given sizes, in one category."""
    folder = root / split / "joy"
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (i % 256, 90, 160)).save(folder / f"{i:04d}.jpg", quality=5)
    return root
