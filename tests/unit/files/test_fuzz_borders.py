"""Every file that is read from outside is damaged in thousands of ways: nothing but a MaspError leaves its reader.

A border is a line of `BORDERS`. Where a file carries a checksum, or another file carries one of it, a changed byte is
an error, or the value that was read is the one that was written.

Cases are drawn with a fixed seed. A failure names the case's number; `damaged(border, data, number)` makes it anew.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
import shutil
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest
import torch
import yaml

from masp.artifacts.aspect_tokens import AspectTokens, _header
from masp.cache.codec import SampleRecord, decode_features, decode_record, encode_features, encode_record, store
from masp.cache.fingerprint import _read_memo, model_fields
from masp.cache.index import fields, load_index
from masp.cache.layout import read_layout
from masp.cache.manifest import quarantined_keys, read_manifest
from masp.cache.reader import open_cache
from masp.cache.shard_state import read_sidecar
from masp.config import load_aspects
from masp.config.schema import DatasetConfig, VlmConfig
from masp.data.datasets import read_dataset
from masp.data.questions import load_questions
from masp.errors import MaspError
from masp.extraction.progress import Timing, read_timings
from masp.files.sealed import sealed
from masp.files.typed import encode
from masp.vlm.features import Features
from tests.small_cache import make_small_cache
from tests.unit.files.run_borders import RUN_BORDERS
from tests.unit.launch.borders import BORDERS as LAUNCH_BORDERS

SEED = 3407
NUM_CASES = 12
"""Of each border."""
NUM_CASES_FULL = 400
MAX_LINE = 2_000
"""Characters of an error line, the path included."""

Form = Literal["sealed", "json", "lines", "yaml", "binary"]


@dataclass(frozen=True)
class Border:
    """A file that is read from outside."""

    name: str
    form: Form
    """`sealed`: a JSON object with its own digest, which damaged values are given anew. `lines`: JSON lines."""
    make: Callable[[Path], bytes]
    """Writes what the file needs beside it into an empty directory; returns a valid content of the file."""
    read: Callable[[Path], object]
    """Reads the file; its result can be compared with `==`."""
    file: str = "file"
    """Name of the file in the directory."""
    checked: bool = False
    """Whether a checksum outside the file tells of each changed byte."""
    lenient: bool = False
    """Whether the reader passes over what is damaged: a log for people, or a memo."""


@functools.cache
def small_cache() -> Path:
    return make_small_cache(Path(tempfile.mkdtemp(prefix="masp-fuzz-")) / "cache")


def beside_cache(file: str) -> Callable[[Path], bytes]:
    """A copy of a cache to damage one file of."""

    def make(directory: Path) -> bytes:
        shutil.copytree(small_cache(), directory, dirs_exist_ok=True)
        return (directory / file).read_bytes()

    return make


def read_shard(path: Path) -> list:
    with contextlib.closing(open_cache(path.parent.parent)) as cache:
        samples = [cache.read(row) for row in range(len(cache))]
        return [(s.key, s.split, s.category, s.answers, listed(s.features), s.layout, s.image_size) for s in samples]


def listed(features: Features) -> list:
    return [tensor.tolist() for tensor in features.tensors]


def read_index(path: Path) -> list:
    index = load_index(path)
    columns = [getattr(index, field.name) for field in fields(type(index))]
    return [None if column is None else column.tolist() for column in columns]


def index_with_distributions(directory: Path) -> bytes:
    make_small_cache(directory / "cache", votes=lambda number: (0.75, 0.25) if number % 2 == 0 else None)
    return (directory / "cache" / "index.h5").read_bytes()


def aspect_tokens(directory: Path) -> bytes:
    shutil.copytree(small_cache(), directory, dirs_exist_ok=True)
    with contextlib.closing(open_cache(directory)) as cache:
        header = _header(cache, ["scene"], "0" * 64)
        tokens = np.ones((len(cache), 1, 2, cache.hidden_size), dtype="<f4")
    path = directory / "file.h5"
    with h5py.File(path, "w") as file:
        file.attrs["made_of"] = np.bytes_(header.text())
        file.create_dataset("tokens", data=tokens, chunks=(1, *tokens.shape[1:]))
        file.create_dataset("crc32", data=np.array([zlib.crc32(one.tobytes()) for one in tokens], dtype="<u4"))
    return path.read_bytes()


def read_aspect_tokens(path: Path) -> list:
    with contextlib.closing(open_cache(path.parent)) as cache:
        named = _header(cache, ["scene"], "0" * 64).path(cache)
        named.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, named)
        with contextlib.closing(AspectTokens(cache, ["scene"], "0" * 64)) as tokens:
            return [tokens.read(row).tolist() for row in range(len(cache))]


def record(_: Path) -> bytes:
    return encode_record(SampleRecord("train/awe/1", "train", "awe", {"scene": "sea"}, (40, 30), (1, 2, 2), "1" * 64))


def record_with_block(_: Path) -> bytes:
    block = ((7, 3), (9, 1), (7, 2))
    return encode_record(SampleRecord("train/awe/1", "train", "awe", {}, (40, 30), None, "1" * 64, block))


def record_with_distribution(_: Path) -> bytes:
    grid, votes = (1, 2, 2), (0.25, 0.75)
    return encode_record(SampleRecord("train/awe/1", "train", "awe", {}, (40, 30), grid, "1" * 64, distribution=votes))


def features(dtype: str, num_deep_maps: int = 0) -> Callable[[Path], bytes]:
    deep = torch.ones(num_deep_maps, 3, 4) if num_deep_maps else None
    return lambda _: encode_features(store(Features(torch.ones(3, 4), deep), dtype))


def read_features(path: Path) -> list:
    return listed(decode_features(memoryview(bytearray(path.read_bytes()))))


def vlm(directory: Path) -> bytes:
    (directory / "model.safetensors").write_bytes(b"weights")
    (directory / "preprocessor_config.json").write_text(
        '{"size": {"shortest_edge": 3, "longest_edge": 9}, "scale": 0.5}'
    )
    return b'{"model_type": "a", "vision_config": {"depth": 2}, "quantization_config": {"quant_method": "b"}, "f": 1.5}'


def processor(directory: Path) -> bytes:
    (directory / "config.json").write_bytes(vlm(directory))
    return (directory / "preprocessor_config.json").read_bytes()


def index_rows(directory: Path) -> bytes:
    (directory / "a.json").write_text('{"scene": "sea"}')
    return json.dumps([["awe", "a.jpg", "a.json"], ["fear", "7", "b.jpg", ""], ["Awe ", "c/d.jpg", "a.json"]]).encode()


def info(directory: Path) -> bytes:
    (directory / "train.json").write_bytes(index_rows(directory))
    return b'{"emotion": {"label2idx": {"awe": 0, "fear": 1}, "idx2label": {"0": "awe"}}, "scene": {"label2idx": {}}}'


def annotation(directory: Path) -> bytes:
    (directory / "train" / "awe").mkdir(parents=True)
    (directory / "train" / "awe" / "1.jpg").write_bytes(b"image")
    return b'{"image_id": "awe_1", "brightness": 0.5, "object": ["Dog", "Tree"], "scene": "sea_side", "emotion": "awe"}'


def dataset_of(root: Path, name: str = "folder") -> object:
    dataset = read_dataset(DatasetConfig(name=name, root=str(root)), load_aspects())
    return dataset.samples, dataset.categories


def memo(_: Path) -> bytes:
    return json.dumps({"/a/b": {"identity": [1, 2, 3, 4], "sha256": "0" * 64}}, sort_keys=True, indent=1).encode()


def timings(_: Path) -> bytes:
    return 2 * (encode(Timing("cpu (AVX2)", "fp32", 7, 9000, 1.5, 0.5, 0.25, 0.25)) + b"\n")


def questions(_: Path) -> bytes:
    return b"aspects:\n  scene: ['Where is this?', Say it]\n  object:\n  - Which things?\nemotion: ['{categories}?']\n"


def aspects(_: Path) -> bytes:
    return (
        b"weather: {questions: [What is it], vocabulary: [rain, fog], absent: none, annotate: generate}\n"
        b"mood:\n  kind: level\n  questions:\n  - How is it?\n  bounds: [0, 1.5]\n  words: [bad, good]\n"
        b"things: {kind: list, questions: [Which things], annotate: never}\n"
    )


def prompts(_: Path) -> bytes:
    return b'{"scene": ["Where is this?", "Say it"], "emotion": ["Choose from: {}", "Or {0}?"]}'


# One line per file: name, form, valid content, reader.
BORDERS = (
    Border("layout", "sealed", beside_cache("layout.json"), lambda p: read_layout(p.parent), "layout.json"),
    Border("manifest", "sealed", beside_cache("manifest.json"), lambda p: read_manifest(p.parent), "manifest.json"),
    Border(
        "sidecar",
        "sealed",
        beside_cache("shards/train-00000.json"),
        lambda p: read_sidecar(p.parent.parent, "train-00000"),
        "shards/train-00000.json",
    ),
    Border(
        "shard", "binary", beside_cache("shards/train-00001.tar"), read_shard, "shards/train-00001.tar", checked=True
    ),
    Border("index", "binary", beside_cache("index.h5"), read_index),
    Border("index with distributions", "binary", index_with_distributions, read_index),
    Border(
        "index of a cache",
        "binary",
        beside_cache("index.h5"),
        lambda p: list(open_cache(p.parent).index.keys),
        "index.h5",
        checked=True,
    ),
    Border(
        "quarantine list",
        "lines",
        beside_cache("quarantine.jsonl"),
        lambda p: quarantined_keys(p.parent),
        "quarantine.jsonl",
        checked=True,
    ),
    Border("aspect tokens", "binary", aspect_tokens, read_aspect_tokens, "file.h5", checked=True),
    Border("JSON of a sample", "json", record, lambda p: decode_record(p.read_bytes())),
    Border("JSON of a sample with a block", "json", record_with_block, lambda p: decode_record(p.read_bytes())),
    Border(
        "JSON of a sample with a distribution",
        "json",
        record_with_distribution,
        lambda p: decode_record(p.read_bytes()),
    ),
    Border("features, fp32", "binary", features("fp32"), read_features),
    Border("features, int8", "binary", features("int8"), read_features),
    Border("features with deep maps, fp32", "binary", features("fp32", 2), read_features),
    Border("features with deep maps, fp8", "binary", features("fp8", 2), read_features),
    Border("timings", "lines", timings, lambda p: read_timings(p.parent), "timings.jsonl", lenient=True),
    Border("memo of digests", "json", memo, _read_memo, lenient=True),
    Border(
        "config of a VLM", "json", vlm, lambda p: model_fields(p.parent, VlmConfig(path="vlm"), "fp32"), "config.json"
    ),
    Border(
        "image processor",
        "json",
        processor,
        lambda p: model_fields(p.parent, VlmConfig(path="vlm"), "fp32"),
        "preprocessor_config.json",
    ),
    Border("index file of a dataset", "json", index_rows, lambda p: dataset_of(p.parent), "train.json"),
    Border("info.json", "json", info, lambda p: dataset_of(p.parent), "info.json"),
    Border("annotation", "json", annotation, lambda p: dataset_of(p.parents[2]), "annotation/awe/1.json"),
    Border("aspects", "yaml", aspects, load_aspects, "aspects.yaml"),
    Border("questions", "yaml", questions, load_questions, "questions.yaml"),
    Border("questions of the published form", "json", prompts, load_questions, "prompts.json"),
    *(Border(**vars(border)) for border in RUN_BORDERS),
    *(Border(b.name, b.form, lambda _, c=b.content: c, b.read, b.file) for b in LAUNCH_BORDERS),
)

# Values as they are spelled in a text; JSON and YAML read those that Python's json module would not write.
ODD = (
    *("null", "true", "-1", "0", "1", "1.0", "1.5", "-0.0", "1e-400", "1e999", "-1e999", "NaN", "Infinity", "1e308"),
    *(str(2**31 - 1), str(2**31), str(2**63 - 1), str(2**63), str(2**64), "1" + "0" * 400, "9" * 5_000),
    *(
        '""',
        '"x"',
        '"\\u0000"',
        '"\\ud800"',
        '"a\\u0007b"',
        '"' + "x" * 20_000 + '"',
        '"' + "0" * 64 + '"',
        '"../../x"',
    ),
    *("[]", "{}", "[null]", "[[]]", '{"": {}}', "[1, 2, 3]", "[" * 900 + "]" * 900, "[" * 20_000 + "]" * 20_000),
    *('{"a":' * 900 + "1" + "}" * 900, "[1e999]", "[[NaN]]", '{"a": 1, "a": 2}'),
)
_MARK = "@@{}@@"


def damaged(border: Border, data: bytes, number: int) -> tuple[bytes, bool]:
    """Case `number` of a border: the damaged content, and whether a checksum in it is right all the same."""
    draw = random.Random(f"{SEED} {border.name} {number}")
    if border.form == "binary" or draw.random() < 0.5:
        return _bytes_damaged(data, draw), False
    return _value_damaged(border.form, data, draw), border.form == "sealed"


def _bytes_damaged(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        position, length = draw.randrange(len(changed) + 1), draw.choice((1, 1, 4, 64, 1000))
        match draw.choice(("flip", "delete", "insert", "cut", "zero", "repeat")):
            case "flip":
                if position < len(changed):
                    changed[position] ^= 1 << draw.randrange(8)
            case "delete":
                del changed[position : position + length]
            case "insert":
                changed[position:position] = draw.randbytes(length)
            case "cut":
                del changed[position:]
            case "zero":
                changed[position : position + length] = bytes(len(changed[position : position + length]))
            case "repeat":
                changed[position:position] = changed[position : position + length]
    return bytes(changed)


def _value_damaged(form: Form, data: bytes, draw: random.Random) -> bytes:
    if form == "lines":
        lines = data.splitlines()
        at = draw.randrange(len(lines))
        lines[at] = _spell(*_changed(json.loads(lines[at]), draw), indent=None)
        return b"\n".join(lines) + b"\n"
    value = yaml.safe_load(data) if form == "yaml" else json.loads(data)
    if form != "sealed":
        return _spell(*_changed(value, draw), indent=None)
    del value["digest"]
    value, marks = _changed(value, draw)
    if not isinstance(value, dict):
        return _spell(value, marks, indent=1)
    value["digest"] = hashlib.sha256(_spell(value, marks, indent=None)).hexdigest()
    return _spell(value, marks, indent=1) + b"\n"


def _spell(value: Any, marks: dict[str, str], indent: int | None) -> bytes:
    separators = (",", ":") if indent is None else None
    text = json.dumps(value, sort_keys=True, indent=indent, separators=separators)
    for mark, spelling in marks.items():
        text = text.replace(f'"{mark}"', spelling)
    return text.replace(_MARK.format("twice"), "").encode()


def _changed(value: Any, draw: random.Random) -> tuple[Any, dict[str, str]]:
    """A value with one to three places changed, and how the marks in it are to be spelled."""
    value, marks = json.loads(json.dumps(value)), {}
    for number in range(draw.choice((1, 1, 1, 2, 3))):
        places = list(_places(value))
        mark = _MARK.format(number)
        marks[mark] = draw.choice(ODD)
        if not places or draw.random() < 0.02:
            return mark, marks
        holder, key = draw.choice(places)
        match draw.choice(("odd", "odd", "odd", "drop", "add", "twice", "copy", "swap")):
            case "odd":
                holder[key] = mark
            case "drop":
                del holder[key]
            case "add":
                _add(holder, "unknown", mark)
            case "twice":
                _add(holder, f"{_MARK.format('twice')}{key}", mark)
            case "copy":
                other, from_key = draw.choice(places)
                holder[key] = json.loads(json.dumps(other[from_key]))
            case "swap":
                others = [k for h, k in places if h is holder]
                other_key = draw.choice(others)
                holder[key], holder[other_key] = holder[other_key], holder[key]
    return value, marks


def _add(holder: Any, key: str, value: Any) -> None:
    if isinstance(holder, dict):
        holder[key] = value
    else:
        holder.append(value)


def _places(value: Any):
    """Every place in a value, as what holds it and its key there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items):
        yield value, key
        yield from _places(item)


def check(border: Border, directory: Path, num_cases: int) -> None:
    directory.mkdir(exist_ok=True)
    data = border.make(directory)
    path = directory / border.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    expected = border.read(path)
    num_refused = 0
    for number in range(num_cases):
        content, has_right_checksum = damaged(border, data, number)
        path.write_bytes(content)
        try:
            found = border.read(path)
        except MaspError as error:
            line = str(error)
            assert error.exit_code in (2, 3) and "\n" not in line and len(line) < MAX_LINE, (border.name, number, line)
            num_refused += 1
        except BaseException as error:
            error.add_note(f"{border.name}, case {number}: {content[:300]!r}")
            raise
        else:
            is_checked = border.checked or (border.form == "sealed" and not has_right_checksum)
            assert not is_checked or found == expected, (border.name, number, "was read as another value")
    assert num_refused or border.lenient, f"{border.name}: no damage was ever noticed"


@pytest.mark.parametrize("border", BORDERS, ids=lambda border: border.name)
def test_damaged_files_are_refused(border, tmp_path):
    check(border, tmp_path / "files", NUM_CASES)


@pytest.mark.full
@pytest.mark.parametrize("border", BORDERS, ids=lambda border: border.name)
def test_damaged_files_are_refused_in_many_more_cases(border, tmp_path):
    check(border, tmp_path / "files", NUM_CASES_FULL)


def test_the_cases_are_the_same_every_time():
    border = BORDERS[0]
    data = sealed({"a": [1, {"b": "c"}], "format_version": 1})
    assert [damaged(border, data, n) for n in range(50)] == [damaged(border, data, n) for n in range(50)]
