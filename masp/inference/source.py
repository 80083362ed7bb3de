"""From what a user names to a configuration that says what was trained and around which VLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from masp.artifacts.trained import default_soft_prompt_path
from masp.config import Config, load_config
from masp.errors import InputError
from masp.files.regular import is_directory, is_file

CONFIG = "config.yaml"
_PLACES = ("stage2", "evaluate", ".")
"""Where a run keeps its configuration, the one of training first."""
UNUSED = ("cache.dir", "dataset.root")
"""Settings that a run needs and inference does not."""


def config_of(
    source: str | Path, device: str | None = None, vlm: str | None = None, settings: Sequence[str] = ()
) -> Config:
    """The configuration of what was trained.

    Args:
        source: Run directory.
        device: `cpu` or `cuda`; None as the run had it.
        vlm: Directory of the VLM, or its name on the hub; None as the run had it.
        settings: `key=value`, each instead of what the run had.

    Raises:
        InputError: There is no such run, or it has not been trained; or a setting is not valid.
    """
    directory = Path(source)
    overrides = [f"vlm.path={vlm}"] if vlm else []
    overrides += [f"engine.device={device}", f"extract.device={device}"] if device else []
    return _config_of_run(directory, [*overrides, *settings])


def _config_of_run(directory: Path, overrides: list[str]) -> Config:
    if not is_directory(directory):
        raise InputError(f"{directory}: no such directory; name the output_dir of a run")
    path = next((directory / place / CONFIG for place in _PLACES if is_file(directory / place / CONFIG)), None)
    if path is None:
        raise InputError(f"{directory}: nothing was trained here: it has no stage2/{CONFIG}; name a run's output_dir")
    # the directory may have been moved since
    config = load_config(path, [*overrides, f"output_dir={directory}"], unused=list(UNUSED))
    if config.checkpoint.soft_prompt is None and not is_file(default_soft_prompt_path(config), key="output_dir"):
        raise InputError(f"{directory}: stage 2 has not finished: there is no {default_soft_prompt_path(config)}")
    return config
