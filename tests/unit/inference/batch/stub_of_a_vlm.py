"""A batch prediction in which only the VLM is a stub: `stub_of_a_vlm.py SOURCE OUTPUT`; prints its peak memory, bytes.

Images are listed, read and decoded as always; what the encoder and the language model would say follows from an image's
name.
"""

import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import torch

from masp.config import load_config
from masp.evaluation.scorers import Score
from masp.extraction.encoder import Encoder
from masp.inference.batch.inputs import list_images
from masp.inference.batch.run import predict_to_file
from masp.inference.model import Model
from masp.vlm.features import Features, ImageLayout
from tests.memory import peak_memory_bytes

CATEGORIES = ("awe", "fear", "joy")


def scores_of(name: str) -> tuple[float, ...]:
    """Log-likelihoods that a name decides."""
    number = zlib.crc32(name.encode())
    return tuple(-1.0 - (number >> (8 * place)) % 256 / 64 for place in range(len(CATEGORIES)))


class StubEncoder(Encoder):
    """No vision half, and one token per image."""

    def __init__(self, config):
        self.config, self.device = config, "cpu"
        self.preprocessor = lambda image: ({}, ImageLayout(1))
        features = Features(torch.zeros(1, 4))
        self.vision = SimpleNamespace(encode=lambda inputs, layouts: [features] * len(inputs))


class StubScorer:
    def score(self, requests):
        found = []
        for request in requests:
            scores = scores_of(request.name)
            found.append(Score(CATEGORIES[scores.index(max(scores))], scores, scores, None))
        return found


def stub_model(*settings: str) -> Model:
    """A model without VLM and without anything trained."""
    model = object.__new__(Model)
    given = ["cache.dtype=fp32", "engine.device=cpu", "extract.device=cpu", "extract.num_threads=1"]
    given += ["vlm.path=none", "evaluate.num_workers=0"]
    model.config = load_config(None, [*given, *settings], unused=["cache.dir", "dataset.root"])
    model.categories, model.features_of, model.machine, model.device = CATEGORIES, {}, {}, "cpu"
    model.questions = SimpleNamespace(target_first=lambda categories: "Which?")
    model.trained = SimpleNamespace(
        aspects=None, aspect_lineage=None, soft_prompt_lineage=None, layout="after_image", vision_features=True
    )
    model.encoder, model.scorer = StubEncoder(model.config), StubScorer()
    return model


if __name__ == "__main__":
    predict_to_file(
        stub_model("evaluate.batch_size=256"), list_images(sys.argv[1:2], None, sys.stdin.buffer), Path(sys.argv[2])
    )
    print(peak_memory_bytes())
