"""What splits are called in names of files."""

import pytest

from masp.data.sources.split_words import split_word


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("data/train-00000-of-00004.parquet", "train"),
        ("data/validation-00000.parquet", "validation"),
        ("TEST/0001.tar", "TEST"),
        ("emoset_train_0001.tar", "train"),
        ("train/x-test.csv", "test"),
        ("00000.tar", None),
        ("trainee.tar", None),
        ("mytest.csv", None),
    ],
)
def test_split_word(path, word):
    assert split_word(path) == word
