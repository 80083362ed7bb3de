"""The published datasets that `dataset.name` knows: what they hold, how they are laid out, where they come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from masp.config.schema import DatasetConfig
from masp.data.named.readers import abstract, artphoto, emotion6, emotionroi, twitter
from masp.data.sources.rows import RowSource
from masp.taxonomy import CATEGORY_SETS, DatasetName

Reader = Callable[[Path, DatasetConfig], RowSource | None]


@dataclass(frozen=True)
class NamedDataset:
    """One published dataset."""

    title: str
    """Its name as its authors write it."""
    layout: str
    """What is on the disk as it is shipped."""
    splits: str
    """Where its splits come from."""
    source: str
    """The paper, by which it is found."""
    license: str
    """What is known about its use."""
    read: Reader | None = None
    """Reads a layout of its own; returns None where the directory has another one. None: only common layouts."""


_ACADEMIC = "for research; the images belong to their photographers"
_OWN = "none: give dataset.split"

NAMED: Mapping[DatasetName, NamedDataset] = {
    "emoset": NamedDataset(
        "EmoSet-118K",
        "train.json, val.json, test.json, info.json, image/<emotion>/*.jpg, annotation/<emotion>/*.json; on the Hub "
        "also parquet files and datasets.save_to_disk directories",
        "index files, or names of files",
        "Yang et al., EmoSet, ICCV 2023",
        _ACADEMIC,
    ),
    "fi": NamedDataset(
        "FI (Flickr and Instagram)",
        "emotion_dataset/<emotion>/*.jpg, or train/, val/, test/ with <emotion>/*.jpg",
        "directories, or none: give dataset.split",
        "You et al., Building a Large Scale Dataset for Image Emotion Recognition, AAAI 2016",
        _ACADEMIC,
    ),
    "emotion6": NamedDataset(
        "Emotion6",
        "images/<emotion>/<n>.jpg and ground_truth.txt, whose probabilities of the emotions become distributions",
        _OWN,
        "Peng et al., A Mixed Bag of Emotions, CVPR 2015",
        _ACADEMIC,
        emotion6,
    ),
    "artphoto": NamedDataset(
        "ArtPhoto",
        "one directory with <emotion>_<id>.jpg",
        _OWN,
        "Machajdik and Hanbury, Affective Image Classification, ACM Multimedia 2010",
        _ACADEMIC,
        artphoto,
    ),
    "abstract": NamedDataset(
        "Abstract",
        "one directory with the images and ABSTRACT_groundTruth.csv; votes become distributions, images with a tie are "
        "left out (280 become 228)",
        _OWN,
        "Machajdik and Hanbury, Affective Image Classification, ACM Multimedia 2010",
        _ACADEMIC,
        abstract,
    ),
    "unbiasedemo": NamedDataset(
        "UnbiasedEmo",
        "images/<emotion>/<object>/*.jpg",
        _OWN,
        "Panda et al., Contemplating Visual Emotions, ECCV 2018",
        _ACADEMIC,
    ),
    "webemo": NamedDataset(
        "WEBEmo",
        "images/<split>/<0 to 24>/*.jpg; dataset.label_names must say what the numbers mean: 25 emotions, or the 7 "
        "above them, by the list that comes with the dataset",
        "directories",
        "Panda et al., Contemplating Visual Emotions, ECCV 2018",
        _ACADEMIC,
    ),
    "emotionroi": NamedDataset(
        "EmotionROI",
        "images/<emotion>/<n>.jpg and training_testing_split/training.txt and testing.txt",
        "list files",
        "Peng et al., Where Do Emotions Come From?, ICIP 2016",
        _ACADEMIC,
        emotionroi,
    ),
    "twitter1": NamedDataset(
        "Twitter I",
        "one directory with the images and five_agree.txt, four_agree.txt, three_agree.txt; dataset.root may name one "
        "of these files, the directory means five_agree.txt",
        _OWN,
        "You et al., Robust Image Sentiment Analysis, AAAI 2015",
        _ACADEMIC,
        twitter,
    ),
    "caer-s": NamedDataset(
        "CAER-S",
        "train/<Emotion>/*.png, test/<Emotion>/*.png",
        "directories",
        "Lee et al., Context-Aware Emotion Recognition Networks, ICCV 2019",
        "for research; frames of television shows",
    ),
    "flickr": NamedDataset(
        "Flickr",
        "<sentiment>/*.jpg, with or without directories of splits",
        "directories, or none: give dataset.split",
        "Katsurai and Satoh, Image Sentiment Analysis Using Latent Correlations, ICASSP 2016",
        _ACADEMIC,
    ),
    "instagram": NamedDataset(
        "Instagram",
        "<sentiment>/*.jpg, with or without directories of splits",
        "directories, or none: give dataset.split",
        "Katsurai and Satoh, Image Sentiment Analysis Using Latent Correlations, ICASSP 2016",
        _ACADEMIC,
    ),
}
"""In the order in which `masp datasets` lists them."""


def named_rows(config: DatasetConfig) -> RowSource | None:
    """The rows of a published dataset in its own layout; None where it has one of the common layouts.

    Raises:
        InputError: A file of it is not as it is shipped.
    """
    named = NAMED.get(config.name)
    if named is None or named.read is None or config.format != "auto":
        return None
    return named.read(Path(config.root), config)


def categories_of(name: DatasetName) -> tuple[str, ...]:
    """The categories of a published dataset; empty where `dataset.label_names` decides."""
    return CATEGORY_SETS.get(name, ())
