"""The text of `masp cache info`."""

from masp.cache.describe import describe


def test_info_says_what_is_in_it(cache):
    text = describe(cache.directory)
    pieces = "anger, awe, joy|brightness, object, scene|[T, 32] in fp32|qwen2_vl|3 images|num_threads 1"
    for piece in pieces.split("|"):
        assert piece in text
    assert [line.split()[:2] for line in text.splitlines() if line.startswith(("test ", "train "))] == [
        ["test", "6"], ["train", "17"],
    ]  # fmt: skip
