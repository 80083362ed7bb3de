"""Measures how fast `masp plan` reads image headers.

    python benchmarks/headers.py [--num-images 100000] [--kind files|tars|parquet] [--processes N …] [--dir DIR]

Writes JPEG files (half of them with EXIF orientation) and PNG files in typical photo sizes, as files, in tars or in
parquet files with 100 images per row group, then reads their headers with each number of processes. Target: 100,000 in
less than a minute. Prints a table; `--json FILE` also writes the figures.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from PIL import Image

from masp.config.schema import DatasetConfig
from masp.data.datasets import list_dataset
from masp.data.image_files.stored import Location
from masp.plan.headers.reading import read_sizes
from masp.runtime.process_pool import default_processes

SIZES = ((1024, 768), (768, 1024), (800, 600), (640, 427), (1280, 853), (500, 500))
TARGET_S_PER_100K = 60.0


def templates() -> list[tuple[str, bytes]]:
    """Contents of some image files, as `(suffix, content)`."""
    found = []
    for number, size in enumerate(SIZES):
        image = Image.new("RGB", size, (40 * number, 90, 160))
        exif = Image.Exif()
        exif[0x0112], exif[0x010F] = 6, "a camera"
        for suffix, options in (("jpg", {"quality": 5}), ("jpg", {"quality": 5, "exif": exif}), ("png", {})):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG" if suffix == "jpg" else "PNG", **options)
            found.append((suffix, buffer.getvalue()))
    return found


def write_images(directory: Path, count: int) -> list[Path]:
    """Write `count` files, a thousand per directory."""
    kinds, paths = templates(), []
    for number in range(count):
        suffix, content = kinds[number % len(kinds)]
        path = directory / f"{number // 1000:04d}" / f"{number:07d}.{suffix}"
        if number % 1000 == 0:
            path.parent.mkdir()
        path.write_bytes(content)
        paths.append(path)
    return paths


def write_tars(directory: Path, count: int) -> list[Location]:
    """Write `count` images into tars of 10,000; returns where they are."""
    kinds = templates()
    for first in range(0, count, 10_000):
        with tarfile.open(directory / f"train-{first // 10_000:05d}.tar", "w") as tar:
            for number in range(first, min(first + 10_000, count)):
                suffix, content = kinds[number % len(kinds)]
                for name, data in ((f"{number:07d}.{suffix}", content), (f"{number:07d}.cls", b"0")):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return _listed(directory)


def write_parquet(directory: Path, count: int) -> list[Location]:
    """Write `count` images into parquet files of 10,000; returns where they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = [content for _, content in templates()]
    for first in range(0, count, 10_000):
        numbers = range(first, min(first + 10_000, count))
        images = pa.array([{"bytes": kinds[number % len(kinds)], "path": None} for number in numbers])
        table = pa.table({"image": images, "label": ["0"] * len(numbers)})
        pq.write_table(table, directory / f"train-{first // 10_000:05d}.parquet", row_group_size=100)
    return _listed(directory)


def _listed(directory: Path) -> list[Location]:
    return list_dataset(DatasetConfig(root=str(directory), label_names={"0": "joy"}), {}).samples.images[:]


WRITE = {"files": write_images, "tars": write_tars, "parquet": write_parquet}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=100_000)
    parser.add_argument("--kind", choices=WRITE, default="files")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, default_processes()])
    parser.add_argument("--dir", type=Path, default=None, help="parent of the temporary directory for the files")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.dir) as directory:
        start = time.perf_counter()
        paths = WRITE[arguments.kind](Path(directory), arguments.num_images)
        seconds, load = time.perf_counter() - start, os.getloadavg()[0]
        print(f"{len(paths):,} images written and listed in {seconds:.1f} s; {os.cpu_count()} cores, load {load:.1f}")
        print(f"{'processes':>9}{'seconds':>10}{'headers/s':>12}")
        for processes in arguments.processes:
            start = time.perf_counter()
            _, broken = read_sizes(paths, 1024, processes)
            seconds = time.perf_counter() - start
            if broken:
                raise RuntimeError(f"{broken[0]} cannot be read")
            rows.append({"processes": processes, "seconds": seconds, "headers_per_s": len(paths) / seconds})
            print(f"{processes:>9}{seconds:>10.2f}{len(paths) / seconds:>12,.0f}")
    best = min(row["seconds"] for row in rows) * 100_000 / len(paths)
    print(f"100,000 headers take {best:.1f} s; target: less than {TARGET_S_PER_100K:.0f} s")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"num_images": len(paths), "kind": arguments.kind, "rows": rows}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
