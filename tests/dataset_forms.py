"""One set of images in every form that a dataset may have."""

from __future__ import annotations

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CATEGORIES = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "joy", "sadness")


@dataclass(frozen=True)
class Item:
    """One image of the set."""

    name: str
    """Different from all others."""
    split: str
    category: str
    data: bytes
    answers: Mapping[str, Any]
    """Annotation as its file has it."""


@dataclass(frozen=True)
class Form:
    """The set in one form."""

    settings: tuple[str, ...]
    """Settings of the section `dataset`."""
    item_of: Callable[[str], str]
    """From the path in a sample key to the name of the item."""


def read_items(root: Path, count: int) -> list[Item]:
    """The first images of a dataset in image folders, `count` of them, from all splits and categories alike."""
    paths = sorted(root.glob("*/*/*.*"), key=lambda path: (path.name, str(path)))
    paths = [path for path in paths if path.parts[-3] in ("train", "val", "test")][:count]
    items = []
    for path in paths:
        note = root / "annotation" / path.parent.name / f"{path.stem}.json"
        answers = json.loads(note.read_text()) if note.is_file() else {}
        name = f"{path.parts[-3]}_{path.parent.name}_{path.stem}".replace(".", "-")  # WebDataset cuts keys at dots
        items.append(Item(name, path.parts[-3], path.parent.name.lower(), path.read_bytes(), answers))
    assert len(items) == count and len({item.name for item in items}) == count
    return items


def _aspects(item: Item) -> dict[str, Any]:
    known = ("facial_expression", "object", "scene", "human_action", "brightness", "colorfulness")
    return {aspect: item.answers.get(aspect) for aspect in known}


def folders(root: Path, items: list[Item]) -> Form:
    """Image folders with splits and annotations."""
    for item in items:
        for path, data in (
            (root / item.split / item.category / f"{item.name}.png", item.data),
            (root / "annotation" / item.category / f"{item.name}.json", json.dumps(item.answers).encode()),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return Form((f"root={root}",), lambda path: Path(path).stem)


def undivided(root: Path, items: list[Item]) -> Form:
    """Image folders without splits, and lists of the splits."""
    for item in items:
        for path, data in (
            (root / item.category / "deep" / f"{item.name}.png", item.data),
            (root / "annotation" / item.category / f"{item.name}.json", json.dumps(item.answers).encode()),
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    lists = {}
    for split in sorted({item.split for item in items}):
        path = root / f"{split}.lst"
        path.write_text("".join(f"{item.name}.png\n" for item in items if item.split == split))
        lists[split] = str(path)
    return Form((f"root={root}", f"split={json.dumps(lists)}"), lambda path: Path(path).stem)


def emoset(root: Path, items: list[Item]) -> Form:
    """Index files."""
    rows: dict[str, list[list[str]]] = {}
    for item in items:
        image, note = f"image/{item.category}/{item.name}.png", f"annotation/{item.category}/{item.name}.json"
        for path, data in ((root / image, item.data), (root / note, json.dumps(item.answers).encode())):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        rows.setdefault(item.split, []).append([item.category, item.name, image, note])
    for split, listed in rows.items():
        (root / f"{split}.json").write_text(json.dumps(listed))
    return Form((f"root={root}",), lambda path: Path(path).stem)


def _images(root: Path, items: list[Item]) -> None:
    (root / "images").mkdir(parents=True)
    for item in items:
        (root / "images" / f"{item.name}.png").write_bytes(item.data)


def table_csv(root: Path, items: list[Item]) -> Form:
    """A table, whose labels are numbers."""
    _images(root, items)
    with (root / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        aspects = list(_aspects(items[0]))
        writer.writerow(["file_name", "code", "split", *aspects])
        for item in items:
            values = [json.dumps(v) if isinstance(v, list) else v for v in _aspects(item).values()]
            writer.writerow([f"{item.name}.png", CATEGORIES.index(item.category), item.split, *values])
    names = json.dumps({str(number): category for number, category in enumerate(CATEGORIES)})
    return Form((f"root={root}", "columns={label: code}", f"label_names={names}"), lambda path: Path(path).stem)


def table_jsonl(root: Path, items: list[Item]) -> Form:
    """A table of JSON lines for each split, with an id."""
    _images(root, items)
    for split in {item.split for item in items}:
        rows = [
            {"image": f"{item.name}.png", "emotion": item.category, "nr": item.name} | _aspects(item)
            for item in items
            if item.split == split
        ]
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Form((f"root={root}", "columns={id: nr}"), lambda path: path)


def _tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def webdataset(root: Path, items: list[Item]) -> Form:
    """Tars of classified images."""
    for split in {item.split for item in items}:
        members = []
        for item in (item for item in items if item.split == split):
            members += [
                (f"{item.name}.png", item.data),
                (f"{item.name}.cls", str(CATEGORIES.index(item.category)).encode()),
                (f"{item.name}.json", json.dumps(_aspects(item)).encode()),
            ]
        half = len(members) // 6 * 3
        _tar(root / f"{split}-00000.tar", members[:half])
        _tar(root / f"{split}-00001.tar", members[half:])
    names = json.dumps({str(number): category for number, category in enumerate(CATEGORIES)})
    pattern = f"{root}/*-{{00000..00001}}.tar"
    return Form((f"root={pattern}", f"label_names={names}"), lambda path: Path(path).stem)


def img2dataset(root: Path, items: list[Item]) -> Form:
    """Tars as img2dataset writes them, with a parquet file and statistics beside each."""
    members = []
    for number, item in enumerate(items):
        facts = {"mood": item.category, "subset": item.split, "caption": "a thing", "width": 3} | _aspects(item)
        members += [
            (f"{number:09d}.png", item.data),
            (f"{number:09d}.txt", b"a thing"),
            (f"{number:09d}.json", json.dumps(facts).encode()),
        ]
    _tar(root / "00000.tar", members)
    pq.write_table(pa.table({"caption": ["a thing"]}), root / "00000.parquet")
    (root / "00000_stats.json").write_text("{}")
    names = [item.name for item in items]
    return Form((f"root={root}", "columns={label: mood}"), lambda path: names[int(Path(path).stem)])


def _hub_table(items: list[Item]) -> pa.Table:
    """A table as the library `datasets` writes it: a struct of bytes and path, labels as numbers, names in metadata."""
    features = {"image": {"_type": "Image"}, "label": {"names": list(CATEGORIES), "_type": "ClassLabel"}}
    columns = {
        "image": pa.array(
            [{"bytes": item.data, "path": f"{item.name}.png"} for item in items],
            type=pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
        ),
        "label": pa.array([CATEGORIES.index(item.category) for item in items], type=pa.int64()),
        "image_id": pa.array([item.name for item in items]),
    }
    for aspect in _aspects(items[0]):
        values = [_aspects(item)[aspect] for item in items]
        kind = pa.float64() if aspect in ("brightness", "colorfulness") else pa.string()
        columns[aspect] = pa.array(values, type=pa.list_(pa.string()) if aspect == "object" else kind)
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return pa.table(columns).replace_schema_metadata(metadata)


def parquet(root: Path, items: list[Item]) -> Form:
    """Parquet files of the Hub; rows are named by their ids."""
    (root / "data").mkdir(parents=True)
    for split in {item.split for item in items}:
        table = _hub_table([item for item in items if item.split == split])
        pq.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=7)
    return Form((f"root={root}", "columns={id: image_id}"), lambda path: path)


def parquet_bytes(root: Path, items: list[Item]) -> Form:
    """A single parquet file with a column of bytes; rows are named by their numbers."""
    root.mkdir(parents=True)
    columns = {
        "jpg": [item.data for item in items],
        "emotion": [item.category.title() for item in items],
        "split": [item.split for item in items],
    }
    columns |= {aspect: [_aspects(item)[aspect] for item in items] for aspect in _aspects(items[0])}
    pq.write_table(pa.table(columns), root / "all.parquet", row_group_size=5)
    names = [item.name for item in items]
    return Form((f"root={root / 'all.parquet'}", "columns={image: jpg}"), lambda path: names[int(path.split("/")[-1])])


def arrow(root: Path, items: list[Item]) -> Form:
    """A directory as `datasets.save_to_disk` writes it."""
    splits = sorted({item.split for item in items})
    root.mkdir(parents=True)
    (root / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    for split in splits:
        table = _hub_table([item for item in items if item.split == split])
        here = root / split
        here.mkdir()
        with pa.OSFile(str(here / "data-00000-of-00001.arrow"), "wb") as file:
            with pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=6)
        features = {"label": {"names": list(CATEGORIES), "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        (here / "dataset_info.json").write_text(json.dumps({"features": features}))
        (here / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split})
        )
    return Form((f"root={root}", "columns={id: image_id}"), lambda path: path)


FORMS: dict[str, Callable[[Path, list[Item]], Form]] = {
    form.__name__: form
    for form in (
        folders,
        undivided,
        emoset,
        table_csv,
        table_jsonl,
        webdataset,
        img2dataset,
        parquet,
        parquet_bytes,
        arrow,
    )
}


def write_form(name: str, root: Path, items: list[Item]) -> Form:
    """Write the set in one form into a new directory."""
    shutil.rmtree(root, ignore_errors=True)
    return FORMS[name](root, items)
