"""From a run to one directory with all that inference needs; `masp.artifacts.export_format` says what is in it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from masp import __version__
from masp.artifacts.export_format import (
    ASPECTS,
    CARD,
    CONFIG,
    DEFINITIONS,
    METRICS,
    NAMES,
    QUESTIONS,
    RECORD,
    SCHEME,
    SOFT_PROMPT,
    ExportedFile,
    ExportedVlm,
    ExportRecord,
    is_exported,
)
from masp.artifacts.exported import NONE, OWN_VLM
from masp.artifacts.model_hub import parse_address
from masp.artifacts.store import export_aspects, export_soft_prompt, load_soft_prompt
from masp.artifacts.store import load_aspects as load_modules
from masp.artifacts.trained import default_aspect_path, default_soft_prompt_path
from masp.cache.fingerprint import model_part, weights_digest
from masp.config import Aspect, Config, load_aspects
from masp.config.packaged import find_packaged
from masp.config.yaml_text import dump_yaml
from masp.data.questions import EMOTION, Questions, load_questions
from masp.errors import InputError
from masp.files.atomic import creating_directory
from masp.files.regular import exists, is_directory, is_file
from masp.files.sealed import digest_file, sealed
from masp.files.text import reason
from masp.files.typed import as_json, plain
from masp.inference.model import Model
from masp.inference.sharing.card import LICENSE, model_card
from masp.inference.sharing.evaluation import Evaluated, evaluated_categories, evaluation_of
from masp.inference.source import config_of
from masp.results.metrics_file import write_metrics
from masp.runtime.log import show
from masp.runtime.run_directory import RunState, read_status
from masp.vlm.families import family_of, resolve_directory

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_SNAPSHOT = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)/snapshots/(?P<commit>[0-9a-f]{40})")


def export(run: Path, directory: Path, vlm: str | None = None, license: str = LICENSE) -> Path:
    """Write what a run has trained, with all that inference needs, into a directory of its own.

    The same run gives the same bytes. The directory appears whole or not at all.

    Args:
        run: Run directory.
        directory: The directory, which does not exist or is empty.
        vlm: Name of the VLM on the hub, where the run names a directory: `owner/name[@revision]`.
        license: License of what was trained, by its identifier on the hub, such as `apache-2.0`.

    Returns:
        The directory.

    Raises:
        InputError: There is no such run, it has not finished, its evaluation is of something else, its VLM is not there
            any more, or the directory cannot be written.
        DataError: A file of the run is damaged.
    """
    if not _LICENSE.fullmatch(license):
        raise InputError(f"--license {license}: must be an identifier of the hub, such as apache-2.0 or cc-by-nc-4.0")
    name = None if vlm is None else _hub_name(vlm)
    _check_target(directory)
    if is_exported(run):
        raise InputError(f"RUN: {run} is an exported model already; copy it, or `masp push` it")
    config = config_of(run, device="cpu")  # nothing is computed
    _check_finished(run, config)
    if categories := evaluated_categories(run, config):
        config.dataset.categories = list(categories)
    model = Model(config)
    evaluated = evaluation_of(run, config, model.trained)
    path = Path(os.path.realpath(directory))
    with _plain_write_errors(directory), creating_directory(path) as temporary:
        record = _write(temporary, model, name, evaluated)
        card = model_card(model, record, evaluated, license)
        (temporary / CARD).write_text(card, encoding="utf-8")
    held = [words for words, part in _parts(record) if part]
    show(
        f"export: {directory}: {' and '.join(held) or 'nothing trained'}; `masp push {directory} owner/name` shares it"
    )
    if record.vlm.name is None and _portable(config.vlm.path) is None:
        show(
            "export: the VLM is a directory of this machine: whoever loads it names theirs, masp.load(…, vlm=DIR); "
            "--vlm owner/name says what it is called on the hub"
        )
    return directory


def _parts(record: ExportRecord) -> list[tuple[str, Any]]:
    return [("aspect modules", record.aspect), ("soft prompt", record.soft_prompt)]


def _check_target(directory: Path) -> None:
    if not exists(directory, key="DIR"):
        return
    if not is_directory(directory, key="DIR"):
        raise InputError(f"DIR: {directory} is a file; give a directory that does not exist")
    try:
        is_empty = not any(directory.iterdir())
    except OSError as error:
        raise InputError(f"DIR: {directory} cannot be read: {reason(error)}") from None
    if not is_empty:
        raise InputError(f"DIR: {directory} is not empty; give a directory that does not exist, or remove it first")


def _check_finished(run: Path, config: Config) -> None:
    """Refuse a run whose own artifacts, those that are used, are not the last word."""
    stages = {
        "stage1": config.aspects and config.checkpoint.aspect is None,
        "stage2": config.checkpoint.soft_prompt is None,
    }
    for stage, is_own in stages.items():
        if not is_own:
            continue
        status = read_status(run / stage)
        if status is None or status.state != RunState.FINISHED:
            how = "does not say that it has finished" if status is None else f"has not finished ({status.state})"
            raise InputError(
                f"RUN: {run}: {stage} {how}; run `masp train --stage {stage}` again, which goes on, then export"
            )


def _write(directory: Path, model: Model, vlm: str | None, evaluated: Evaluated | None) -> ExportRecord:
    """Write everything but the model card."""
    config, trained = model.config, model.trained
    hidden_size = family_of(config.vlm.path).hidden_size
    lineage: dict[str, dict[str, Any] | None] = {"aspect": None, "soft_prompt": None}
    if trained.aspects is not None:
        source = config.checkpoint.aspect or str(default_aspect_path(config))
        export_aspects(source, directory / ASPECTS, hidden_size)
        lineage["aspect"] = as_json(load_modules(str(directory / ASPECTS), model.aspects, hidden_size)[1].to_json())
    if trained.soft_prompt is not None:
        source = config.checkpoint.soft_prompt or str(default_soft_prompt_path(config))
        export_soft_prompt(source, directory / SOFT_PROMPT, hidden_size, trained.layout)
        lineage["soft_prompt"] = as_json(load_soft_prompt(str(directory / SOFT_PROMPT), hidden_size)[1].to_json())
    found = _vlm(config, vlm)
    _write_json(directory / CONFIG, _settings(model, found))
    used = {name: each for name, each in load_aspects(config.aspect_definitions).items() if name in model.aspects}
    _write_yaml(directory / QUESTIONS, _questions(model.questions, model.aspects))
    if used:
        _write_yaml(directory / DEFINITIONS, {name: _definition(each) for name, each in used.items()})
    _check_same(directory, model, used)
    if evaluated is not None:
        write_metrics(directory / METRICS, evaluated.values)
    files = {
        name: ExportedFile((directory / name).stat().st_size, digest_file(directory / name))
        for name in NAMES
        if is_file(directory / name)
    }
    for name, part in trained.lineage().items():  # the run may be training again by now
        if part is not None and part["digest"] != (lineage[name] or {}).get("digest"):
            raise InputError(
                f"RUN: {config.output_dir}: {name} changed while it was exported; run the same command again"
            )
    record = ExportRecord(files, found, __version__, lineage["aspect"], lineage["soft_prompt"])
    (directory / RECORD).write_bytes(sealed(plain(record)))
    return record


def _settings(model: Model, vlm: ExportedVlm) -> dict[str, Any]:
    """All that predictions and explanations depend on, as a configuration."""
    config, trained = model.config, model.trained
    path = f"{SCHEME}{vlm.name}{f'@{vlm.revision}' if vlm.revision else ''}" if vlm.name else _portable(config.vlm.path)
    names = ("attention", "min_pixels", "max_pixels", "max_side", "transparency", "quantization")
    is_emotion = config.target.name == EMOTION
    categories = list(model.categories)
    return {
        "vlm": {**({"path": path} if path else {}), **{name: getattr(config.vlm, name) for name in names}},
        "questions": QUESTIONS,
        **({"aspect_definitions": DEFINITIONS} if model.aspects else {}),
        "aspects": list(model.aspects),
        "dataset": {"name": config.dataset.name, **({"categories": categories} if is_emotion else {})},
        "target": {"name": config.target.name, **({} if is_emotion else {"categories": categories})},
        "cache": {"dir": None, "dtype": config.cache.dtype},
        "extract": {"batch_tokens": config.extract.batch_tokens, "num_threads": config.extract.num_threads},
        "engine": {"precision": config.engine.precision},
        "stage1": {"layout": config.stage1.layout},
        "stage2": {"vision_features": trained.vision_features},
        "annotate": {"max_new_tokens": config.annotate.max_new_tokens},
        "checkpoint": {
            "aspect": ASPECTS if trained.aspects is not None else NONE,
            "soft_prompt": SOFT_PROMPT if trained.soft_prompt is not None else NONE,
            "layout": trained.layout,
        },
    }


def _vlm(config: Config, name: str | None) -> ExportedVlm:
    """The VLM as others can find it: as its user names it, as the run does, or from its place in the hub's cache."""
    directory = resolve_directory(config.vlm.path)
    found = _SNAPSHOT.search(os.path.realpath(directory))
    revision = None
    if name is None and not is_directory(Path(config.vlm.path)):
        name = config.vlm.path.removeprefix(SCHEME)
    if name is None and found is not None:
        name = f"{found['owner']}/{found['name']}"
    if name is not None:
        name, revision = parse_address(name, "vlm.path")
        if found is not None and f"{found['owner']}/{found['name']}" == name:
            revision = found["commit"]
    return ExportedVlm(model_part(config)["config.model_type"], weights_digest(directory), name, revision)


def _portable(path: str) -> str | None:
    """The name that the VLM of MASP itself has on every machine; None of any other directory."""
    is_own = os.path.realpath(path) == os.path.realpath(find_packaged(OWN_VLM, is_noted=False))
    return OWN_VLM if is_own else None


def _hub_name(vlm: str) -> str:
    repository, revision = parse_address(vlm, "--vlm")
    return f"{repository}@{revision}" if revision else repository


def _questions(questions: Questions, aspects: tuple[str, ...]) -> dict[str, Any]:
    templates = list(questions.target_templates)
    is_emotion = questions.target == EMOTION
    return {
        **({EMOTION: templates} if is_emotion else {"targets": {questions.target: templates}}),
        **({"aspects": {name: list(questions.templates(name)) for name in aspects}} if aspects else {}),
    }


def _definition(aspect: Aspect) -> dict[str, Any]:
    """An aspect as its file spells it."""
    is_level = aspect.kind == "level"
    return {
        "questions": list(aspect.questions),
        "kind": aspect.kind,
        **({"words" if is_level else "vocabulary": list(aspect.vocabulary)} if aspect.vocabulary else {}),
        **({"bounds": list(aspect.bounds)} if aspect.bounds is not None else {}),
        "annotate": aspect.annotate,
        **({"absent": aspect.absent} if aspect.absent is not None else {}),
    }


def _check_same(directory: Path, model: Model, used: dict[str, Aspect]) -> None:
    """Read questions and aspects back: a prediction hangs on every character of them."""
    defined = load_aspects(directory / DEFINITIONS) if used else None
    questions = load_questions(
        directory / QUESTIONS, defined, dataclasses.replace(model.config.target, questions=None, labels=None)
    )
    ours = {name: model.questions.templates(name) for name in model.aspects}
    found = {name: questions.templates(name) for name in model.aspects}
    assert (questions.target_templates, found) == (model.questions.target_templates, ours)
    assert dict(defined or {}) == used


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.write_text(dump_yaml(value), encoding="utf-8")


@contextlib.contextmanager
def _plain_write_errors(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"DIR: {directory} cannot be written: {reason(error)}") from None
