"""What MASP must know of a VLM to run its halves apart, and which VLMs cannot be run so.

A VLM is accepted by the structure of its class in transformers and of its configuration, not by a list. What the
classes do not tell is in a few sets of names below, each with the reason; `masp doctor` verifies the result by
measurement.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForImageTextToText

from masp.errors import InputError
from masp.files.regular import is_directory, is_file
from masp.files.text import shown
from masp.vlm.files.directory import check_directory
from masp.vlm.files.errors import plain_vlm_errors

QWEN2 = frozenset({"qwen2_vl", "qwen2_5_vl"})
"""Families of the published work: their processor adds nothing to its image processor, and their places in the encoder
and their cost are computed by formulas."""
JOINED = frozenset(
    "aya_vision cohere2_vision deepseek_vl deepseek_vl_hybrid ernie4_5_vl_moe fast_vlm gemma3 gemma3n gemma4 glm46v "
    "glm4v glm4v_moe granite4_vision idefics3 internvl janus kimi_k25 lfm2_vl llama4 llava llava_next llava_onevision "
    "minicpmv4_6 mistral3 ovis2 paligemma qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_vl qwen3_vl_moe qwen4_exp "
    "smolvlm video_llama_3".split()
)
"""Images of these may be encoded together (measured: equal to each alone). Others are encoded one by one, because some
count over the batch (molmo2)."""
LAST_AXIS = {"minicpmv4_6": ("pixel_values",)}
"""Inputs that images are joined in along their last axis."""
WHOLE = frozenset({"paligemma"})
"""Every token of the prompt sees the whole prompt, so nothing of it can run before the rest is known; an answer's
tokens have type 1."""
ADDED = frozenset({"molmo2"})
"""Features are added to the embedding of the placeholder."""
ZEROED = frozenset({"granite4_vision"})
"""The placeholder's embedding is 0: all features enter inside, the first map at the first layer."""
PROJECTED = frozenset({"llama4"})
"""`get_image_features` stops before the projector."""
RASTER = frozenset({"gemma3", "llava", "paligemma"})
"""Each image becomes one square, of which features are the rows, one after another."""
TABLES = {"gemma3n": ("embed_vision", "embed_audio")}
"""Modules of the vision half that hold word embeddings too: of ids beyond the language model's table."""
CONSTANTS = {"ovis2": "visual_embeddings_table"}
"""Module of the vision half whose last rows are the embeddings of the `visual_indicator_token_ids`."""
SYSTEM_TURN = QWEN2
"""Their prompts open with a system turn of MASP's own, as the published ones do; others with what their template
writes."""
SCHEME = "hf://"
"""Before a name of the hub that is not to be taken for a directory."""
TYPE_NAMES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
"""What processors call the types of tokens."""


def resolve_directory(path: str, weights: bool = True) -> Path:
    """The local directory of a VLM.

    Args:
        path: A directory, or a hub name such as `Qwen/Qwen2-VL-7B-Instruct`, of a certain state with `@revision`, never
            a directory with `hf://` before it (downloaded once by huggingface_hub).
        weights: Download those of a hub name too; without them it is a few megabytes.

    Raises:
        InputError: Neither a directory nor a hub name that can be downloaded.
    """
    directory = Path(path).expanduser()
    if not path.startswith(SCHEME) and is_directory(directory, key="vlm.path"):
        if not is_file(directory / "config.json", key="vlm.path"):
            raise InputError(f"vlm.path: {directory} has no config.json; give the directory of a VLM or its hub name")
        return directory
    name, _, revision = path.removeprefix(SCHEME).partition("@")
    # a revision becomes a path in the cache of huggingface_hub
    if name.startswith((".", "/", "~")) or name.count("/") != 1 or ".." in revision.split("/"):
        raise InputError(f"vlm.path: {path!r} is not a directory; give that of a VLM, or a hub name (owner/name)")
    with plain_vlm_errors(f"{path!r} is not a local directory and cannot be downloaded from the hub"):
        # no code, no pickles
        patterns = ["*.json", "*.txt", "*.model", "*.jinja", *(["*.safetensors"] if weights else [])]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))


def load_config(directory: Path) -> Any:
    """Read a VLM's configuration and refuse one that MASP cannot split.

    Args:
        directory: Directory of the VLM.

    Returns:
        The transformers configuration of the whole VLM; transformers does not type its fields.

    Raises:
        InputError: The configuration cannot be read, or no VLM of this type can be split; says why.
    """
    model_type = check_directory(directory).get("model_type")
    what = f"vlm.path: {directory}/config.json: model_type = {shown(model_type)}"
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        raise InputError(f"{what}: not a model of transformers {transformers.__version__}")
    with plain_vlm_errors(f"{directory}/config.json cannot be read as a VLM"):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    if why := refusal(config):
        raise InputError(f"{what}: {why}")
    return config


def model_class(config: Any) -> Any:
    """The class of transformers for a whole VLM with this configuration."""
    return AutoModelForImageTextToText._model_mapping[type(config)]


def inner_class(base: Any) -> Any:
    """The class inside `model_class` that takes images in; the same class where it does so itself."""
    # the class of the attribute `model` is known to instances only, but modules name it by one rule
    for suffix in ("ForConditionalGeneration", "ForImageTextToText", "ForCausalLM"):
        if base.__name__.endswith(suffix):
            found = getattr(inspect.getmodule(base), base.__name__.removesuffix(suffix) + "Model", None)
            if found is not None and hasattr(found, "get_image_features"):
                return found
    return base


def refusal(config: Any) -> str | None:
    """Why a VLM with this configuration cannot be run in halves; None if nothing is known against it."""
    try:
        base = model_class(config)
    except KeyError:
        return "not an image-text-to-text model: it does not answer a question about an image"
    text = config.get_text_config()
    if config.is_encoder_decoder or getattr(text, "is_encoder_decoder", False):
        return "an encoder-decoder: MASP needs a decoder that reads image and question in one sequence"
    if getattr(text, "cross_attention_layers", None):
        return "its image features enter through cross-attention, not in place of input tokens"
    inner = inner_class(base)
    if not hasattr(inner, "get_image_features"):
        return f"its class {base.__name__} has no get_image_features, so image features cannot be computed separately"
    asked = [name for name in inspect.signature(inner.get_image_features).parameters if "input_ids" in name]
    if asked:
        return f"its image features depend on the question ({asked[0]}), so they cannot be computed once per image"
    if not isinstance(getattr(config, "image_token_id", None), int):
        return "config.json has no image_token_id, the placeholder that image features replace"
    return None


@dataclass(frozen=True)
class Family:
    """What running the halves of a VLM apart depends on."""

    model_type: str
    hidden_size: int
    """D of the language model."""
    vocab_size: int
    image_token_id: int
    """The placeholder of one feature."""
    pad_token_id: int
    """What stands in columns without a token, and wherever an id is needed where no word is."""
    merge_size: int | None
    """Patches per side that are merged into one token; None where the configuration has no such number."""
    layer_types: frozenset[str]
    """Kinds of the decoder's layers."""
    window: int | None
    """Tokens that a layer of type `sliding_attention` sees."""
    mask_types: tuple[str, ...]
    """Types of tokens (`TYPE_NAMES`) on which attention masks depend."""
    runs_whole: bool
    """Whether nothing of a prompt can run before all of it is known."""
    max_positions: int | None
    """Positions that the language model was made for; None where its configuration does not say."""

    @property
    def is_plain(self) -> bool:
        """Whether each layer is attention over all earlier tokens, wherever they stand in the batch's columns."""
        return self.layer_types == {"full_attention"} and not self.mask_types

    @property
    def pads_left(self) -> bool:
        """Whether padding between a row's tokens changes what they see: windows and states count it."""
        return not self.is_plain

    @property
    def has_tree(self) -> bool:
        """Whether candidates may run as one block with a mask of its own: states cannot branch, chunks not be moved."""
        return self.layer_types <= {"full_attention", "sliding_attention"}


def describe(config: Any) -> Family:
    """The facts of a VLM.

    Args:
        config: Its configuration, of `load_config`.
    """
    text = config.get_text_config()
    window, kinds = getattr(text, "sliding_window", None), getattr(text, "layer_types", None)
    if kinds is None:
        kinds = (
            ["sliding_attention"] if window else
            ["chunked_attention"] if getattr(text, "attention_chunk_size", None) else
            ["full_attention"]
        )  # fmt: skip
    masks = getattr(model_class(config), "create_masks_for_generate", None)
    names = inspect.signature(masks).parameters if masks else {}
    vision = getattr(config, "vision_config", None)
    return Family(
        model_type=config.model_type,
        hidden_size=text.hidden_size,
        vocab_size=text.vocab_size,
        image_token_id=config.image_token_id,
        pad_token_id=getattr(text, "pad_token_id", None) or 0,
        merge_size=getattr(vision, "spatial_merge_size", None),
        layer_types=frozenset(kinds),
        window=window if "sliding_attention" in kinds else None,
        mask_types=tuple(name for name in TYPE_NAMES if name in names),
        runs_whole=config.model_type in WHOLE,
        max_positions=getattr(text, "max_position_embeddings", None),
    )


def deep_layers(config: Any) -> list[int]:
    """Layers of the decoder before which maps are added, where a family names them; the first map is the features."""
    pairs = getattr(config, "deepstack_layer_map", None) or ()
    return [layer for _, layer in pairs] + list(getattr(config, "spatial_target_layers", None) or ())


def num_deep_maps(config: Any) -> int:
    """Number K of the DeepStack maps that a VLM's encoder returns beside the features.

    Args:
        config: Its configuration, of `load_config`.
    """
    if config.model_type in ZEROED:  # the first map takes the place of the features
        return len(deep_layers(config)) - 1
    return len(getattr(getattr(config, "vision_config", None), "deepstack_visual_indexes", None) or ())


@functools.lru_cache(maxsize=8)
def _family(directory: Path) -> Family:
    return describe(load_config(directory))


def family_of(path: str) -> Family:
    """The facts of the VLM at `path` (directory or hub name)."""
    return _family(resolve_directory(path))
