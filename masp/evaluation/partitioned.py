"""Scoring with a language half that is divided over the ranks, so that one larger than a GPU can be scored.

The layers of the decoder are divided and made whole one at a time, while they run. That takes all ranks, whose slices
differ: one scores more batches, writes longer answers or asks for other aspects. So before each pass through the
decoder the ranks meet. Those that still score run the pass; those that are done only lend their parts of the layers,
until nobody scores any more. Embedding table and vocabulary projection stay whole on every rank.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from masp.config import Config
from masp.distributed.collectives import any_rank, sum_integers
from masp.distributed.liveness import Peers, RankLost
from masp.distributed.partition import FrozenPartition
from masp.distributed.ranks import join, read_ranks
from masp.errors import StoppedEarly, one_line
from masp.evaluation.scorers import load_language
from masp.runtime.devices import pick_device
from masp.runtime.run_directory import RunState, write_status
from masp.runtime.stop import StopFlag
from masp.vlm.language import LanguageHalf

LOG = logging.getLogger(__name__)


def is_partitioned(config: Config) -> bool:
    """Whether this process scores together with others: `evaluate.partition_vlm`, and there are other ranks."""
    return config.evaluate.partition_vlm and read_ranks().size > 1


@contextmanager
def joined(config: Config, directories: Sequence[Path] = ()) -> Iterator[None]:
    """While entered, the ranks are joined and watch one another, if they score together; otherwise nothing happens.

    Args:
        config: Run configuration.
        directories: Directories of the evaluations, whose status says if a rank was lost.
    """
    if not is_partitioned(config):
        yield
        return
    ranks, device = read_ranks(), pick_device(config.engine.device, "engine.device")
    join(ranks, device)

    def note(error: RankLost) -> None:
        for directory in directories:
            write_status(directory, RunState.FAILED, error.exit_code, one_line(str(error)))

    kept = "the others end too" + (
        f"; {directories[0]} keeps what is scored, the same command scores the rest" if directories else ""
    )
    with Peers(ranks, device, kept, note):
        yield


def on_any_rank(config: Config, wanted: bool) -> bool:
    """Whether something is wanted here or, where ranks score together, on any of them."""
    if not is_partitioned(config):
        return wanted
    return any_rank(wanted, pick_device(config.engine.device, "engine.device"))


class Passes:
    """The language half for scoring. If it is divided, all ranks take its passes through the decoder together.

    Args:
        language: Language half; its layers' parameters are cut if there is a partition.
        partition: What divides the layers; None if the language half is whole on this rank.
        device: `cpu` or `cuda`.
    """

    def __init__(self, language: LanguageHalf, partition: FrozenPartition | None, device: str):
        self.language, self.partition, self.device = language, partition, device
        self.is_stopping = False
        """Whether any rank was asked to stop: then all of them do, since none can score without the others."""
        self._stop: StopFlag | None = None
        self._is_inside = False
        if partition:
            decoder = language.decoder
            for layer in decoder.layers:
                layer.forward = functools.partial(self._run_layer, partition, layer, layer.forward)
            decoder.forward = functools.partial(self._run, decoder.forward)

    @contextmanager
    def scoring(self, stop: StopFlag | None = None) -> Iterator[None]:
        """While entered, this rank may score; at the end it takes part until no rank scores any more.

        Args:
            stop: Whether this process was asked to stop; None if nobody can.
        """
        self._stop = stop
        try:
            yield
        except (Exception, GeneratorExit) as error:
            if self._is_inside:  # the others wait for another part of the pass; `Peers` tells them
                raise
            if self.partition and not isinstance(error, StoppedEarly | GeneratorExit):
                LOG.warning("%s; this rank only lends its part of the VLM until the others are done", error)
            self._take_part()
            raise
        self._take_part()

    def _take_part(self) -> None:
        """Lend this rank's parts of the layers to the ranks that still score, until there are none."""
        while self.partition and self._meet(scores=False):
            for layer in self.language.decoder.layers:
                with self.partition.whole(layer.parameters()):
                    pass
            self._is_inside = False

    def _run(self, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        self._meet(scores=True)
        found = forward(*args, **kwargs)
        self._is_inside = False
        return found

    def _meet(self, scores: bool) -> bool:
        """Before each pass: whether any rank still scores."""
        self._is_inside = True
        flags = [int(scores), int(bool(self._stop))]
        num_scoring, num_stopping = sum_integers(flags, self.device)
        self.is_stopping = num_stopping > 0
        self._is_inside = num_scoring > 0
        return self._is_inside

    @staticmethod
    def _run_layer(partition: FrozenPartition, layer: nn.Module, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        with partition.whole(layer.parameters()):
            return forward(*args, **kwargs)


def load_for_scoring(config: Config, device: str) -> Passes:
    """The language half as `vlm` and `evaluate.partition_vlm` say; all ranks that score together call this.

    Args:
        config: Run configuration.
        device: `cpu` or `cuda`.
    """
    partition = FrozenPartition() if is_partitioned(config) else None
    language = load_language(config, device, partition)
    if partition:
        layers = set(language.decoder.layers.parameters())
        partition.keep_whole(parameter for parameter in language.parameters() if parameter not in layers)
    elif config.evaluate.partition_vlm:
        LOG.info("evaluate.partition_vlm = true: there is one rank, which holds the whole language model")
    return Passes(language, partition, device)
