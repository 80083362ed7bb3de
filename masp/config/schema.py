"""Every setting of MASP: its type, its default, its valid range and what it does.

The string under a field is its documentation; `tools/config_reference.py` turns it into the table of
`docs/configuration.md`. Ranges stand beside the field, so that the check, the error and the table cannot disagree.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, GetPydanticSchema

from masp.config.fields import Boolean, Count, Fraction, Item, Number, PathText, Positive, Settings, UniqueList
from masp.taxonomy import ASPECTS, DatasetName

# One of the aspects, which is any string to the code that gets it.
Aspect = Annotated[str, GetPydanticSchema(lambda _source, handler: handler(Literal[*ASPECTS]))]
Device = Literal["auto", "cpu", "cuda"]
Layout = Literal["after_image", "released"]
Precision = Literal["bf16", "fp16", "fp32"]
StageName = Literal["stage1", "stage2"]


@dataclass
class VlmConfig(Settings):
    """The frozen vision-language model."""

    path: PathText
    """A local folder, or a model name on the Hugging Face hub."""

    attention: Literal["sdpa", "eager"] = "sdpa"
    """The attention kernel. Features made with one are not read as if made with the other."""

    min_pixels: Count | None = None
    """The smallest area that the image processor gives an image; null keeps the model's own limit."""

    max_pixels: Count | None = None
    """The largest area that the image processor leaves an image; null keeps the model's own limit. Features grow with
    it: the first lever when the cache is too large."""

    max_side: Count | None = 1024
    """The longer side of an image is scaled down to this many pixels before anything else; null leaves it."""


@dataclass(kw_only=True)
class DatasetConfig(Settings):
    """The labelled pictures."""

    name: DatasetName = "folder"
    """Which dataset it is: names the files it leads to, and its categories. `folder` is any other."""

    root: PathText
    """The folder that holds `train/`, `val/`, `test/`, or `train.json`, `val.json`, `test.json`."""

    categories: Annotated[UniqueList[Item], Field(examples=[["joy", "fear"]])] | None = None
    """The categories in the order in which questions list them; null takes the named dataset's own, for `folder` the
    names found on disk."""


@dataclass
class CacheConfig(Settings):
    """The feature cache."""

    dir: PathText
    """The folder of the cache. One cache serves one VLM and one dataset."""

    dtype: Literal["bf16", "fp16", "fp32", "int8", "fp8"] = "bf16"
    """The number format of the stored features. `int8` and `fp8` (e4m3) halve the cache, with a scale per token; the
    encoder then runs in bf16 on a GPU and in fp32 on a CPU, else in this format. `masp cache precision` measures what
    each costs."""

    aspect_tokens: Boolean = False
    """Read the aspect tokens that `masp cache aspects` computed, in stage 2 and evaluation, instead of running the
    aspect modules. They are found by the digests of cache and modules; without a file of both, it is an error."""

    num_shards: Annotated[int, Field(ge=1, le=100_000), Number] = 64
    """Into how many tar shards the images of all splits are cut, none of which holds two splits. Part of what the cache
    is: another number is another cache."""


@dataclass
class ExtractConfig(Settings):
    """The job that fills the cache."""

    num_workers: Annotated[int, Field(ge=0, le=512), Number] = 2
    """Processes that read and decode images; 0 reads in the main process."""

    batch_tokens: Count = 8192
    """Vision tokens that one batch of the encoder may hold; a single larger image is a batch of its own."""

    num_threads: Annotated[int, Field(ge=1, le=1024), Number] = 2
    """CPU threads of the encoder. Recorded in the cache, since the last bits of its output depend on it."""

    max_bad_fraction: Fraction = 0.01
    """The largest share of unreadable images with which the job still succeeds."""

    device: Device = "auto"
    """Where the encoder runs; `auto` takes a GPU where there is one."""


@dataclass
class AspectModuleConfig(Settings):
    """The small module of each aspect that stage 1 trains."""

    num_queries: Annotated[int, Field(ge=1, le=1024), Number] = 5
    """Learned query vectors, and so aspect tokens, per aspect."""

    init_scale: Positive = 1.0
    """Standard deviation of the queries at the start."""


@dataclass
class StageConfig(Settings):
    """What both training stages have."""

    layout: Layout = "after_image"
    """What stands where. `after_image`: the soft prompt after the image, positions by the VLM's own rule, the answer
    and its end token supervised. `released`: as the released checkpoints were trained, the soft prompt before the image
    and again after it, positions 0, 1, 2 …, the newline before the answer and the answer supervised."""

    num_epochs: Annotated[int, Field(ge=1, le=100_000), Number] = 1
    """How often every image of the training split is seen."""

    learning_rate: Annotated[float, Field(ge=0.0, le=10.0), Number] = 1e-5
    """The highest learning rate, at the end of the warmup; from there it falls linearly to zero."""

    warmup_ratio: Fraction = 0.03
    """The share of the steps over which the learning rate rises from zero."""

    weight_decay: Fraction = 0.01
    """Weight decay of AdamW."""

    max_grad_norm: Positive | None = 1.0
    """Gradients are scaled down to this norm; null never scales them."""

    global_batch_size: Count = 8
    """Images per optimizer step, over all ranks. The published configuration has 1."""

    micro_batch_size: Count = 8
    """The most images that one rank runs through the model at once. Changes memory and speed, not the result."""

    micro_batch_tokens: Count = 16384
    """The most tokens that one rank runs through the model at once; a single longer image runs alone."""

    checkpoint_every: Count = 500
    """Optimizer steps between two checkpoints."""

    keep: Count = 2
    """How many of the newest checkpoints stay on disk."""

    log_every: Count = 10
    """Optimizer steps between two lines of `metrics.jsonl`."""

    log_keys: Boolean = False
    """Note under `keys/` which samples each rank trained on in each step: the proof that every epoch saw each once."""

    validate_every: Count | None = None
    """Optimizer steps between two measurements of the loss on held-out images. The stage's result is then the
    checkpoint with the lowest, which is kept beside the newest. null: none; the result is that of the last step."""

    validation_size: Count = 256
    """The most images held out, drawn from the `val` split; where the cache has none, taken out of `train`."""

    patience: Count | None = None
    """Measurements without a new lowest loss after which training ends early; null: never."""


@dataclass
class Stage1Config(StageConfig):
    """Stage 1: the aspect modules."""

    num_epochs: Annotated[int, Field(ge=1, le=100_000), Number] = 3
    """How often every image of the training split is seen."""


@dataclass
class Stage2Config(StageConfig):
    """Stage 2: the soft prompt."""

    learning_rate: Annotated[float, Field(ge=0.0, le=10.0), Number] = 5e-6
    """The highest learning rate, at the end of the warmup; from there it falls linearly to zero."""

    num_soft_prompt_tokens: Annotated[int, Field(ge=1, le=4096), Number] = 32
    """Learned vectors of the soft prompt."""

    soft_prompt_init: Literal["normal", "vocabulary", "question"] = "normal"
    """How the soft prompt starts: drawn at random, from random words of the vocabulary, or from the words of the
    aspects, the categories and the question."""

    vision_features: Boolean = True
    """Whether the vision features stand in the prompt beside the aspect tokens. Without them is an ablation: the
    language model knows of the picture only what the aspects tell."""

    frozen_prefix: Boolean = True
    """Run what stands before the soft prompt once, without gradient. Same result, less time and memory; only layout
    `after_image` has such a prefix."""


@dataclass
class EngineConfig(Settings):
    """How training runs on the machine."""

    zero_stage: Annotated[int, Field(ge=0, le=3), Number] = 2
    """DeepSpeed's ZeRO stage: 3 also cuts the frozen language model over the ranks."""

    precision: Precision = "bf16"
    """The number format of the frozen language model and of the computation."""

    device: Device = "auto"
    """Where it runs; `auto` takes a GPU where there is one."""

    num_workers: Annotated[int, Field(ge=0, le=512), Number] = 2
    """Processes per rank that read the cache; 0 reads in the main process."""

    num_threads: Annotated[int, Field(ge=1, le=1024), Number] | None = None
    """CPU threads per rank; null leaves it to torch."""

    offload: Boolean = False
    """Keep optimizer state in CPU memory, and under `zero_stage` 3 the frozen language model too: fits on smaller GPUs,
    and is slower. Needs a `zero_stage` of at least 1."""

    gradient_checkpointing: Boolean = False
    """Run each layer again in the backward pass instead of keeping what it computed. Same result, less memory, about a
    third more time; the frozen prefix stays in use."""

    time_limit_min: Positive | None = None
    """Minutes after which training stops at the next step with a checkpoint and exit code 75; null: no limit. Leave
    room for a step and a checkpoint before the limit of whoever would kill it."""


@dataclass
class EvaluateConfig(Settings):
    """The evaluation."""

    stage: StageName = "stage2"
    """What is scored: the emotion of every image, or (stage 1) the aspect modules, by the answers of every annotated
    aspect."""

    split: Literal["train", "val", "test"] = "test"
    """The split that is scored."""

    scoring: Literal["likelihood", "generate"] = "likelihood"
    """Compare the likelihood of every category's words, or let the model write a line and match it exactly."""

    source: Literal["cache", "live"] = "cache"
    """Read features from the cache, or run the encoder on the images."""

    batch_size: Count = 16
    """Images that one rank scores at once. Changes memory and speed, not the result."""

    max_new_tokens: Annotated[int, Field(ge=1, le=1024), Number] = 4
    """The longest line that `generate` writes, in tokens."""

    num_workers: Annotated[int, Field(ge=0, le=512), Number] = 2
    """Processes per rank that read the cache or the images; 0 reads in the main process."""

    attention: Boolean = False
    """Also keep where each aspect looks: a map per image and aspect in `records.h5` (not with `stage: stage1`), about 4
    bytes per vision token and aspect."""

    category_map: (
        Annotated[UniqueList[Item], Field(examples=[["content=contentment", "joy=joy", "surprise="]])] | None
    ) = None
    """For a dataset whose categories are not those that the soft prompt was trained on: `THEIRS=OURS` counts a
    category of the dataset as another one, `NAME=NAME` asks for a category that was not trained, `NAME=` leaves its
    images out."""

    output_dir: PathText | None = None
    """Where ledgers, records and metrics go; null is `evaluate` in the top-level `output_dir` (`evaluate-stage1` for
    stage 1)."""


@dataclass
class CheckpointConfig(Settings):
    """What evaluation and prediction load, and what stage 2 builds on."""

    aspect: PathText | None = None
    """The aspect modules: a file that stage 1 wrote, or a released `aspect.pth`; null: those that stage 1 of this run
    wrote; `none`: do without."""

    soft_prompt: PathText | None = None
    """The soft prompt: a file that stage 2 wrote, or a released `soft_prompt_….pt`; null: the one that stage 2 of this
    run wrote; `none`: do without."""

    layout: Layout | None = None
    """The layout of a soft prompt in the released format, whose file does not say it: `released` for published files.
    null for our own files, which do."""


@dataclass(kw_only=True)
class Config(Settings):
    """The configuration of every command."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1), Number] = 3407
    """Seed of everything random: initial values, the order of samples, questions."""

    output_dir: PathText = "outputs/run"
    """The run directory: checkpoints, logs, metrics, the resolved configuration."""

    questions: PathText = "configs/questions.yaml"
    """The file of question templates."""

    aspects: UniqueList[Aspect] = field(default_factory=lambda: list(ASPECTS))
    """The aspects in use, in the order of their tokens in the prompt; an empty list trains the soft prompt alone."""

    vlm: VlmConfig
    dataset: DatasetConfig
    cache: CacheConfig
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    aspect_module: AspectModuleConfig = field(default_factory=AspectModuleConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    engine: EngineConfig = field(default_factory=EngineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
