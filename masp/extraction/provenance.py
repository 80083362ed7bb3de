"""The two parts of a cache's fingerprint for a configuration: what the model is, and what the machine is."""

from __future__ import annotations

from masp.cache.fingerprint import Fields, Machine, describe_device, model_fields, this_machine
from masp.cache.reader import Cache, open_cache
from masp.config import Config
from masp.runtime.devices import encoder_dtype, pick_device
from masp.vlm.families import load_config, resolve_folder


def model_part(config: Config) -> Fields:
    """Model part of the fingerprint of this configuration."""
    directory = resolve_folder(config.vlm.path)
    load_config(directory)  # an unsupported family is refused before its weights are digested
    return model_fields(directory, config.vlm, config.cache.dtype)


def machine_part(config: Config) -> Machine:
    """Machine part of the fingerprint of this configuration on this machine.

    Raises:
        InputError: `extract.device` is a GPU and there is none.
    """
    device, extract = pick_device(config.extract.device, "extract.device"), config.extract
    runs_in = encoder_dtype(config.cache.dtype, device)
    return this_machine(describe_device(device), runs_in, extract.batch_tokens, extract.num_threads)


def open_matching_cache(config: Config) -> tuple[Cache, Fields]:
    """Open the cache and refuse one of another VLM or other settings.

    Returns:
        The cache, and the model part of its fingerprint.
    """
    cache = open_cache(config.cache.dir)
    model = model_part(config)
    cache.check_model(model)
    return cache, model
