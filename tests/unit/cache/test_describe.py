"""The text of `masp cache info`."""

from masp.cache.describe import describe
from tests.small_cache import make_small_cache


def test_deep_maps_and_bytes_per_image_are_told(tmp_path):
    text = describe(make_small_cache(tmp_path / "deep", num_deep_maps=3))
    assert "deep maps    [3, T, 8] per image, for DeepStack\n" in text
    assert "deep maps" not in describe(make_small_cache(tmp_path / "plain"))
    num_bytes = sum(path.stat().st_size for path in (tmp_path / "deep").rglob("*.tar"))
    assert f"GB in 3 shards, {num_bytes / 6 / 1e6:.3f} MB per image\n" in text


def test_info_says_what_is_in_it(cache):
    text = describe(cache.directory)
    pieces = "anger, awe, joy|brightness, object, scene|[T, 32] in fp32|qwen2_vl|3 images|num_threads 1"
    for piece in pieces.split("|"):
        assert piece in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith(("test ", "train "))] == [
        ["test", "6"], ["train", "17"],
    ]  # fmt: skip
