"""Every setting of MASP: its type, its default, its valid range and what it does.

The string under a field is its documentation; `tools/config_reference.py` turns it into the table of
`docs/configuration.md`. Ranges stand beside the field, so that the check, the error and the table cannot disagree.
"""

from dataclasses import dataclass, field
from typing import Any

from masp.data.categories import ASPECTS, DATASET_NAMES

# OmegaConf's mark for a value that must be given. A literal, so that reading this file imports nothing heavy.
REQUIRED = "???"


def rule(
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    choices: tuple[str, ...] | None = None,
    unique: bool = False,
    is_path: bool = False,
    example: str | None = None,
) -> dict[str, Any]:
    """What a setting's value must keep to, as the metadata of its dataclass field.

    Args:
        at_least, above, at_most: bounds of a number.
        choices: the valid texts (of the value, or of each entry of a list).
        unique: a list must not name anything twice.
        is_path: a leading `~` stands for the home directory.
        example: what a list may look like, for errors and documentation.

    Returns:
        The arguments by their names.
    """
    return {
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "choices": choices,
        "unique": unique,
        "is_path": is_path,
        "example": example,
    }


@dataclass
class VlmConfig:
    """The frozen vision-language model."""

    path: str = field(default=REQUIRED, metadata=rule(is_path=True))
    """A local folder, or a model name on the Hugging Face hub."""

    attention: str = field(default="sdpa", metadata=rule(choices=("sdpa", "eager")))
    """The attention kernel. Features made with one are not read as if made with the other."""

    min_pixels: int | None = field(default=None, metadata=rule(at_least=1))
    """The smallest area that the image processor gives an image; null keeps the model's own limit."""

    max_pixels: int | None = field(default=None, metadata=rule(at_least=1))
    """The largest area that the image processor leaves an image; null keeps the model's own limit. Features grow with
    it: the first lever when the cache is too large."""

    max_side: int | None = field(default=1024, metadata=rule(at_least=1))
    """The longer side of an image is scaled down to this many pixels before anything else; null leaves it."""


@dataclass
class DatasetConfig:
    """The labelled pictures."""

    name: str = field(default="folder", metadata=rule(choices=DATASET_NAMES))
    """Which dataset it is: names the files it leads to, and its categories. `folder` is any other."""

    root: str = field(default=REQUIRED, metadata=rule(is_path=True))
    """The folder that holds `train/`, `val/`, `test/`, or `train.json`, `val.json`, `test.json`."""

    categories: list[str] | None = field(default=None, metadata=rule(unique=True, example="[joy, fear]"))
    """The categories in the order in which questions list them; null takes the named dataset's own, for `folder` the
    names found on disk."""


@dataclass
class CacheConfig:
    """The feature cache."""

    dir: str = field(default=REQUIRED, metadata=rule(is_path=True))
    """The folder of the cache. One cache serves one VLM and one dataset."""

    dtype: str = field(default="bf16", metadata=rule(choices=("bf16", "fp16", "fp32", "int8", "fp8")))
    """The number format of the stored features. `int8` and `fp8` (e4m3) halve the cache, with a scale per token; the
    encoder then runs in bf16 on a GPU and in fp32 on a CPU, else in this format. `masp cache precision` measures what
    each costs."""

    aspect_tokens: bool = field(default=False, metadata=rule())
    """Read the aspect tokens that `masp cache aspects` computed, in stage 2 and evaluation, instead of running the
    aspect modules. They are found by the digests of cache and modules; without a file of both, it is an error."""

    num_shards: int = field(default=64, metadata=rule(at_least=1, at_most=100_000))
    """Into how many tar shards the images of all splits are cut, none of which holds two splits. Part of what the cache
    is: another number is another cache."""


@dataclass
class ExtractConfig:
    """The job that fills the cache."""

    num_workers: int = field(default=2, metadata=rule(at_least=0, at_most=512))
    """Processes that read and decode images; 0 reads in the main process."""

    batch_tokens: int = field(default=8192, metadata=rule(at_least=1))
    """Vision tokens that one batch of the encoder may hold; a single larger image is a batch of its own."""

    num_threads: int = field(default=2, metadata=rule(at_least=1, at_most=1024))
    """CPU threads of the encoder. Recorded in the cache, since the last bits of its output depend on it."""

    max_bad_fraction: float = field(default=0.01, metadata=rule(at_least=0.0, at_most=1.0))
    """The largest share of unreadable images with which the job still succeeds."""

    device: str = field(default="auto", metadata=rule(choices=("auto", "cpu", "cuda")))
    """Where the encoder runs; `auto` takes a GPU where there is one."""


@dataclass
class AspectModuleConfig:
    """The small module of each aspect that stage 1 trains."""

    num_queries: int = field(default=5, metadata=rule(at_least=1, at_most=1024))
    """Learned query vectors, and so aspect tokens, per aspect."""

    init_scale: float = field(default=1.0, metadata=rule(above=0.0))
    """Standard deviation of the queries at the start."""


@dataclass
class StageConfig:
    """What both training stages have."""

    layout: str = field(default="after_image", metadata=rule(choices=("after_image", "released")))
    """What stands where. `after_image`: the soft prompt after the image, positions by the VLM's own rule, the answer
    and its end token supervised. `released`: as the released checkpoints were trained, the soft prompt before the image
    and again after it, positions 0, 1, 2 …, the newline before the answer and the answer supervised."""

    num_epochs: int = field(default=1, metadata=rule(at_least=1, at_most=100_000))
    """How often every image of the training split is seen."""

    learning_rate: float = field(default=1e-5, metadata=rule(at_least=0.0, at_most=10.0))
    """The highest learning rate, at the end of the warmup; from there it falls linearly to zero."""

    warmup_ratio: float = field(default=0.03, metadata=rule(at_least=0.0, at_most=1.0))
    """The share of the steps over which the learning rate rises from zero."""

    weight_decay: float = field(default=0.01, metadata=rule(at_least=0.0, at_most=1.0))
    """Weight decay of AdamW."""

    max_grad_norm: float | None = field(default=1.0, metadata=rule(above=0.0))
    """Gradients are scaled down to this norm; null never scales them."""

    global_batch_size: int = field(default=8, metadata=rule(at_least=1))
    """Images per optimizer step, over all ranks. The published configuration has 1."""

    micro_batch_size: int = field(default=8, metadata=rule(at_least=1))
    """The most images that one rank runs through the model at once. Changes memory and speed, not the result."""

    micro_batch_tokens: int = field(default=16384, metadata=rule(at_least=1))
    """The most tokens that one rank runs through the model at once; a single longer image runs alone."""

    checkpoint_every: int = field(default=500, metadata=rule(at_least=1))
    """Optimizer steps between two checkpoints."""

    keep: int = field(default=2, metadata=rule(at_least=1))
    """How many of the newest checkpoints stay on disk."""

    log_every: int = field(default=10, metadata=rule(at_least=1))
    """Optimizer steps between two lines of `metrics.jsonl`."""

    log_keys: bool = field(default=False, metadata=rule())
    """Note under `keys/` which samples each rank trained on in each step: the proof that every epoch saw each once."""

    validate_every: int | None = field(default=None, metadata=rule(at_least=1))
    """Optimizer steps between two measurements of the loss on held-out images. The stage's result is then the
    checkpoint with the lowest, which is kept beside the newest. null: none; the result is that of the last step."""

    validation_size: int = field(default=256, metadata=rule(at_least=1))
    """The most images held out, drawn from the `val` split; where the cache has none, taken out of `train`."""

    patience: int | None = field(default=None, metadata=rule(at_least=1))
    """Measurements without a new lowest loss after which training ends early; null: never."""


@dataclass
class Stage1Config(StageConfig):
    """Stage 1: the aspect modules."""

    num_epochs: int = field(default=3, metadata=rule(at_least=1, at_most=100_000))
    """How often every image of the training split is seen."""


@dataclass
class Stage2Config(StageConfig):
    """Stage 2: the soft prompt."""

    learning_rate: float = field(default=5e-6, metadata=rule(at_least=0.0, at_most=10.0))
    """The highest learning rate, at the end of the warmup; from there it falls linearly to zero."""

    num_soft_prompt_tokens: int = field(default=32, metadata=rule(at_least=1, at_most=4096))
    """Learned vectors of the soft prompt."""

    soft_prompt_init: str = field(default="normal", metadata=rule(choices=("normal", "vocabulary", "question")))
    """How the soft prompt starts: drawn at random, from random words of the vocabulary, or from the words of the
    aspects, the categories and the question."""

    vision_features: bool = field(default=True, metadata=rule())
    """Whether the vision features stand in the prompt beside the aspect tokens. Without them is an ablation: the
    language model knows of the picture only what the aspects tell."""

    frozen_prefix: bool = field(default=True, metadata=rule())
    """Run what stands before the soft prompt once, without gradient. Same result, less time and memory; only layout
    `after_image` has such a prefix."""


@dataclass
class EngineConfig:
    """How training runs on the machine."""

    zero_stage: int = field(default=2, metadata=rule(at_least=0, at_most=3))
    """DeepSpeed's ZeRO stage: 3 also cuts the frozen language model over the ranks."""

    precision: str = field(default="bf16", metadata=rule(choices=("bf16", "fp16", "fp32")))
    """The number format of the frozen language model and of the computation."""

    device: str = field(default="auto", metadata=rule(choices=("auto", "cpu", "cuda")))
    """Where it runs; `auto` takes a GPU where there is one."""

    num_workers: int = field(default=2, metadata=rule(at_least=0, at_most=512))
    """Processes per rank that read the cache; 0 reads in the main process."""

    num_threads: int | None = field(default=None, metadata=rule(at_least=1, at_most=1024))
    """CPU threads per rank; null leaves it to torch."""

    offload: bool = field(default=False, metadata=rule())
    """Keep optimizer state in CPU memory, and under `zero_stage` 3 the frozen language model too: fits on smaller GPUs,
    and is slower. Needs a `zero_stage` of at least 1."""

    gradient_checkpointing: bool = field(default=False, metadata=rule())
    """Run each layer again in the backward pass instead of keeping what it computed. Same result, less memory, about a
    third more time; the frozen prefix stays in use."""

    time_limit_min: float | None = field(default=None, metadata=rule(above=0.0))
    """Minutes after which training stops at the next step with a checkpoint and exit code 75; null: no limit. Leave
    room for a step and a checkpoint before the limit of whoever would kill it."""


@dataclass
class EvaluateConfig:
    """The evaluation."""

    stage: str = field(default="stage2", metadata=rule(choices=("stage1", "stage2")))
    """What is scored: the emotion of every image, or (stage 1) the aspect modules, by the answers of every annotated
    aspect."""

    split: str = field(default="test", metadata=rule(choices=("train", "val", "test")))
    """The split that is scored."""

    scoring: str = field(default="likelihood", metadata=rule(choices=("likelihood", "generate")))
    """Compare the likelihood of every category's words, or let the model write a line and match it exactly."""

    source: str = field(default="cache", metadata=rule(choices=("cache", "live")))
    """Read features from the cache, or run the encoder on the images."""

    batch_size: int = field(default=16, metadata=rule(at_least=1))
    """Images that one rank scores at once. Changes memory and speed, not the result."""

    max_new_tokens: int = field(default=4, metadata=rule(at_least=1, at_most=1024))
    """The longest line that `generate` writes, in tokens."""

    num_workers: int = field(default=2, metadata=rule(at_least=0, at_most=512))
    """Processes per rank that read the cache or the images; 0 reads in the main process."""

    attention: bool = field(default=False, metadata=rule())
    """Also keep where each aspect looks: a map per image and aspect in `records.h5` (not with `stage: stage1`), about 4
    bytes per vision token and aspect."""

    category_map: list[str] | None = field(
        default=None, metadata=rule(unique=True, example="[content=contentment, joy=joy, surprise=]")
    )
    """For a dataset whose categories are not those that the soft prompt was trained on: `THEIRS=OURS` counts a
    category of the dataset as another one, `NAME=NAME` asks for a category that was not trained, `NAME=` leaves its
    images out."""

    output_dir: str | None = field(default=None, metadata=rule(is_path=True))
    """Where ledgers, records and metrics go; null is `evaluate` in the top-level `output_dir` (`evaluate-stage1` for
    stage 1)."""


@dataclass
class CheckpointConfig:
    """What evaluation and prediction load, and what stage 2 builds on."""

    aspect: str | None = field(default=None, metadata=rule(is_path=True))
    """The aspect modules: a file that stage 1 wrote, or a released `aspect.pth`; null: those that stage 1 of this run
    wrote; `none`: do without."""

    soft_prompt: str | None = field(default=None, metadata=rule(is_path=True))
    """The soft prompt: a file that stage 2 wrote, or a released `soft_prompt_….pt`; null: the one that stage 2 of this
    run wrote; `none`: do without."""

    layout: str | None = field(default=None, metadata=rule(choices=("after_image", "released")))
    """The layout of a soft prompt in the released format, whose file does not say it: `released` for published files.
    null for our own files, which do."""


@dataclass
class Config:
    """The configuration of every command."""

    seed: int = field(default=3407, metadata=rule(at_least=0, at_most=2**32 - 1))
    """Seed of everything random: initial values, the order of samples, questions."""

    output_dir: str = field(default="outputs/run", metadata=rule(is_path=True))
    """The run directory: checkpoints, logs, metrics, the resolved configuration."""

    questions: str = field(default="configs/questions.yaml", metadata=rule(is_path=True))
    """The file of question templates."""

    aspects: list[str] = field(default_factory=lambda: list(ASPECTS), metadata=rule(choices=ASPECTS, unique=True))
    """The aspects in use, in the order of their tokens in the prompt; an empty list trains the soft prompt alone."""

    vlm: VlmConfig = field(default_factory=VlmConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    aspect_module: AspectModuleConfig = field(default_factory=AspectModuleConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    engine: EngineConfig = field(default_factory=EngineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
