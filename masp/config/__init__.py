"""The configuration of a run: its settings, and how they are loaded and checked.

schema     every setting, with its type, default, valid range and documentation
fields     types that several settings share; what a setting may be, in words
loading    defaults, then YAML files, then `key=value` overrides
yaml_text  YAML without the surprises of YAML 1.1
packaged   configuration files that came with MASP
"""

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
