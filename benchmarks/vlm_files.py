"""What is in the directory of a VLM beside its weights: configuration, processor, chat template, a small tokenizer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masp.errors import InputError
from masp.files.text import first_line

_TURNS = (
    "%(start)s{%% for m in messages %%}%(open)s{{ m['role'] | replace('assistant', '%(answers)s') }}\n"
    "{%% if m['content'] is string %%}{{ m['content'] }}{%% else %%}{%% for part in m['content'] %%}"
    "{%% if part['type'] == 'image' %%}%(image)s{%% else %%}{{ part['text'] }}{%% endif %%}{%% endfor %%}{%% endif %%}"
    "%(close)s\n{%% endfor %%}{%% if add_generation_prompt %%}%(open)s%(answers)s\n{%% endif %%}"
)
"""Chat template of turns between two special tokens."""
_WORDS = "You are a helpful assistant. Which emotion does this picture evoke? system user sadness anger awe fear"


@dataclass(frozen=True)
class Files:
    """What a family needs beside its weights."""

    ids: Mapping[str, str]
    """Entry of config.json -> token."""
    named: Mapping[str, str]
    """Attribute of the tokenizer that the processor reads -> token."""
    image_processor: Callable[[Any], Any]
    """Makes the image processor that fits a configuration."""
    image: str
    """What the template writes for an image."""
    open: str = "<|im_start|>"
    close: str = "<|im_end|>"
    pad: str = "<|endoftext|>"
    begin: str | None = None
    """The token that begins every text."""
    answers: str = "assistant"
    """Role of the answer's turn."""

    @property
    def template(self) -> str:
        """The chat template."""
        parts = {"start": self.begin or "", "open": self.open, "close": self.close, "image": self.image}
        return _TURNS % (parts | {"answers": self.answers})

    @property
    def special(self) -> list[str]:
        """All special tokens."""
        found = [self.pad, self.open, self.close, self.begin, *self.ids.values(), *self.named.values()]
        return [token for token in dict.fromkeys(found) if token is not None]


def _qwen_images(patch: int, shortest: int, longest: int, mean: list[float], std: list[float]) -> Any:
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(
        patch_size=patch, size={"shortest_edge": shortest, "longest_edge": longest}, image_mean=mean, image_std=std
    )


def _qwen2_images(_: Any) -> Any:
    return _qwen_images(14, 3136, 12_845_056, [0.48, 0.45, 0.4], [0.27, 0.26, 0.28])


def _qwen3_images(_: Any) -> Any:
    return _qwen_images(16, 65_536, 16_777_216, [0.5] * 3, [0.5] * 3)


def _tiles(config: Any) -> Any:
    from transformers import GotOcr2ImageProcessorPil

    height, width = config.vision_config.image_size
    return GotOcr2ImageProcessorPil(
        size={"height": height, "width": width}, crop_to_patches=True, min_patches=1, max_patches=12
    )


def _one_tile(config: Any) -> Any:
    from transformers import Gemma3ImageProcessorPil

    side = config.vision_config.image_size
    return Gemma3ImageProcessorPil(size={"height": side, "width": side}, do_pan_and_scan=None)


_QWEN_IDS = {
    "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
}  # fmt: skip
_QWEN_NAMED = {name.removesuffix("_id"): token for name, token in _QWEN_IDS.items()}
_QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN2 = Files(_QWEN_IDS, _QWEN_NAMED, _qwen2_images, _QWEN_IMAGE)
FILES = {
    "qwen2_vl": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": Files(_QWEN_IDS, _QWEN_NAMED, _qwen3_images, _QWEN_IMAGE),
    "internvl": Files(
        {"image_token_id": "<IMG_CONTEXT>"},
        {
            "context_image_token": "<IMG_CONTEXT>", "start_image_token": "<img>", "end_image_token": "</img>",
            "video_token": "<video>",
        },
        _tiles,
        "<IMG_CONTEXT>\n",
    ),
    "gemma3": Files(
        {
            "image_token_index": "<image_soft_token>", "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"},
        _one_tile,
        "<start_of_image>",
        "<start_of_turn>", "<end_of_turn>", "<pad>", "<bos>", "model",
    ),
}  # fmt: skip
"""By the `model_type` of config.json."""


def write_files(directory: Path, config: Any, tokenizer: Path | None) -> None:
    """Write all but the weights; ids of tokens in `config` become those of the tokenizer.

    Args:
        directory: Directory to create.
        config: Configuration of transformers.
        tokenizer: Directory with the files of the family's tokenizer; None for a small one of bytes and a few words,
            with which texts have about twice as many tokens.

    Raises:
        InputError: Not a tokenizer of the family.
    """
    files = FILES[config.model_type]
    words = _small_tokenizer(directory, files) if tokenizer is None else _copied_tokenizer(directory, tokenizer)
    numbers = words.get_vocab()
    for name, token in files.ids.items():
        if token not in numbers:
            raise InputError(
                f"--tokenizer {tokenizer}: has no token {token}; give one of a {config.model_type!r} model"
            )
        setattr(config, name, numbers[token])
    text = config.get_text_config()
    text.vocab_size = max(text.vocab_size, len(words))
    text.pad_token_id, text.eos_token_id = words.pad_token_id, words.eos_token_id
    text.bos_token_id = words.pad_token_id if words.bos_token_id is None else words.bos_token_id
    config.save_pretrained(directory)
    files.image_processor(config).save_pretrained(directory)
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    settings = {"processor_class": PROCESSOR_MAPPING_NAMES[config.model_type]}
    for name in ("image_seq_length", "mm_tokens_per_image"):  # configurations and processors name it differently
        if hasattr(config, name):
            settings["image_seq_length"] = getattr(config, name)
    (directory / "processor_config.json").write_text(json.dumps(settings))


def _small_tokenizer(directory: Path, files: Files) -> Any:
    """A byte-level tokenizer with the family's special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = [AddedToken(token, special=True, normalized=False) for token in files.special]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=360, initial_alphabet=alphabet, show_progress=False, special_tokens=special
    )
    tokenizer.train_from_iterator([_WORDS] * 4, trainer)
    words = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=files.close, pad_token=files.pad, bos_token=files.begin,
        extra_special_tokens=dict(files.named), chat_template=files.template,
    )  # fmt: skip
    words.save_pretrained(directory)
    return words


def _copied_tokenizer(directory: Path, tokenizer: Path) -> Any:
    from transformers import AutoTokenizer

    if not tokenizer.is_dir():
        raise InputError(f"--tokenizer {tokenizer}: no such directory")
    shutil.copytree(tokenizer, directory, copy_function=shutil.copyfile)
    directory.chmod(0o755)  # the source may be read-only
    try:
        words = AutoTokenizer.from_pretrained(directory)
    except (OSError, ValueError) as error:
        raise InputError(f"--tokenizer {tokenizer}: no tokenizer: {first_line(error)}") from None
    template = directory / "chat_template.json"
    if not words.chat_template and template.is_file():
        (directory / "chat_template.jinja").write_text(json.loads(template.read_text())["chat_template"])
    return words
