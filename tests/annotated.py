"""A small cache of real images whose aspects nobody annotated, and a configuration that annotates it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from masp.config import Config, load_config, save_config
from masp.extraction.job import extract
from tests.images import make_config, make_dataset
from tests.tiny import make_vlm

DEFINITIONS = """
weather:
  kind: text
  questions: ["Which weather is it?", "Name the weather."]
  vocabulary: [rain, fog, sunshine]
  absent: none
mood:
  kind: text
  questions: ["What is the mood?"]
things:
  kind: list
  questions: ["What can be seen?"]
  vocabulary: [dog, tree]
light:
  kind: level
  questions: ["How bright is it?"]
  bounds: [0, 1]
  words: [dark, bright]
  annotate: brightness
color:
  kind: level
  questions: ["How colorful is it?"]
  bounds: [0, 1]
  words: [gray, pale, vivid]
  annotate: colorfulness
scene:
  kind: text
  questions: ["What is the scene?"]
  vocabulary: [sea side, street]
silent:
  kind: text
  questions: ["Who took it?"]
  annotate: never
"""
ASPECTS = "aspects=[weather,mood,things,light,color,scene]"


def make_annotated(
    directory: Path,
    *overrides: str,
    num_train: int = 14,
    num_test: int = 5,
    prepare: Callable[[Path], object] = lambda images: None,
) -> Config:
    """Write images, VLM, definitions and a finished cache; scenes of two thirds of the images are annotated.

    Args:
        directory: Where to write; `config.yaml` in it is the configuration that is returned.
        overrides: More settings.
        num_train, num_test: Numbers of images.
        prepare: Called with the directory of the images before they are extracted.
    """
    root, vlm = make_dataset(directory / "images", num_train, num_test), make_vlm(directory / "vlm")
    prepare(root)
    definitions = directory / "aspects.yaml"
    definitions.write_text(DEFINITIONS)
    settings = [
        ASPECTS, f"aspect_definitions={definitions}", "cache.num_shards=5", "vlm.max_pixels=12544",
        "engine.precision=fp32", "engine.num_threads=1", "engine.device=cpu", "engine.num_workers=0",
        "annotate.device=cpu", "annotate.num_threads=1", "annotate.num_workers=0", "annotate.batch_size=3",
        "annotate.max_new_tokens=6", f"output_dir={directory / 'run'}", *overrides,
    ]  # fmt: skip
    config = make_config(root, vlm, directory / "cache", *settings)
    extract(config)
    save_config(config, directory / "config.yaml")
    return config


def changed(config: Config, directory: Path, *overrides: str) -> Config:
    """The same configuration with other settings."""
    path = directory / "before.yaml"
    save_config(config, path)
    return load_config(path, list(overrides))


def copy_cache(config: Config, directory: Path) -> Config:
    """The same configuration with a copy of its cache, without answers."""
    directory.mkdir(exist_ok=True)
    shutil.copytree(config.cache.dir, directory / "cache", ignore=shutil.ignore_patterns("annotations"))
    return changed(config, directory, f"cache.dir={directory / 'cache'}")


def files_of(config: Config) -> dict[str, bytes]:
    """Name -> content of the files of the stored answers, without those on their way."""
    directory = Path(config.cache.dir) / "annotations"
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
