"""Load one half of a VLM with transformers, leaving the other half's weights on disk."""

from __future__ import annotations

import copy
import gc
import os
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any, Literal, Protocol

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers import AttentionInterface, PreTrainedModel
from transformers.utils import logging

from masp.config.schema import Quantization
from masp.errors import InputError
from masp.vlm.attention import attend
from masp.vlm.families import CONSTANTS, TABLES, load_config, model_class, resolve_directory
from masp.vlm.files.errors import plain_vlm_errors
from masp.vlm.files.weights import check_weights, first_of, unread
from masp.vlm.quantized.layers import make_quantized
from masp.vlm.quantized.rounding import require_library

ENVIRONMENT = "HF_DEACTIVATE_ASYNC_LOAD"
"""Of transformers: with it, threads do not read ahead."""

LARGE = 2**28
"""Bytes of halves in memory from which on it is worth a quarter of a second to see whether they are still used."""

_loaded: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
"""Bytes of each half that is in memory, on all ranks together if they divide it: so all of them decide alike."""


AttentionInterface.register("sdpa", attend)


class AttentionError(InputError):
    """The VLM cannot be run with this implementation of attention."""


class Partition(Protocol):
    """Divides parameters over ranks; all ranks call it for the same parameters in the same order."""

    def cut(self, parameter: nn.Parameter) -> None:
        """Keep only this rank's part of a parameter that is whole."""

    def whole(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager:
        """Make parameters whole while entered, those that were cut."""


def part_class(
    base: type,
    part: Literal["vision", "language"],
    partition: Partition | None = None,
    quantization: Quantization = "none",
) -> Any:
    """Derive from a transformers VLM class one that holds only a half.

    The other half is built without storage (transformers constructs on the meta device) and dropped before loading,
    so its keys in the checkpoint are merely unexpected: safetensors never reads them. `other_half` holds their names.

    Args:
        base: Class of the VLM.
        part: The half.
        partition: What divides the half's parameters while they are loaded.
        quantization: How the layers of the language half keep their weights.
    """

    class Part(base):
        if part == "vision":
            _tied_weights_keys: dict[str, str] = {}
        other_half: frozenset[str] = frozenset()

        def __init__(self, config):
            super().__init__(config)
            whole = {*self.state_dict(), *self.all_tied_weights_keys}
            _drop(self, super().get_output_embeddings(), part)
            if part == "language":
                make_quantized(decoder_of(self), quantization)
            self.other_half = frozenset(whole - {*self.state_dict()})

        def get_input_embeddings(self):
            return None if part == "vision" else super().get_input_embeddings()

        def get_output_embeddings(self):
            return None if part == "vision" else super().get_output_embeddings()

        def tie_weights(self, *args, **kwargs):
            with ExitStack() as stack:
                if partition and self.all_tied_weights_keys:
                    # transformers ties two tables of a checkpoint only where they are equal: it has to see both
                    tables = [self.get_input_embeddings().weight, self.get_output_embeddings().weight]
                    if not any(table.is_meta for table in tables):
                        stack.enter_context(partition.whole(tables))
                return super().tie_weights(*args, **kwargs)

    # transformers looks weight-name conversions up by class name, and only for classes of its own modules
    Part.__name__ = Part.__qualname__ = base.__name__
    Part.__module__ = base.__module__
    return Part


def decoder_of(model: Any) -> Any:
    """The decoder stack inside a VLM of transformers."""
    while True:
        inside = model.get_decoder()
        if inside is model:
            inside = getattr(model, "model", model)
        if inside is model:
            return model
        model = inside


def _drop(model: Any, head: Any, part: Literal["vision", "language"]) -> None:
    """Delete the half of a VLM that is not wanted, by the place of its decoder: names differ between families."""
    decoder, inner = decoder_of(model), model.base_model
    kept = {*TABLES.get(model.config.model_type, ()), CONSTANTS.get(model.config.model_type)}
    for name, child in list(inner.named_children()):
        has_language = any(module is decoder or module is head for module in child.modules())
        if has_language == (part == "vision") and not (part == "language" and name in kept):
            delattr(inner, name)
    if part == "vision":
        for name, module in list(model.named_modules()):
            if module is head:
                owner, _, own = name.rpartition(".")
                delattr(model.get_submodule(owner), own)


@contextmanager
def quiet_transformers():
    """Silence transformers' own loading report: half of the checkpoint is unexpected on purpose, and we check it."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def one_by_one():
    """While entered, transformers reads one parameter after another: its threads do not read ahead."""
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before


class _Cutting:
    """While entered, every parameter that transformers has read is cut before the next one is read."""

    def __init__(self, partition: Partition):
        self.partition = partition
        self.cut: set[nn.Parameter] = set()
        self.error: Exception | None = None

    def __enter__(self) -> _Cutting:
        self._handle = register_module_parameter_registration_hook(self._look_at)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _look_at(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        # transformers marks what it has read, and gives it to its module; a tied one is given twice
        if parameter is None or not getattr(parameter, "_is_hf_initialized", False):
            return
        if parameter.is_meta or parameter in self.cut:
            return
        self.cut.add(parameter)
        try:
            parameter.requires_grad_(False)
            self.partition.cut(parameter)
        except Exception as error:
            self.error = error
            raise

    def check(self, model: nn.Module) -> None:
        whole = [name for name, parameter in model.named_parameters() if parameter not in self.cut]
        if whole:
            raise RuntimeError(f"{len(whole)} parameters were loaded and not divided, first {whole[0]}")


def _has_sdpa(base: Any, config: Any) -> bool:
    """Whether every model inside a VLM, as transformers has them, can be run with `sdpa`."""
    with torch.device("meta"), quiet_transformers():
        model = base._from_config(copy.deepcopy(config), attn_implementation="eager")
    return all(module._supports_sdpa for module in model.modules() if isinstance(module, PreTrainedModel))


def load_part(
    path: str,
    part: Literal["vision", "language"],
    dtype: torch.dtype,
    device: str,
    attention: str,
    partition: Partition | None = None,
    quantization: Quantization = "none",
) -> torch.nn.Module:
    """Load a half of the VLM at `path` (directory or hub name), frozen, in eval mode.

    Before that, large halves that nothing uses any more leave memory.

    Args:
        path: Directory of the VLM, or its hub name.
        part: The half.
        dtype: Data type of the weights.
        device: `cpu` or `cuda`.
        attention: Implementation of attention, `sdpa` or `eager`.
        partition: Divides the parameters over ranks, each as soon as it is read: a rank never holds the half. All
            ranks call this then.
        quantization: How the layers of the language half keep their weights; each is quantized as soon as it is read.

    Raises:
        InputError: No such VLM, an unsupported family, or weights that do not fit the configuration.
    """
    require_library(quantization)
    directory = resolve_directory(path)
    config = load_config(directory)
    check_weights(directory)
    base = model_class(config)
    if sum(list(_loaded.values())) >= LARGE:
        gc.collect()  # an engine of DeepSpeed that has trained holds itself, and with it the half
    cutting = _Cutting(partition) if partition else None
    try:
        with (
            plain_vlm_errors(f"the weights in {directory} cannot be loaded"),
            quiet_transformers(),
            one_by_one() if partition or quantization != "none" else nullcontext(),
            cutting or nullcontext(),
        ):
            model, info = part_class(base, part, partition, quantization).from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                attn_implementation=attention,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
                use_safetensors=True,
                trust_remote_code=False,
            )
    except InputError:
        if attention == "sdpa" and not _has_sdpa(base, config):
            raise AttentionError(
                f"vlm.attention: {attention!r}: not supported by {config.model_type!r} models; must be eager"
            ) from None
        if cutting and cutting.error:  # not the weights' fault: most often another rank is gone
            raise cutting.error from None
        raise
    names = sorted([*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])])
    if names:
        raise InputError(
            f"vlm.path: the weights in {directory} do not fit its config.json: {len(names)} tensors are missing or of "
            f"another shape: {first_of(names)}"
        )
    if extra := unread(info["unexpected_keys"], model.other_half):
        raise InputError(
            f"vlm.path: the weights in {directory} hold {len(extra)} tensors that {config.model_type!r} models do not "
            f"have: {first_of(extra)}; leaving them out would change the VLM"
        )
    if cutting:
        cutting.check(model)
    tensors = chain(model.parameters(), model.buffers())
    _loaded[model] = sum(getattr(tensor, "ds_numel", tensor.numel()) * tensor.element_size() for tensor in tensors)
    return model.to(device).eval().requires_grad_(False)
