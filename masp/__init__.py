"""MASP: recognize the emotion that an image evokes, with small modules around a frozen vision-language model."""

import logging
import os

__version__ = "0.1.0"

# transformers imports torchao wherever it is installed, which warns of each of its kernels that is not for this
# machine, and torch of how it registers its types. Here, so that it comes before all of them, whoever imports MASP.
if os.environ.get("MASP_DEBUG") != "1":
    for _name in ("torchao", "torch.utils._pytree"):
        logging.getLogger(_name).setLevel(logging.ERROR)
