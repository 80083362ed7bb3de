"""Batches of the encoder depend on the images of a shard alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from masp.cache.shard_state import Source
from masp.extraction.image_stream import PreparedImage, batches
from masp.vlm.features import ImageLayout


def image(num_tokens):
    return PreparedImage({"pixel_values": torch.zeros(1)}, ImageLayout(num_tokens), (28, 28), Source(1, 1, "0" * 64))


def test_all_inputs_go_to_page_locked_memory(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    inputs = {"pixel_values": torch.zeros(4, 3), "image_sizes": torch.zeros(1, 2)}
    whole = PreparedImage(inputs, ImageLayout(4), (28, 28), Source(1, 1, "0" * 64))
    pinned = whole.pin_memory()
    assert {name: tensor.unique().tolist() for name, tensor in pinned.inputs.items()} == {name: [1] for name in inputs}
    assert (pinned.layout, pinned.image_size, pinned.source) == (whole.layout, whole.image_size, whole.source)
    failed = PreparedImage({}, ImageLayout(0), (0, 0), Source(None, None, None), failure="no answer")
    assert failed.pin_memory() == failed


@given(st.lists(st.integers(1, 100), max_size=40), st.integers(1, 120))
def test_batches_are_consecutive_and_as_large_as_fits(tokens, batch_tokens):
    images = [image(n) for n in tokens]
    found = list(batches(images, batch_tokens))
    assert [i for batch in found for i in batch] == images
    sizes = [sum(i.layout.num_tokens for i in batch) for batch in found]
    assert all(size <= batch_tokens or len(batch) == 1 for size, batch in zip(sizes, found, strict=True))
    following = [batch[0].layout.num_tokens for batch in found[1:]]
    assert all(size + after > batch_tokens for size, after in zip(sizes, following, strict=False))
