"""Measures how long listing the rows of a large dataset takes, in parquet files, arrow files and tars, and the memory.

    python benchmarks/rows.py [--rows 1000000] [--files 8] [--group 1000] [--kinds parquet arrow tars] [--dir DIR]

Writes files with so many images of a few bytes, a category, an id and a caption each, and lists them in a process of
its own. Target for a million: less than 30 s and less than 1 GB of memory, on two cores. Prints a table; `--json FILE`
also writes the figures.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CATEGORIES = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
COLUMNS = {"parquet": ["label", "emotion"], "arrow": ["label", "emotion"], "tars": ["cls"]}
MAX_S, MAX_BYTES = 30.0, 1e9


def _names(directory: Path, rows: int, files: int, extension: str) -> Iterator[tuple[Path, range]]:
    """Names of files and the rows in each."""
    each = -(-rows // files)
    for number in range(files):
        path = directory / f"train-{number:05d}-of-{files:05d}.{extension}"
        yield path, range(number * each, min(rows, (number + 1) * each))


def _table(rows: range):
    """Columns as `datasets` has them."""
    import pyarrow as pa

    images = [{"bytes": b"image %09d" % row * 5, "path": f"{row:09d}.jpg"} for row in rows]
    features = {"label": {"_type": "ClassLabel", "names": list(CATEGORIES)}, "image": {"_type": "Image"}}
    table = pa.table(
        {
            "image": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            "image_id": [f"{row:09d}" for row in rows],
            "label": [row % len(CATEGORIES) for row in rows],
            "emotion": [CATEGORIES[row % len(CATEGORIES)] for row in rows],
            "caption": [f"what image {row} of the dataset shows" for row in rows],
        }
    )
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(directory: Path, rows: int, files: int, group: int) -> None:
    """Write parquet files."""
    import pyarrow.parquet as pq

    for path, chosen in _names(directory, rows, files, "parquet"):
        pq.write_table(_table(chosen), path, row_group_size=group)


def write_arrow(directory: Path, rows: int, files: int, group: int) -> None:
    """Write what `datasets` saves."""
    import pyarrow as pa

    paths = []
    for path, chosen in _names(directory, rows, files, "arrow"):
        table = _table(chosen)
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
        paths.append(path.name)
    state = {"_data_files": [{"filename": name} for name in paths], "_split": "train"}
    (directory / "state.json").write_text(json.dumps(state))
    features = {"label": {"_type": "ClassLabel", "names": list(CATEGORIES)}}
    (directory / "dataset_info.json").write_text(json.dumps({"features": features}))


def write_tars(directory: Path, rows: int, files: int, group: int) -> None:
    """Write tars as WebDataset does: every member has a PAX header of its own with the time of day."""
    for path, chosen in _names(directory, rows, files, "tar"):
        with open(path, "wb") as file:
            for row in chosen:
                _add(file, f"{row:09d}.jpg", b"image %09d" % row * 20)
                _add(file, f"{row:09d}.cls", b"%d" % (row % len(CATEGORIES)))
            file.write(bytes(1024))


def _add(file: io.BufferedWriter, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mtime = len(data), 1700000000.25  # type: ignore[assignment]
    file.write(member.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512))


def read(kind: str, directory: Path) -> None:
    """List a dataset; print seconds and the largest memory of this process and of its workers, in bytes."""
    start = time.perf_counter()
    if kind == "parquet":
        from masp.data.sources.containers.parquet import ParquetSource

        source = ParquetSource(directory, sorted(directory.glob("*.parquet")))
    elif kind == "arrow":
        from masp.data.sources.containers.arrow import ArrowSource

        source = ArrowSource(directory)
    else:
        from masp.data.sources.containers.tars import TarSource

        source = TarSource(directory, sorted(directory.glob("*.tar")))
    header = source.header()
    rows = source.read(COLUMNS[kind], header.image_columns[0] if header.image_columns else None, None)
    seconds = time.perf_counter() - start
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    # Not of getrusage, which counts what the process had before it became this program.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    figures = {
        "rows": len(rows),
        "seconds": seconds,
        "cpu_s": sum(each.ru_utime + each.ru_stime for each in usage),
        "bytes": int(status["VmHWM"].split()[0]) << 10,
        "worker_bytes": usage[1].ru_maxrss << 10,
    }
    print(json.dumps(figures))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--group", type=int, default=1000, help="rows of a row group or record batch")
    parser.add_argument("--kinds", nargs="+", choices=list(COLUMNS), default=list(COLUMNS))
    parser.add_argument("--dir", type=Path, default=None, help="parent of the temporary directory for the files")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    parser.add_argument("--read", nargs=2, metavar=("KIND", "DIR"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.read:
        read(chosen.read[0], Path(chosen.read[1]))
        return 0
    found = {}
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'kind':<10}{'rows':>12}{'seconds':>10}{'CPU s':>8}{'MB':>8}{'MB of a worker':>16}")
    for kind in chosen.kinds:
        with tempfile.TemporaryDirectory(dir=chosen.dir) as directory:
            writers = {"parquet": write_parquet, "arrow": write_arrow, "tars": write_tars}
            writers[kind](Path(directory), chosen.rows, chosen.files, chosen.group)
            command = [sys.executable, __file__, "--read", kind, directory]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[kind] = result = json.loads(done.stdout)
        print(f"{kind:<10}{result['rows']:>12,}{result['seconds']:>10.2f}{result['cpu_s']:>8.2f}"
              f"{result['bytes'] / 1e6:>8,.0f}{result['worker_bytes'] / 1e6:>16,.0f}", flush=True)  # fmt: skip
    print(f"target for 1,000,000 rows: less than {MAX_S:.0f} s and {MAX_BYTES / 1e9:.0f} GB")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
