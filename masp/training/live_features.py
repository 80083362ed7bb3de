"""The micro-batches of a step: as the workers made them, or where there is no cache with features from the encoder."""

from __future__ import annotations

from collections.abc import Iterator

from masp.extraction.encoder import Encoder, check_finite_features
from masp.models.sequence import Batch
from masp.training.steps import Batches, Step


class _Encoded(Batches):
    """Micro-batches whose features are computed when their turn comes: those of one at a time are in memory.

    Which images the encoder gets together depends on the micro-batch alone, so the same step of a resumed run gets the
    same bits.
    """

    def __init__(self, step: Step, encoder: Encoder):
        self.step, self.encoder = step, encoder

    def __len__(self) -> int:
        return len(self.step.batches)

    def __iter__(self) -> Iterator[Batch]:
        dtype = self.encoder.config.cache.dtype
        for batch, images, keys in zip(self.step.batches, self.step.images, self.step.keys, strict=True):
            features = self.encoder.encode(images)
            check_finite_features(features, [f"sample {key or 'of weight zero'}" for key in keys], dtype)
            yield batch.with_features(features)


def batches_of(step: Step, encoder: Encoder | None) -> Batches:
    """The micro-batches of a step, with their features.

    Args:
        step: What this rank does in the step.
        encoder: The encoder, where features are computed live.
    """
    return step.batches if encoder is None else _Encoded(step, encoder)
