"""Brightness and colorfulness of an image, computed from its pixels.

Brightness is the mean intensity of the HSI color model, I = (R + G + B) / 3 (Gonzalez and Woods, Digital Image
Processing, section 6.2), as a share of the largest. Colorfulness is M of Hasler and Süsstrunk (Measuring colorfulness
in natural images, SPIE Human Vision and Electronic Imaging VIII, 2003):

    rg = R - G, yb = (R + G) / 2 - B, M = sqrt(var rg + var yb) + 0.3 sqrt(mean(rg)^2 + mean(yb)^2)

with R, G and B from 0 to 255. Their scale, from ratings of people, ends at 109 for "extremely colorful", which is 1
here. Both numbers are rounded to steps of 0.1, as those of EmoSet are.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from masp.config.aspects import Aspect

EXTREMELY_COLORFUL = 109.0
"""M of images that people call extremely colorful."""


def brightness(image: Image.Image) -> float:
    """Mean intensity of an RGB image, from 0 (black) to 1 (white)."""
    return float(np.asarray(image, dtype=np.float64).mean() / 255)


def colorfulness(image: Image.Image) -> float:
    """Colorfulness of an RGB image, from 0 (gray) to 1 (extremely colorful or more)."""
    red, green, blue = np.asarray(image, dtype=np.float64).reshape(-1, 3).T
    rg, yb = red - green, (red + green) / 2 - blue
    measure = np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean())
    return min(1.0, float(measure) / EXTREMELY_COLORFUL)


MEASURES = {"brightness": brightness, "colorfulness": colorfulness}
"""Value of `annotate` -> what computes it."""


def level_of(aspect: Aspect, image: Image.Image) -> str:
    """The word for the brightness or colorfulness of an image.

    Args:
        aspect: An aspect of kind `level` whose `annotate` is one of `MEASURES`.
        image: An RGB image.
    """
    share = round(MEASURES[aspect.annotate](image), 1)
    # a step includes its lower end, also where arithmetic left it a few bits short
    return aspect.vocabulary[min(int(share * len(aspect.vocabulary) + 1e-9), len(aspect.vocabulary) - 1)]
