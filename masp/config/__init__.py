"""The configuration: every setting in `schema.py`, the types of settings in `fields.py`, reading in `loading.py`."""

from masp.config.loading import load_config, load_settings, save_config
from masp.config.schema import (
    AspectModuleConfig,
    CacheConfig,
    CheckpointConfig,
    Config,
    DatasetConfig,
    EngineConfig,
    EvaluateConfig,
    ExtractConfig,
    Stage1Config,
    Stage2Config,
    VlmConfig,
)

__all__ = [
    "AspectModuleConfig",
    "CacheConfig",
    "CheckpointConfig",
    "Config",
    "DatasetConfig",
    "EngineConfig",
    "EvaluateConfig",
    "ExtractConfig",
    "Stage1Config",
    "Stage2Config",
    "VlmConfig",
    "load_config",
    "load_settings",
    "save_config",
]
