"""Shard after shard through the frozen encoder: images in batches, features to the writer.

Three things overlap: DataLoader workers read and preprocess, this thread encodes, and a thread writes
(`masp.extraction.shard_sink`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from masp.cache.layout import Layout, Shard
from masp.config import Config
from masp.errors import DataError, InputError, MaspError, StoppedEarly
from masp.extraction.changes import BadImages
from masp.extraction.image_stream import ImageDataset, PreparedImage, batches, image_stream
from masp.extraction.progress import Progress
from masp.extraction.shard_sink import Encoded, Writing
from masp.runtime.background import Background
from masp.runtime.devices import encoder_dtype, pick_device, torch_dtype
from masp.runtime.stop import StopFlag
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.vision import VisionHalf, load_vision_half

QUEUED_BATCHES = 4
"""How many encoded batches may wait to be written. They stay on the GPU: 60 MB each at 8192 tokens of 3584 in bf16."""


def encode_shards(
    config: Config, directory: Path, todo: Sequence[Shard], layout: Layout, stop: StopFlag, bad: BadImages
) -> None:
    """Do shards, one after another; every shard that is finished stays, whatever happens to the next.

    Args:
        config: Configuration of the run.
        directory: Directory of the cache.
        todo: Shards to do.
        layout: Layout of the cache.
        stop: Looked at after every batch.
        bad: Counts the images in quarantine.

    Raises:
        InputError: The cache cannot be written, or memory ran out.
        DataError: Too many images cannot be read, or
            features are not finite.
        StoppedEarly: As `stop` asked.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(config.extract.num_threads)
    samples = [sample for shard in todo for sample in shard.samples]
    preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
    images = ImageDataset(samples, preprocessor, config.vlm)
    try:
        device = pick_device(config.extract.device, "extract.device")
        # workers are forked before there are threads
        with image_stream(images, config.extract.num_workers, "extract.num_workers", device) as stream:
            dtype = torch_dtype(encoder_dtype(config.cache.dtype, device))
            vision = load_vision_half(config.vlm.path, dtype, device, config.vlm.attention)
            progress = Progress(len(samples))
            try:
                _run(config, directory, todo, layout, stop, bad, stream, vision, progress)
            finally:
                progress.close()
                progress.save(directory, layout.machine.device, config.cache.dtype)
    except torch.OutOfMemoryError:
        raise InputError(
            f"extract.batch_tokens = {config.extract.batch_tokens}: a batch does not fit into the GPU's memory; give a "
            "smaller value and, since features depend on it, a new cache.dir"
        ) from None
    finally:
        torch.set_num_threads(threads)


def _run(
    config: Config,
    directory: Path,
    todo: Sequence[Shard],
    layout: Layout,
    stop: StopFlag,
    bad: BadImages,
    stream: Iterator[PreparedImage],
    vision: VisionHalf,
    progress: Progress,
) -> None:
    writing = Writing(config, directory, layout, bad, progress)
    background: Background[Encoded] = Background(writing, QUEUED_BATCHES)
    ready = None
    try:
        for shard in todo:
            images = _timed(itertools.islice(stream, len(shard.samples)), progress)
            for batch in batches(images, config.extract.batch_tokens):
                if failed := next((image.failure for image in batch if image.failure), None):
                    raise DataError(
                        f"{failed}; finished shards are kept: run the same command again when it can be read"
                    )
                with progress.stage("encoding"):
                    features = vision.encode([image.inputs for image in batch], [image.layout for image in batch])
                    ready = _mark(vision.device, ready)
                with progress.stage("writing"):
                    background.put(Encoded(shard, batch, features, ready))
                if stop:
                    raise StoppedEarly(
                        f"stopped on request; {directory} keeps its finished shards, the same command resumes"
                    )
        with progress.stage("writing"):
            background.close()
    except MaspError:
        background.stop(drop=False)  # what waits may complete a shard
        raise
    finally:
        background.stop(drop=True)
        writing.abandon()
        writing.say_repairs()


def _mark(device: torch.device, before: torch.cuda.Event | None) -> torch.cuda.Event | None:
    """On a GPU, an event behind the batch that was just launched; waits for the batch before it.

    The GPU then always has one batch to go on with, and the time spent here is the encoder's.
    """
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    if before is not None:
        before.synchronize()
    return event


def _timed(images: Iterator[PreparedImage], progress: Progress) -> Iterator[PreparedImage]:
    """The same images; waiting for them counts as reading."""
    while True:
        with progress.stage("reading"):
            image = next(images, None)
        if image is None:
            return
        yield image
