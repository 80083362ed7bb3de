"""A configuration without a cache: what may go with it, and where features come from."""

import pytest

from masp.config import load_config, save_config
from masp.config.feature_source import cache_directory, evaluation_source
from masp.errors import InputError

GIVEN = ["vlm.path=vlm", "dataset.root=data"]


def test_a_cache_must_be_named_or_refused(tmp_path):
    with pytest.raises(InputError, match="cache.dir must be given"):
        load_config(None, GIVEN)
    config = load_config(None, [*GIVEN, "cache.dir=null", "dataset.augment=crop"])
    assert config.cache.dir is None and config.dataset.augment == "crop"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    # a command that uses no cache does not mind
    assert load_config(tmp_path / "config.yaml", unused=["cache.dir"]) == config


@pytest.mark.parametrize("source", ["cache", "live"])
def test_where_evaluation_gets_features_from(source):
    given = [*GIVEN, f"evaluate.source={source}"]
    assert evaluation_source(load_config(None, [*given, "cache.dir=there"])) == source
    assert evaluation_source(load_config(None, [*given, "cache.dir=null"])) == "live"


def test_what_needs_a_cache_says_so():
    assert str(cache_directory(load_config(None, [*GIVEN, "cache.dir=there"]))) == "there"
    with pytest.raises(InputError, match=r"^cache.dir = null: this run has no cache, .*; give cache.dir a directory"):
        cache_directory(load_config(None, [*GIVEN, "cache.dir=null"]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["cache.dir=there", "dataset.augment=flip"], "dataset.augment = 'flip': features in a cache are the same"),
        (["cache.dir=null", "cache.aspect_tokens=true"], "cache.aspect_tokens = true: needs a cache"),
        (["cache.dir=null", "dataset.augment=turn"], "dataset.augment = 'turn': must be one of none, flip, crop"),
    ],
)
def test_what_does_not_go_together(settings, message):
    with pytest.raises(InputError) as error:
        load_config(None, [*GIVEN, *settings])
    assert message in str(error.value)
