"""MASP: recognize the emotion that an image evokes, with small modules around a frozen vision-language model."""

__version__ = "0.1.0"
