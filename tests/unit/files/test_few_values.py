"""A string of a file that can be one of a few is checked where it is read; the others are listed here, by choice.

The classes are found in the source: whatever is given to a reader, and whatever is in its fields.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import typing
from pathlib import Path
from typing import Annotated, Literal

import pytest

from launch.job.config import ClusterConfig
from masp.config.schema import Config
from masp.errors import DataError
from masp.files.fields import one_of
from masp.files.typed import decode
from tests.runs import REPOSITORY

OTHERS = {"fields", "isinstance", "describe_settings", "sections", "cast"}
"""What a class is given to although no file holds it."""

# Names, words and paths of users, versions and names of machines and libraries, text for people.
FREE = {
    "Halving": "members",
    "MemberSettings": "name source values",
    "Members": "log_keys",
    "RestartState": "by_aspect",
    "Restarts": "aspects dropped",
    "Runs": "only",
    "Standing": "failure name",
    "AnnotateConfig": "aspects",
    "AnswerForm": "words",
    "AspectEntry": "answer annotated",
    "Averages": "by_label by_prediction",
    "AspectSettings": "absent questions vocabulary words",
    "ClusterConfig": "partition account qos constraint mail_user mail_type setup sbatch",
    "CacheConfig": "dir",
    "CheckpointConfig": "aspect soft_prompt",
    "Config": "aspect_definitions aspects output_dir questions",
    "DatasetConfig": "root categories columns distribution label_names split",
    "Division": "names",
    "DatasetRow": "category_map metrics",
    "EvaluateConfig": "category_map output_dir without",
    "ExplanationsFile": "aspects categories lineage notes",
    "ExportedVlm": "model_type name revision",
    "Failure": "message",
    "Finding": "text examples meant",
    "Golden": "note",
    "GoldenAnswer": "image question generated_text",
    "GoldenStage1": "image aspect question answer",
    "GoldenStage2": "image question answer",
    "Header": "identity machine",
    "Holdings": "categories aspects",
    "ImageEntry": "label prediction",
    "KeyLine": "keys",
    "Layout": "answer_forms categories model",
    "Lineage": "aspects model machine dataset categories settings",
    "LoggingConfig": "project",
    "Machine": "device jpeg_library pillow processor_backend torch transformers webp_library",
    "MachineLine": "machine",
    "MajorityClass": "category",
    "Manifest": "answer_forms categories aspects",
    "MapPlace": "file",
    "MetricsFile": "per_category categories confusion_columns left_out by_value num_values remark per_aspect dataset "
    "question category_map notes lineage target without",
    "Means": "aspects",
    "PartConfig": "gpu_type sbatch srun python",
    "PartStatus": "message elapsed",
    "PromptRow": "question",
    "PromptTable": "rows",
    "Note": "world num_pictures",
    "StoredAnswer": "key answer",
    "StoredAnswers": "aspects",
    "_Metadata": "aspects",
    "QuarantineEntry": "category answers path reason",
    "QuarantineLine": "path reason",
    "Record": "sample_key label prediction text working_directory host",
    "SampleEntry": "category answers",
    "SampleRecord": "category answers",
    "Sidecar": "name",
    "SplitCounts": "categories aspects",
    "Status": "message host warning subset",
    "Submitted": "result",
    "TargetConfig": "categories labels name questions",
    "TemperatureScaling": "reason",
    "Timing": "device",
    "VlmConfig": "path",
    "_Hello": "host",
    "_Holder": "host",
    "_News": "text",
    "TargetLineage": "name source",
}
# Digests, keys and ids: whatever reads them compares them with what they must be.
COMPARED = {
    "AnswerSource": "definition machine settings vlm",
    "DatasetRecord": "dataset",
    "ExplanationsFile": "records",
    "ExportedVlm": "weights",
    "ExportRecord": "aspect files masp soft_prompt",
    "Fingerprint": "model",
    "Generation": "shards keys",
    "ImageEntry": "key",
    "Lineage": "digest aspect_digest answers cache dataset_digest",
    "MetricsFile": "protocol",
    "ProbeFile": "data_digest",
    "Part": "shard",
    "ShardFile": "name",
    "Submitted": "job_ids job_name",
    "PartStatus": "job_ids",
    "EngineCounters": "taken dropped",
    "Note": "digest",
    "_Head": "made_by",
    "_Header": "identity",
    "_Hello": "token",
    "_Meta": "identity tensors",
    "TargetLineage": "labels questions",
}


def read_classes() -> dict[str, type]:
    """Every dataclass that a typed reader is asked for, and those in their fields, by name."""
    found: dict[str, type] = {}
    for path in [*(REPOSITORY / "masp").rglob("*.py"), *(REPOSITORY / "launch").rglob("*.py")]:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call) and node.args]
        names = {
            argument.id
            for call in calls
            if ast.unparse(call.func).rpartition(".")[2] not in OTHERS
            for argument in call.args[:1]
            if isinstance(argument, ast.Name) and argument.id.lstrip("_")[:1].isupper()
        }
        if names:
            module = importlib.import_module(module_name(path))
            for name in sorted(names):
                add(getattr(module, name, None), found)
    for root in (Config, ClusterConfig):
        add(root, found)
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPOSITORY).with_suffix("").parts)


def add(kind: object, found: dict[str, type]) -> None:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        name = f"{kind.__module__}.{kind.__name__}"
        if name not in found:
            found[name] = kind
            for hint in typing.get_type_hints(kind).values():
                add(hint, found)
        return
    for argument in typing.get_args(kind):
        if argument is not kind:
            add(argument, found)


def is_any_string(hint: object) -> bool:
    """Whether a type lets any string through, as a value or in one."""
    if typing.get_origin(hint) is Annotated:
        base, *more = typing.get_args(hint)
        checked = any(type(one).__name__ == "GetPydanticSchema" for one in more)
        checked |= any(getattr(one, "pattern", None) or "pattern" in str(one) for one in more)
        return not checked and is_any_string(base)
    if typing.get_origin(hint) is Literal:
        return False
    return hint is str or any(is_any_string(argument) for argument in typing.get_args(hint))


def test_every_string_that_may_be_anything_is_so_by_choice():
    free = {f"{name}.{field}" for table in (FREE, COMPARED) for name, text in table.items() for field in text.split()}
    found = set()
    for kind in read_classes().values():
        hints = typing.get_type_hints(kind, include_extras=True)
        for base in filter(dataclasses.is_dataclass, kind.__mro__):
            own = vars(base)["__annotations__"]
            found |= {f"{base.__name__}.{name}" for name in hints if name in own and is_any_string(hints[name])}
    unknown = sorted(found - free)
    assert free <= found, sorted(free - found)
    assert not unknown, f"make them a Literal if they can only be a few values, or list them: {unknown}"


def test_one_of_names_the_key_the_value_and_what_is_valid():
    @dataclasses.dataclass(frozen=True)
    class Holder:
        split: Annotated[str, one_of(("train", "val"))]
        counts: dict[Annotated[str, one_of(("train", "val"))], int] | None = None

    assert decode(Holder, b'{"split": "val", "counts": {"train": 3}}', "f") == Holder("val", {"train": 3})
    with pytest.raises(DataError, match="^f: split = 'Train': must be 'train' or 'val'$"):
        decode(Holder, b'{"split": "Train"}', "f")
    with pytest.raises(DataError, match="^f: counts.dev.* = 'dev': must be 'train' or 'val'$"):
        decode(Holder, b'{"split": "val", "counts": {"dev": 3}}', "f")
