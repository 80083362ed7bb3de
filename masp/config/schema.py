"""Every setting of MASP: its type, its default, its valid range and what it does.

The string under a field is its documentation; `tools/config_reference.py` turns it into the table of
`docs/configuration.md`. The check, the error message and the table all come from the annotation of the field.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from masp.config.aspects import SHIPPED, load_aspects
from masp.config.fields import (
    Boolean,
    Count,
    Fraction,
    Item,
    Mapping,
    Number,
    PathText,
    Positive,
    Settings,
    Text,
    UniqueList,
)
from masp.taxonomy import DatasetName, Split, dataset_name

# Authors write "Emotion6" and "EmoSet".
AnyCaseName = Annotated[
    DatasetName, BeforeValidator(lambda name: dataset_name(name) if isinstance(name, str) else name)
]
DatasetFormat = Literal["folders", "emoset", "table", "webdataset", "parquet", "arrow"]
Device = Literal["auto", "cpu", "cuda"]
Layout = Literal["after_image", "released"]
Precision = Literal["bf16", "fp16", "fp32"]
Scoring = Literal["likelihood", "generate"]
Source = Literal["cache", "live"]
Augmentation = Literal["none", "flip", "crop"]
Quantization = Literal["none", "int8", "int4"]
StageName = Literal["stage1", "stage2"]
TrackerName = Literal["tensorboard", "wandb", "mlflow"]
Transparency = Literal["white", "drop"]


def _check_splits(splits: dict[str, float | str]) -> dict[str, float | str]:
    known = get_args(Split)
    if unknown := sorted(set(splits) - set(known)):
        raise ValueError(f"{unknown[0]!r} is not a split; valid are {', '.join(known)}")
    return splits


def _check_name(name: str) -> str:
    if not re.fullmatch(r"\w[\w-]{0,63}", name):
        raise ValueError("must be a name of letters, digits, _ and -, at most 64")
    return name


@dataclass
class VlmConfig(Settings):
    """The frozen vision-language model."""

    path: PathText
    """Local directory, or name of a model on the Hugging Face Hub: `owner/name`, `owner/name@revision`, or with `hf://`
    before it, which is never taken for a directory."""

    attention: Literal["sdpa", "eager"] = "sdpa"
    """Attention kernel. Part of the fingerprint: features computed with one are not used with the other."""

    min_pixels: Count | None = None
    """Lower limit of the image processor on the area of an image; null keeps the model's own."""

    max_pixels: Count | None = None
    """Upper limit of the image processor on the area of an image; null keeps the model's own. Features grow with it:
    the first setting to lower when the cache is too large."""

    max_side: Count | None = 1024
    """Largest longer side of an image; larger images are scaled down before anything else. null: no limit."""

    transparency: Transparency = "white"
    """What becomes of transparent pixels: `white` pastes an image on white, `drop` shows the colors stored under the
    transparency. `drop` converts every image as the published code does, by Pillow's own `convert("RGB")`, which also
    cuts 16-bit images off instead of scaling them. Part of the fingerprint."""

    quantization: Quantization = "none"
    """Weights of the frozen language model's layers: `int8`, with a scale per row, takes half the memory of bf16, and
    `int4`, with a scale and a zero point per 64 weights, less than a third. Word embeddings, vocabulary projection and
    encoder stay as they are. Needs the extra `masp[quantization]`; not with `zero_stage` 3. `masp quantization`
    measures what each costs in accuracy."""


ColumnNames = Annotated[Mapping[Text], Field(examples=["image: file, label: emotion"])]
LabelNames = Annotated[Mapping[Text | None], Field(examples=["0: amusement, 1: anger, 2: null"])]
Splits = Annotated[
    Mapping[Fraction | PathText], AfterValidator(_check_splits), Field(examples=["train: 0.8, val: 0.1, test: 0.1"])
]


@dataclass(kw_only=True)
class DatasetConfig(Settings):
    """The labeled images."""

    name: AnyCaseName = "folder"
    """Name of the dataset, in any case: gives its categories and is part of the names of output files. `folder` is any
    other."""

    root: PathText
    """Where the images are: a directory, a file, a pattern of files (`data/{00000..00099}.tar`, `data/*.parquet`), or
    `hf://owner/name` of the Hugging Face Hub. docs/datasets.md shows what may be there."""

    format: Literal["auto", DatasetFormat] = "auto"
    """What is there. `auto` looks and says what it found: `folders`, whose names are the categories; `emoset`, index
    files as EmoSet has them; `table`, a `.csv`, `.tsv` or `.jsonl` file with a row per image; `webdataset`, tars;
    `parquet` and `arrow`, as the Hugging Face Hub and its `datasets` library have them."""

    columns: ColumnNames | None = None
    """Columns of a table, of tars, parquet or arrow files by what they hold: `image`, `label`, `split`, `id`, and any
    aspect. null, or what is not given: the usual names, such as `file_name` and `emotion`."""

    distribution: Annotated[UniqueList[Item], Field(min_length=2, examples=[["anger", "joy", "neutral"]])] | None = None
    """Columns with the votes or probabilities of an image, one per category and named like it."""

    label_names: LabelNames | PathText | None = None
    """Category of each label, where labels are numbers or other words than the categories, or a YAML or JSON file with
    such a mapping; the images of a label with null are left out."""

    split: Splits | None = None
    """How to divide images that the dataset itself does not divide: `{train: 0.8, val: 0.1, test: 0.1}` by a hash of
    each image's name, in every category alike and copies of an image together; or `{train: train.txt, test: test.txt}`,
    files that list the images. Where the dataset has a split `test`, only its `train` is divided, as in
    `{train: 0.9, val: 0.1}`."""

    split_seed: Annotated[int, Field(ge=0, le=2**32 - 1), Number] = 0
    """Seed of the division by fractions."""

    fraction: Annotated[float, Field(gt=0.0, le=1.0), Number] | None = None
    """Share of the training images of each category that training sees, at least one image; null or 1: all. A smaller
    subset is contained in a larger one. Validation and test images stay as they are, and so does the cache."""

    shots: Count | None = None
    """Training images of each category that training sees, instead of `fraction`; null: all."""

    subset_seed: Annotated[int, Field(ge=0, le=2**32 - 1), Number] = 0
    """Seed of which images `fraction` or `shots` takes."""

    categories: Annotated[UniqueList[Item], Field(examples=[["joy", "fear"]])] | None = None
    """Categories in the order in which questions list them; null takes the named dataset's own, for `folder` the names
    of the subdirectories."""

    augment: Augmentation = "none"
    """Random changes of the images that training sees, with `cache.dir: null` only, anew in each epoch: `flip` mirrors
    an image left to right with probability 1/2, `crop` takes a part of it (from half of its area to all, its sides in a
    ratio of 3/4 to 4/3 of the image's own) and scales it to the size of the image. Validation and evaluation see the
    images as they are."""


@dataclass
class CacheConfig(Settings):
    """The feature cache."""

    dir: PathText | None
    """Cache directory. One cache serves one VLM and one dataset. null: no cache; training and evaluation run the
    encoder on the images themselves, each time that they see one, which is slower and takes no disk space."""

    dtype: Literal["bf16", "fp16", "fp32", "int8", "fp8"] = "bf16"
    """Number format of the stored features. `int8` and `fp8` (e4m3), with a scale per token, halve the size of the
    cache; the encoder then runs in bf16 on a GPU and in fp32 on a CPU, otherwise in this format. `masp cache precision`
    measures what each costs in accuracy."""

    aspect_tokens: Boolean = False
    """Read the aspect tokens that `masp cache aspects` computed, in stage 2 and evaluation, instead of running the
    aspect modules. They are found by the digests of cache and modules; if there are none, it is an error."""

    num_shards: Annotated[int, Field(ge=1, le=100_000), Number] = 64
    """Number of tar shards over all splits; no shard contains two splits. Another number makes another cache, and
    another order of training, also without a cache."""


@dataclass
class ExtractConfig(Settings):
    """The job that fills the cache. Without a cache, the encoder in training and evaluation: workers and
    `max_bad_fraction` are then those of the pass that tries to read every image before training."""

    num_workers: Annotated[int, Field(ge=0, le=512), Number] = 2
    """Processes that read and decode images; 0: the main process does."""

    batch_tokens: Count = 8192
    """Largest number of vision tokens in a batch of the encoder; an image with more is a batch of its own."""

    num_threads: Annotated[int, Field(ge=1, le=1024), Number] = 2
    """CPU threads of the encoder. Recorded in the cache, since the last bits of the features depend on it."""

    max_bad_fraction: Fraction = 0.01
    """Largest fraction of unreadable images with which the job still succeeds."""

    device: Device = "auto"
    """Device of the encoder; `auto` takes a GPU if there is one."""


@dataclass
class TargetConfig(Settings):
    """What is recognized, if not the emotion: another label set over the same images, features and aspects.
    docs/targets.md describes it."""

    name: Annotated[Text, AfterValidator(_check_name)] = "emotion"
    """Name of the target: of its templates in the `questions` file and of what is trained for it."""

    questions: Annotated[list[Text], Field(examples=[["'Name one of {categories}.'"]])] | None = None
    """Templates of its question; null: those under its name in the `questions` file."""

    labels: PathText | None = None
    """Where its labels come from: an aspect, whose answers they then are, or a table (`.csv`, `.tsv`, `.jsonl`) with
    the columns `key` (the sample key) or `image` and `label`. null: the labels of the dataset. Images without a label
    are left out."""

    categories: Annotated[UniqueList[Item], Field(examples=[["spring", "autumn"]])] | None = None
    """Its categories, in the order in which questions list them; images with other labels are left out. null: the
    categories of the dataset, or all different labels, sorted, where `labels` gives others."""


@dataclass
class AnnotateConfig(Settings):
    """Annotations by the VLM, for images that nobody annotated (`masp annotate`)."""

    aspects: Annotated[UniqueList[Item], Field(examples=[["scene", "object"]])] | None = None
    """Aspects to annotate, in every image that lacks them. null: the aspects in use, where people annotated nothing:
    aspects that no training image has, and images that have none of the aspects. (In a dataset that annotates an
    aspect, an image without it usually does not show it.)"""

    min_confidence: Fraction = 0.0
    """Answers of the VLM with a lower probability are not used in training and evaluation. Of answers that it wrote,
    the mean probability of a token."""

    batch_size: Count = 16
    """Images that a task asks about at once. Part of what the answers depend on, in their last bits."""

    max_new_tokens: Annotated[int, Field(ge=1, le=256), Number] = 32
    """Largest length of an answer that the VLM writes, in tokens."""

    num_workers: Annotated[int, Field(ge=0, le=512), Number] = 2
    """Processes that read features and decode images; 0: the main process does."""

    num_threads: Annotated[int, Field(ge=1, le=1024), Number] = 2
    """CPU threads of the language model; recorded, since the last bits of the probabilities depend on it."""

    device: Device = "auto"
    """Device of the language model; `auto` takes a GPU if there is one."""


@dataclass
class AspectModuleConfig(Settings):
    """The aspect modules, which stage 1 trains."""

    num_queries: Annotated[int, Field(ge=1, le=1024), Number] = 5
    """Query vectors, and therefore aspect tokens, per aspect."""

    init_scale: Positive = 1.0
    """Standard deviation of the initial queries."""


@dataclass
class StageConfig(Settings):
    """The settings that both training stages have."""

    layout: Layout = "after_image"
    """Layout of the prompt. `after_image`: the soft prompt follows the image, positions follow the VLM's own rule, the
    answer and its end token are supervised. `released`, as the released checkpoints were trained: the soft prompt
    before the image and again after it, positions 0, 1, 2 …, the newline before the answer and the answer
    supervised."""

    num_epochs: Annotated[int, Field(ge=1, le=100_000), Number] = 1
    """Number of passes over the training split."""

    learning_rate: Annotated[float, Field(ge=0.0, le=10.0), Number] = 1e-5
    """Learning rate at the end of the warmup, from where it decreases linearly to zero."""

    warmup_ratio: Fraction = 0.03
    """Fraction of the steps over which the learning rate increases from zero."""

    schedule: Literal["linear", "published"] = "linear"
    """How the learning rate increases and decreases: with `linear`, no step has a rate of zero; with `published`, which
    is the rule of transformers, warmup steps are rounded up and the first step has a rate of zero."""

    weight_decay: Fraction = 0.01
    """Weight decay of AdamW."""

    max_grad_norm: Positive | None = 1.0
    """Largest norm of the gradient; a larger one is scaled down. null: no limit."""

    global_batch_size: Count = 8
    """Positions per optimizer step, over all ranks: images, or pairs with `stage1.position: pair`. The published
    configuration has 1."""

    micro_batch_size: Count = 8
    """Largest number of images that a rank runs through the model at once. Affects memory and speed, not the result."""

    micro_batch_tokens: Count = 16384
    """Largest number of tokens that a rank runs through the model at once; an image with more runs alone."""

    checkpoint_every: Count = 500
    """Optimizer steps between two checkpoints."""

    keep: Count = 2
    """Number of checkpoints that are kept, the newest ones."""

    log_every: Count = 10
    """Optimizer steps between two lines of `metrics.jsonl`."""

    log_keys: Boolean = False
    """Write to `keys/` which samples each rank trained on in each step, as a proof that each epoch saw every sample
    once."""

    validate_every: Count | None = None
    """Optimizer steps between two validations, which measure the loss on held-out images. The stage's result is then
    the checkpoint with the lowest loss, which is kept in addition to the newest. null: no validation; the result is
    that of the last step."""

    validation_size: Count = 256
    """Largest number of held-out images, drawn from the `val` split; if the cache has none, taken out of `train`."""

    patience: Count | None = None
    """Validations without a new lowest loss after which training ends early; null: never."""


@dataclass
class Stage1Config(StageConfig):
    """Stage 1: the aspect modules."""

    num_epochs: Annotated[int, Field(ge=1, le=100_000), Number] = 3
    """Number of passes over the training split."""

    position: Literal["image", "pair"] = "image"
    """What a position in the order of training is: `image`, with all its annotated aspects, or `pair`, an image with
    one of them, as in the published code. Pairs come in an order of their own, and the features of an image are read
    for each of its pairs."""

    restarts: Annotated[int, Field(ge=1, le=64), Number] = 1
    """Initializations of every aspect module that are trained in the same pass; of each aspect, the one with the lowest
    loss on held-out images is kept. These images are drawn as `validate_every` draws them: up to `validation_size` of
    the `val` split, and if the cache has none, taken out of `train`. Without `validate_every` they are measured once,
    after the last step."""

    init_seed: Annotated[int, Field(ge=0, lt=2**32), Number] | None = None
    """Seed of the initial values; null: `seed`. With the seed that `restarts.json` names of a restart, the run that it
    would have been alone."""


@dataclass
class Stage2Config(StageConfig):
    """Stage 2: the soft prompt."""

    learning_rate: Annotated[float, Field(ge=0.0, le=10.0), Number] = 5e-6
    """Learning rate at the end of the warmup, from where it decreases linearly to zero."""

    num_soft_prompt_tokens: Annotated[int, Field(ge=1, le=4096), Number] = 32
    """Vectors of the soft prompt."""

    soft_prompt_init: Literal["normal", "vocabulary", "question", "padding_rows"] = "normal"
    """Initial values of the soft prompt: random normal, the embeddings of random tokens of the vocabulary, or those of
    the aspects, the categories and the question; `padding_rows`, as the published code: the rows of the embedding table
    behind the tokenizer's last token, which no token uses."""

    supervision: Literal["label", "distribution"] = "label"
    """What is learned of an image: its `label`, or the `distribution` over the categories, for datasets with votes of
    raters or probabilities. An image without a distribution is trained on its label."""

    distribution_loss: Literal["weighted", "drawn"] = "weighted"
    """How a distribution is learned: `weighted` takes the loss of every category, weighted with its probability, in one
    pass; `drawn` takes one category as the answer, drawn anew in each epoch."""

    vision_features: Boolean = True
    """Put the vision features into the prompt, after the aspect tokens. Without them, an ablation, the language model
    sees of the image only the aspect tokens."""

    frozen_prefix: Boolean = True
    """Run everything before the soft prompt once, without gradient. Same result, less time and memory; only layout
    `after_image` has such a prefix."""


@dataclass
class EngineConfig(Settings):
    """How training uses the machine."""

    zero_stage: Annotated[int, Field(ge=0, le=3), Number] = 2
    """DeepSpeed's ZeRO stage; 3 also partitions the frozen language model over the ranks."""

    precision: Precision = "bf16"
    """Number format of the frozen language model and of the computation."""

    device: Device = "auto"
    """Device of training; `auto` takes a GPU if there is one."""

    num_workers: Annotated[int, Field(ge=0, le=512), Number] = 2
    """Processes per rank that read the cache, or without one the images; 0: the main process does."""

    num_threads: Annotated[int, Field(ge=1, le=1024), Number] | None = None
    """CPU threads per rank; null leaves it to torch."""

    offload: Boolean = False
    """Keep the optimizer state in CPU memory, with `zero_stage` 3 the frozen language model too: slower, but fits on
    smaller GPUs. Requires a `zero_stage` of at least 1."""

    gradient_checkpointing: Boolean = False
    """Recompute the activations of each layer in the backward pass instead of keeping them. Same result, less memory,
    about a third more time; works together with the frozen prefix."""

    time_limit_min: Positive | None = None
    """Minutes after which training stops at the next step with a checkpoint and exit code 75; null: no limit. If a
    scheduler has a time limit of its own, leave time for a step and a checkpoint before it."""


@dataclass
class EvaluateConfig(Settings):
    """Evaluation."""

    stage: StageName = "stage2"
    """Stage that is scored. `stage2`: the target, by default the emotion, of every image; `stage1`: the aspect modules,
    by the answer to every annotated aspect."""

    split: Split = "test"
    """Split that is scored."""

    scoring: Scoring = "likelihood"
    """`likelihood` compares the likelihoods of all categories; `generate` lets the model write a line, which must be a
    category, in upper or lower case."""

    source: Source = "cache"
    """Where features come from: `cache` reads them, `live` runs the encoder on the images, as both do with
    `cache.dir: null`."""

    batch_size: Count = 16
    """Images that a rank scores at once. Affects memory and speed, not the result."""

    partition_vlm: Boolean = False
    """Divide the layers of the frozen language model over the ranks, in evaluation and prediction, and make each whole
    only while it runs: for a VLM that is larger than one GPU. Same scores; all ranks must then run at the same time."""

    max_new_tokens: Annotated[int, Field(ge=1, le=1024), Number] = 4
    """Largest length of a line that `generate` writes, in tokens."""

    num_workers: Annotated[int, Field(ge=0, le=512), Number] = 2
    """Processes per rank that read the cache or the images; 0: the main process does."""

    attention: Boolean = False
    """Also write the attention of each aspect module to `records.h5`: a map per image and aspect, about 4 bytes per
    vision token and aspect. Not with `stage: stage1`."""

    category_map: (
        Annotated[UniqueList[Item], Field(examples=[["content=contentment", "joy=joy", "surprise="]])] | None
    ) = None
    """For a dataset with other categories than those the soft prompt was trained on: `THEIRS=OURS` counts a category of
    the dataset as one that was trained, `NAME=NAME` also asks for a category that was not trained, `NAME=` leaves out
    the images of a category."""

    validation: Boolean = False
    """Also score the validation split, in the same way, into `val` in the directory of the evaluation: the temperature
    that corrects the probabilities is fitted on it, and `masp compare --split val` compares runs on it."""

    prompts: Literal["first", "all"] = "first"
    """Wordings of the question that are scored. `first`: the first template. `all`: also every other template, and the
    first with other orders of the categories; in layout `after_image` behind one pass of the image, elsewhere each
    takes as long as the first."""

    without: Annotated[UniqueList[Item], Field(examples=[["scene", "vision_features"]])] = field(default_factory=list)
    """Parts of the image that are left out of the prompt: aspects, and `vision_features`. What was trained stays as it
    is; what follows in the prompt moves up. Shows what each part is worth; not with `stage: stage1`."""

    explain: Literal["none", "sample", "all"] = "none"
    """Images whose predictions are explained beside the scores, into `explanations` in the directory of the evaluation:
    what each aspect answers, where it looks, and what it did for the prediction. `sample`: 200 images, chosen by a hash
    of their sample keys; `all`: every image. An explained image takes about as long as ten that are only scored. Runs
    without aspect modules, and evaluations with `stage: stage1`, explain nothing."""

    linear_probe: Boolean = False
    """Also fit a linear probe on the mean features of the training split and score it on the same images. Reads the
    features of up to 20,000 training images from the cache."""

    output_dir: PathText | None = None
    """Directory of ledgers, records and metrics; null: `evaluate` in the top-level `output_dir` (`evaluate-stage1` for
    stage 1)."""


@dataclass
class LoggingConfig(Settings):
    """Where the series of training and the results of evaluation go, beside the files of the run directory.
    docs/training.md describes what is sent."""

    trackers: UniqueList[TrackerName] = field(default_factory=lambda: ["tensorboard"])
    """`tensorboard` writes event files into the directory of a stage; `wandb` (Weights & Biases) and `mlflow` send to
    the server that their own environment variables name. Those two need the extra `masp[trackers]`."""

    project: Text = "masp"
    """Project of W&B and experiment of MLflow that the run belongs to."""


@dataclass
class CheckpointConfig(Settings):
    """The artifacts that evaluation and prediction load, and that stage 2 builds on."""

    aspect: PathText | None = None
    """File of the aspect modules, written by stage 1 or a released `aspect.pth`, or what `masp export` wrote: its
    directory, or `hf://owner/name` of the Hugging Face Hub. null: those of this run's stage 1; `none`: no aspect
    modules."""

    soft_prompt: PathText | None = None
    """File of the soft prompt, written by stage 2 or a released `soft_prompt_….pt`, or what `masp export` wrote: its
    directory, or `hf://owner/name`. null: that of this run's stage 2; `none`: no soft prompt."""

    layout: Layout | None = None
    """Layout of a soft prompt in the released format, whose file does not contain it: `released` for published files.
    null for files written by stage 2, which contain it."""


@dataclass(kw_only=True)
class Config(Settings):
    """The configuration of every command."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1), Number] = 3407
    """Seed of everything random: initial values, order of samples, questions."""

    order_seed: Annotated[int, Field(ge=0, le=2**32 - 1), Number] | None = None
    """Seed of the order of the images, and of which are held out; null: `seed`. Runs that share it see the same images
    in the same order, so that they can be trained together."""

    output_dir: PathText = "outputs/run"
    """Run directory: checkpoints, logs, metrics, the resolved configuration."""

    questions: PathText = "configs/questions.yaml"
    """File of the question templates, YAML or JSON. `configs/questions-published.yaml` asks in the form of the
    published code, whose own `prompts.json` can be given too; docs/reproduce.md describes the forms."""

    aspect_definitions: PathText = SHIPPED
    """File that defines the aspects: their questions, their possible answers and how `masp annotate` answers them.
    docs/aspects.md describes it."""

    aspects: Annotated[UniqueList[Item], Field(examples=[["scene", "object"]])] = field(
        default_factory=lambda: list(load_aspects())
    )
    """Aspects in use, in the order of their tokens in the prompt: some of those in `aspect_definitions`, by default all
    of them; an empty list trains the soft prompt alone."""

    vlm: VlmConfig
    dataset: DatasetConfig
    cache: CacheConfig
    extract: ExtractConfig = field(default_factory=ExtractConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    annotate: AnnotateConfig = field(default_factory=AnnotateConfig)
    aspect_module: AspectModuleConfig = field(default_factory=AspectModuleConfig)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    engine: EngineConfig = field(default_factory=EngineConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
