"""MASP: recognise the emotion that a picture evokes, around a frozen vision-language model."""

__version__ = "0.1.0"
