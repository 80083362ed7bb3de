"""The configuration of a run: its settings, and how they are loaded and checked.

schema     every setting, with its type, default, valid range and documentation
fields     types that several settings share; what a setting may be, in words
loading    the configuration of a run
reading    settings of any kind: defaults, then YAML files, then `key=value` overrides
aspects    the file that defines the aspects
yaml_text  YAML without the surprises of YAML 1.1
packaged   configuration files that came with MASP
"""

from masp.config.aspects import Aspect, Aspects, load_aspects
from masp.config.loading import load_config
from masp.config.reading import load_settings, save_config
from masp.config.schema import (
    AnnotateConfig,
    AspectModuleConfig,
    CacheConfig,
    CheckpointConfig,
    Config,
    DatasetConfig,
    EngineConfig,
    EvaluateConfig,
    ExtractConfig,
    LoggingConfig,
    Stage1Config,
    Stage2Config,
    TargetConfig,
    VlmConfig,
)

__all__ = [
    "AnnotateConfig",
    "Aspect",
    "AspectModuleConfig",
    "Aspects",
    "CacheConfig",
    "CheckpointConfig",
    "Config",
    "DatasetConfig",
    "EngineConfig",
    "EvaluateConfig",
    "ExtractConfig",
    "LoggingConfig",
    "Stage1Config",
    "Stage2Config",
    "TargetConfig",
    "VlmConfig",
    "load_aspects",
    "load_config",
    "load_settings",
    "save_config",
]
