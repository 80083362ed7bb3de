"""From what a user names to a configuration that says what was trained and around which VLM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from masp.artifacts.export_format import ASPECTS, DEFINITIONS, QUESTIONS, SCHEME, SOFT_PROMPT, is_exported
from masp.artifacts.exported import NONE, exported_settings, open_exported
from masp.artifacts.trained import default_soft_prompt_path
from masp.config import Config, load_config
from masp.config.aspects import SHIPPED
from masp.config.yaml_text import dump_value
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
        source: Run directory; or what `masp export` wrote, its directory or `hf://owner/name[@revision]` of the hub,
            which is fetched and compared with its digests.
        device: `cpu` or `cuda`; None as the run had it, `auto` of an exported model.
        vlm: Directory of the VLM, or its name on the hub; None as the run had it.
        settings: More of them, `key=value`.

    Raises:
        InputError: There is no such run or model, the run has not been trained, nothing says which VLM, or an exported
            model is not as `masp export` writes it.
        DataError: An exported model is damaged.
    """
    overrides = [f"vlm.path={vlm}"] if vlm else []
    overrides += [f"engine.device={device}", f"extract.device={device}"] if device else []
    if str(source).startswith(SCHEME) or is_exported(Path(source)):
        return _config_of_exported(str(source), [*overrides, *settings])
    return _config_of_run(Path(source), [*overrides, *settings])


def _config_of_exported(source: str, overrides: list[str]) -> Config:
    exported = open_exported(source, "")
    vlm_here = exported_settings(exported).get("vlm.path")  # checks all of them
    if vlm_here is None and not any(override.startswith("vlm.path=") for override in overrides):
        vlm = exported.record.vlm
        raise InputError(
            f"{source}: its VLM ({vlm.model_type}, weights {vlm.weights[:12]}) was a directory of the machine that "
            "trained it; name yours: masp.load(…, vlm=DIR), or vlm.path=DIR on the command line"
        )
    paths = {
        "questions": exported.path(QUESTIONS),
        "aspect_definitions": exported.path(DEFINITIONS) or SHIPPED,
        "checkpoint.aspect": exported.path(ASPECTS) or NONE,
        "checkpoint.soft_prompt": exported.path(SOFT_PROMPT) or NONE,
    }
    own = [f"{name}={dump_value(str(path))}" for name, path in paths.items()]
    return load_config(exported.directory / "config.json", [*overrides, *own], unused=["dataset.root"])


def _config_of_run(directory: Path, overrides: list[str]) -> Config:
    if not is_directory(directory):
        raise InputError(
            f"{directory}: no such directory; name the output_dir of a run, an exported model, or hf://owner/name"
        )
    path = next((directory / place / CONFIG for place in _PLACES if is_file(directory / place / CONFIG)), None)
    if path is None:
        raise InputError(f"{directory}: nothing was trained here: it has no stage2/{CONFIG}; name a run's output_dir")
    # the directory may have been moved since
    config = load_config(path, [*overrides, f"output_dir={directory}"], unused=list(UNUSED))
    if config.checkpoint.soft_prompt is None and not is_file(default_soft_prompt_path(config), key="output_dir"):
        raise InputError(f"{directory}: stage 2 has not finished: there is no {default_soft_prompt_path(config)}")
    return config
