"""MASP: recognize the emotion that an image evokes, with small modules around a frozen vision-language model.

model = masp.load("outputs/run")            # what was trained, and the VLM once it is needed
model.predict(["photo.jpg"])                # label, probabilities, log-likelihoods
model.explain("photo.jpg")                  # what each aspect answers and did, and where it looks
masp.open_cache("outputs/run/cache")        # features as a torch Dataset
"""

import importlib
import logging
import os
from typing import Any

__version__ = "0.1.0"

# transformers imports torchao wherever it is installed, which warns of each of its kernels that is not for this
# machine, and torch of how it registers its types. Here, so that it comes before all of them, whoever imports MASP.
if os.environ.get("MASP_DEBUG") != "1":
    for _name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(_name).setLevel(logging.ERROR)

# torch takes seconds to import, and `masp --help` does without: each name is imported when it is first used.
_OFFERED = {
    "load": "masp.inference.model",
    "Model": "masp.inference.model",
    "Prediction": "masp.inference.model",
    "open_cache": "masp.inference.cached",
    "CacheDataset": "masp.inference.cached",
    "Explanation": "masp.results.explanations.explanation",
    "AspectExplanation": "masp.results.explanations.explanation",
}
__all__ = ["__version__", *_OFFERED]


def __getattr__(name: str) -> Any:
    if name not in _OFFERED:
        raise AttributeError(f"module 'masp' has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_OFFERED])
