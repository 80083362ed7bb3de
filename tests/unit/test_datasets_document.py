"""The table of docs/datasets.md: for each form of data, what it says to write is enough."""

import io
import json
import re
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from masp.config import load_aspects, load_config
from masp.data.datasets import read_dataset

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/datasets.md"
IMAGES = [(n, ("joy", "fear")[n % 2], "train" if n < 6 else "test") for n in range(10)]


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (6, 5), (number * 20, 255 - number * 7, 9)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def split_folders(root):
    for n, category, split in IMAGES:
        write(root / split / category / "deep" / f"{n}.png", png(n))


def folders(root):
    for n, category, _ in IMAGES:
        write(root / "images" / category / f"{n}.png", png(n))


def folders_with_lists(root):
    folders(root)
    for split in ("train", "test"):
        write(root / f"{split}.txt", "".join(f"{category}/{n}.png\n" for n, category, s in IMAGES if s == split))


def emoset(root):
    for split in ("train", "test"):
        category = {"joy": "awe", "fear": "fear"}
        rows = [[category[c], f"image/{n}.png", ""] for n, c, s in IMAGES if s == split]
        write(root / f"{split}.json", json.dumps(rows))
    for n, _, _ in IMAGES:
        write(root / f"image/{n}.png", png(n))


def table(root):
    write(root / "labels.csv", "image,label,split\n" + "".join(f"{n}.png,{c},{s}\n" for n, c, s in IMAGES))
    for n, _, _ in IMAGES:
        write(root / f"images/{n}.png", png(n))


def imagefolder(root):
    for n, category, split in IMAGES:
        write(root / split / f"{n}.png", png(n))
        with open(root / split / "metadata.csv", "a") as file:
            file.write(f"{n}.png,{category}\n" if file.tell() else f"file_name,label\n{n}.png,{category}\n")


def imagefolder_with_one_table(root):
    for n, _, split in IMAGES:
        write(root / split / f"{n}.png", png(n))
    rows = [json.dumps({"file_name": f"{s}/{n}.png", "label": c, "scene": "sea"}) for n, c, s in IMAGES]
    write(root / "metadata.jsonl", "\n".join(rows))


def numbered_table(root):
    table(root)
    (root / "labels.csv").unlink()
    write(root / "list.tsv", "file\tcode\n" + "".join(f"{n}.png\t{n % 2}\n" for n, _, _ in IMAGES))


def votes(root):
    table(root)
    write(root / "labels.csv", "image,joy,fear\n" + "".join(f"{n}.png,{3 - n % 2 * 2},2\n" for n, _, _ in IMAGES))


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def webdataset(root):
    for half in range(2):
        members = {}
        for n, _, _ in IMAGES[half * 5 : half * 5 + 5]:
            members |= {f"{n:04d}.jpg": png(n), f"{n:04d}.cls": str(n % 2).encode()}
        tar(root / f"train-{half:05d}.tar", members)


def img2dataset(root):
    members = {}
    for n, category, _ in IMAGES:
        facts = json.dumps({"mood": category, "url": "https://a.org"}).encode()
        members |= {f"{n:04d}.jpg": png(n), f"{n:04d}.txt": b"a caption", f"{n:04d}.json": facts}
    tar(root / "00000.tar", members)
    pq.write_table(pa.table({"url": ["https://a.org"]}), root / "00000.parquet")


def hub_table(images):
    features = {"label": {"names": ["joy", "fear"], "_type": "ClassLabel"}}
    image = pa.array(
        [{"bytes": png(n), "path": None} for n, _, _ in images],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    found = pa.table({"image": image, "label": [n % 2 for n, _, _ in images]})
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def parquet(root):
    (root / "data").mkdir(parents=True)
    for split in ("train", "test"):
        found = hub_table([each for each in IMAGES if each[2] == split])
        pq.write_table(found, root / f"data/{split}-00000-of-00001.parquet")


def saved_to_disk(root):
    write(root / "dataset_dict.json", json.dumps({"splits": ["train", "test"]}))
    for split in ("train", "test"):
        found = hub_table([each for each in IMAGES if each[2] == split])
        features = {"label": {"names": ["joy", "fear"], "_type": "ClassLabel"}}
        write(root / split / "dataset_info.json", json.dumps({"features": features}))
        write(root / split / "state.json", json.dumps({"_data_files": [{"filename": "d.arrow"}], "_split": split}))
        with pa.OSFile(str(root / split / "d.arrow"), "wb") as file, pa.ipc.new_stream(file, found.schema) as writer:
            writer.write_table(found)


def hub(root):
    repository = root.parent / "hub/datasets--owner--name"
    parquet(repository / "snapshots" / ("a" * 40))
    write(repository / "refs/main", "a" * 40)


def emotion6(root):
    numbers = "\t0.2\t0\t0.2\t0.5\t0\t0\t0.1\n"
    write(root / "ground_truth.txt", "".join(f"{c}/{n}.jpg\t4\t5{numbers}" for n, c, _ in IMAGES))
    for n, category, _ in IMAGES:
        write(root / f"images/{category}/{n}.jpg", png(n))


WRITERS = (
    split_folders,
    folders,
    folders_with_lists,
    emoset,
    table,
    imagefolder,
    imagefolder_with_one_table,
    numbered_table,
    votes,
    webdataset,
    img2dataset,
    parquet,
    saved_to_disk,
    hub,
    emotion6,
)


def rows() -> list[list[str]]:
    """Settings of each row of the table."""
    text = DOCUMENT.read_text(encoding="utf-8").partition("| your data look like this")[2].partition("\n\n")[0]
    return [re.findall(r"`(dataset\.[^`]+)`", line.split(" | ")[1]) for line in text.splitlines()[2:]]


def test_every_row_is_tried():
    assert len(rows()) == len(WRITERS)


@pytest.mark.parametrize(
    ("writer", "settings"), zip(WRITERS, rows(), strict=False), ids=lambda v: getattr(v, "__name__", "")
)
def test_what_a_row_says_is_enough(writer, settings, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    writer(tmp_path / "DATA")
    settings = [setting.replace("DATA", str(tmp_path / "DATA")) for setting in settings]
    dataset = read_dataset(load_config(None, ["vlm.path=x", "cache.dir=y", *settings]).dataset, load_aspects())
    assert len(dataset.samples) == len(IMAGES)
    assert {sample.category for sample in dataset.samples} in ({"joy", "fear"}, {"awe", "fear"})
    splits = {"train"} if writer is webdataset else {"train", "test"}
    assert {sample.split for sample in dataset.samples} == splits
