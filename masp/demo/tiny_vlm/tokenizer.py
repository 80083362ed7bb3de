"""The tiny VLM's tokenizer: a small byte-level BPE with Qwen's special tokens and Qwen2-VL's turn format."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from masp.data.questions import Questions
from masp.demo.world.factors import AFFINITY, CAPTION_LEVELS, EMOTIONS, LEVELS, SENSES, words

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SYSTEM = "You are a helpful assistant."
NONE = "none"
"""The answer about an aspect that an image lacks."""

# Our own version of the format: every turn is between <|im_start|> and <|im_end|>, there is a default system turn, and
# each image is one placeholder between the two vision tokens.
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' -%}<|im_start|>system\n" + SYSTEM + "<|im_end|>\n{% endif -%}"
    "{%- for turn in messages -%}"
    "<|im_start|>{{ turn.role }}\n"
    "{%- if turn.content is string -%}{{ '\n' + turn.content }}"
    "{%- else -%}{{ '\n' }}{%- for part in turn.content -%}"
    "{%- if part.type == 'text' -%}{{ part.text }}"
    "{%- elif part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}{%- endif -%}"
)


def vocabulary_texts(questions: Questions) -> list[str]:
    """Everything that the tiny VLM is trained to read or generate; the tokenizer's merges are learned from it."""
    labels = [words(label) for aspect in AFFINITY.values() for label in aspect]
    levels = [word for words_ in CAPTION_LEVELS.values() for word in words_]
    answers = sorted({*labels, *levels, *SENSES, *EMOTIONS, *LEVELS, NONE})
    asked = [t for templates in questions.aspects.values() for t in templates]
    asked += questions.target_all(EMOTIONS)
    parts = sorted({part for text in answers for part in text.split()})
    return [SYSTEM, "system", "user", "assistant", *asked, *answers, *parts, *(f"a, {part}" for part in parts)]


def build_tokenizer(questions: Questions, vocab_size: int):
    """Train the tokenizer.

    Args:
        questions: Questions that it must encode.
        vocab_size: Number of entries, including special tokens.

    Returns:
        A fast tokenizer of transformers with the chat template set.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        special_tokens=[],
    )
    bpe.train_from_iterator(vocabulary_texts(questions), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL[1:]),
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(tokenizer, directory: Path) -> None:
    """Write the files of the tokenizer, including its chat template."""
    tokenizer.save_pretrained(str(directory))
