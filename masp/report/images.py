"""The images of a run's samples, found again for the report."""

from __future__ import annotations

import functools
import logging
from pathlib import Path, PurePosixPath

from masp.config.aspects import Aspects, load_aspects
from masp.data.datasets import list_dataset
from masp.data.image_files.stored import Location
from masp.data.keys import split_key
from masp.data.named.catalog import NAMED
from masp.data.sources.find import find_dataset, is_there
from masp.errors import MaspError
from masp.report.run_config import RunConfig

LOG = logging.getLogger(__name__)


class Images:
    """Finds images by their sample keys, as far as the dataset is there."""

    def __init__(self, config: RunConfig):
        """Nothing looked at yet.

        Args:
            config: What is known of the run's configuration.
        """
        self.root = config.dataset_root
        self._dataset, self._cache_dir, self._definitions = config.dataset, config.cache_dir, config.aspect_definitions

    def find(self, key: str) -> tuple[str, Location | None]:
        """A sample's name to show, and its image if there is one.

        Most images are files that the key names; for others the dataset is listed, once.
        """
        name = shown_name(key)
        try:
            split, relative = split_key(key)
        except ValueError:
            return name, None
        # Records are read from a file that anybody may have written: what they name must not lead out of the dataset.
        if self.root is None or ".." in PurePosixPath(relative).parts or ".." in split or "/" in split:
            return name, None
        # Datasets listed by index files name images from the root, image folders from the split's directory.
        candidates = (self.root / split / relative, self.root / relative) if self._keys_are_paths else ()
        return name, next((path for path in candidates if _is_file(path)), None) or self._listed.get(key)

    @functools.cached_property
    def _keys_are_paths(self) -> bool:
        """Whether images are files that keys name: image folders and index files whose splits are their own."""
        if self._dataset is None:
            return True
        named = NAMED.get(self._dataset.name)
        if self._dataset.split is not None or (named is not None and named.read is not None):
            return False
        try:
            return find_dataset(self._dataset, self._aspects).rows(self._aspects) is None
        except MaspError:
            return True

    @functools.cached_property
    def _aspects(self) -> Aspects:
        """The aspects that are defined, by which some datasets are recognized; none if their file cannot be read."""
        try:
            return load_aspects(self._definitions)
        except MaspError as error:
            LOG.info("the dataset is listed without aspects: %s", error)
            return {}

    @functools.cached_property
    def _listed(self) -> dict[str, Location]:
        """Where all images are; empty if the dataset cannot be listed."""
        if self._dataset is None or not is_there(self._dataset.root):
            return {}
        try:
            samples = list_dataset(self._dataset, self._aspects, self._cache_dir).samples
        except MaspError as error:
            LOG.info("the images are not shown: %s", error)
            return {}
        return dict(zip(samples.keys, samples.images, strict=True))


def shown_name(key: str) -> str:
    """What to call a sample: the split and the path in its key; the key itself if it is not one."""
    try:
        return "/".join(split_key(key))
    except ValueError:
        return key


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, a directory that may not be searched
        return False
