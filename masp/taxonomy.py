"""The emotions that each known dataset distinguishes, and how names are compared."""

import unicodedata
from typing import Literal, get_args

# `folder` is a dataset that is none of the known ones: its categories are the names of its own subdirectories.
DatasetName = Literal[
    "emoset",
    "fi",
    "emotion6",
    "artphoto",
    "abstract",
    "unbiasedemo",
    "webemo",
    "emotionroi",
    "twitter1",
    "caer-s",
    "flickr",
    "instagram",
    "folder",
]

Split = Literal["train", "val", "test"]

_MIKELS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
# ArtPhoto and Abstract ship the same eight emotions, two of them under shorter names.
_MIKELS_SHORT = ("amusement", "anger", "awe", "content", "disgust", "excitement", "fear", "sad")
_POLARITY = ("positive", "negative")

CATEGORY_SETS: dict[DatasetName, tuple[str, ...]] = {
    "emoset": _MIKELS,
    "emotion6": ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
    "artphoto": _MIKELS_SHORT,
    "abstract": _MIKELS_SHORT,
    "fi": _MIKELS,
    "unbiasedemo": ("anger", "fear", "joy", "love", "sadness", "surprise"),
    "emotionroi": ("anger", "disgust", "fear", "joy", "sadness", "surprise"),
    "twitter1": ("negative", "positive"),
    "caer-s": ("anger", "disgust", "fear", "happy", "neutral", "sad", "surprise"),
    "flickr": _POLARITY,
    "instagram": _POLARITY,
}


def normalize_category(name: str) -> str:
    """The category that the name of a directory or a row of an index file means.

    Args:
        name: As written by the dataset's author, for example `"Anger "` or `"very_happy"`.

    Returns:
        Lower case, underscores as spaces, runs of white space as one space, none at the ends, in Unicode's composed
        form (NFC): the words that a VLM is asked to say.
    """
    return unicodedata.normalize("NFC", " ".join(name.replace("_", " ").lower().split()))


def dataset_name(text: str) -> str:
    """The name of a dataset as `DatasetName` has it, if it is one but for case, spaces and hyphens.

    Args:
        text: As people write it, for example `CAER-S`, `Unbiased Emo` or `Twitter I`.
    """
    plain = _plain(text)
    return next((name for name in get_args(DatasetName) if _plain(name) == plain), text.strip().lower())


def _plain(name: str) -> str:
    found = "".join(character for character in name.lower() if character.isalnum())
    return {"emoset118k": "emoset", "twitteri": "twitter1", "twitter": "twitter1", "caer": "caers"}.get(found, found)
