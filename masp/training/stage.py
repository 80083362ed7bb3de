"""What a training stage is made of: its model at the start, what decides its course, the artefact it leaves."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import torch

from masp.artifacts.aspect_tokens import open_aspect_tokens
from masp.artifacts.lineage import Lineage, safe_name
from masp.artifacts.store import save_aspects, save_soft_prompt
from masp.artifacts.trained import load_trained_aspects, used_aspects
from masp.cache.fingerprint import fingerprint_digest
from masp.config import Config
from masp.config.schema import StageConfig
from masp.data.questions import load_questions
from masp.errors import InputError
from masp.extraction.provenance import open_matching_cache
from masp.files.sealed import digest_file
from masp.models.aspect_modules import AspectModules
from masp.models.forward import Stage1Model, Stage2Model, num_logits
from masp.models.soft_prompt import SoftPrompt, initial_soft_prompt
from masp.runtime.devices import torch_dtype
from masp.training.steps import HeldOutSteps, Steps, make_schedule
from masp.vlm.language import load_language_half
from masp.vlm.loading import Partition
from masp.vlm.prompt import load_prompt

COURSE = "num_epochs learning_rate warmup_ratio weight_decay max_grad_norm global_batch_size layout".split()
"""Settings of a stage that decide its course."""
VALIDATION = ["validate_every", "validation_size", "patience"]
"""The same where there is validation: it decides what is held out, when training ends, and which step is the result."""
COURSE_STAGE2 = ["num_soft_prompt_tokens", "soft_prompt_init"]


class Stage:
    """A stage of a run, before its model is built.

    Args:
        config: of the run.
        name: `stage1` or `stage2`.
        device: where the model will be, `cpu` or `cuda`.

    Raises:
        InputError: cache, questions, VLM or aspect modules are missing or do not fit, or there is nothing to learn.
    """

    def __init__(self, config: Config, name: str, device: str):
        self.config, self.name, self.device = config, name, device
        self.settings: StageConfig = getattr(config, name)
        self.folder = Path(config.output_dir) / name
        if name == "stage1" and not config.aspects:
            raise InputError("aspects = []: stage 1 trains aspect modules; name at least one aspect, or train stage 2")
        if device == "cpu" and config.engine.precision == "fp16":
            raise InputError("engine.precision = 'fp16': needs a GPU; valid on a CPU are bf16 and fp32")
        self.questions = load_questions(config.questions)
        self.cache, self.model_fields = open_matching_cache(config)
        self.schedule = make_schedule(self.cache, config, name)
        self.aspects = self.aspect_lineage = None
        if name == "stage2":
            hidden_size = self.cache.hidden_size
            self.aspects, self.aspect_lineage = load_trained_aspects(config, hidden_size, self.model_fields)
            num_queries = config.aspect_module.num_queries
            if self.aspects is not None and self.aspects.num_queries != num_queries:
                raise InputError(
                    f"aspect_module.num_queries = {num_queries}: the aspect modules in checkpoint.aspect have "
                    f"{self.aspects.num_queries}; give the same"
                )
        else:
            for aspect in config.aspects:
                self.questions.templates(aspect)  # one without questions is refused before anything is loaded

    def identity(self) -> dict:
        """All that decides the course of training; another number of ranks, workers or micro-batches does not."""
        config, settings = self.config, self.settings
        identity = {
            "stage": self.name,
            "seed": config.seed,
            "aspects": used_aspects(config, self.name),
            "vlm": fingerprint_digest(self.model_fields),
            "cache": self.cache.manifest.index.sha256,
            "categories": list(self.cache.categories),
            "questions": digest_file(Path(config.questions)),
            "engine.precision": config.engine.precision,
            "aspect_module.num_queries": config.aspect_module.num_queries,
        }
        if self.name == "stage1":
            identity["aspect_module.init_scale"] = config.aspect_module.init_scale
        else:
            identity["checkpoint.aspect"] = self.aspect_lineage.digest if self.aspect_lineage else None
            if not config.stage2.vision_features:  # said only then: what was trained before there was a choice goes on
                identity["stage2.vision_features"] = False
        names = COURSE if self.name == "stage1" else [*COURSE, *COURSE_STAGE2]
        identity |= {f"{self.name}.{name}": getattr(settings, name) for name in names}
        if settings.validate_every is not None:
            identity |= {f"{self.name}.{name}": getattr(settings, name) for name in VALIDATION}
        return identity | {"num_steps": self.schedule.num_steps}

    def build(
        self, rank: int, num_ranks: int, partition: Partition | None = None
    ) -> tuple[torch.nn.Module, Steps, HeldOutSteps | None]:
        """The model around the language half, with initial values drawn from the seed, and what a rank feeds it.

        Args:
            rank, num_ranks: this process among its fellows.
            partition: divides the language half over the ranks while it is loaded; all ranks call this then.

        Returns:
            The model, its training steps, and those of validation if there is any.
        """
        config = self.config
        prompt = load_prompt(config.vlm.path)
        language = load_language_half(
            config.vlm.path, torch_dtype(config.engine.precision), self.device, config.vlm.attention, partition
        )
        if config.engine.gradient_checkpointing:
            language.recompute_layers()
        torch.manual_seed(config.seed)
        if self.name == "stage1":
            module = config.aspect_module
            trained = AspectModules(config.aspects, language.hidden_size, module.num_queries, module.init_scale)
            model: Stage1Model | Stage2Model = Stage1Model(language, trained.to(self.device))
        else:
            settings = config.stage2
            count = num_logits(settings.layout, prompt, language.vocab_size, settings.num_soft_prompt_tokens)
            table = language.decoder.embed_tokens.weight
            with partition.whole([table]) if partition else nullcontext():
                soft_prompt = SoftPrompt(self._initial(table, prompt)).to(self.device)
            aspects = None if self.aspects is None else self.aspects.to(self.device)
            model = Stage2Model(language, aspects, soft_prompt, count)
        tokens = None
        if self.aspect_lineage:
            tokens = open_aspect_tokens(config, self.cache, self.aspect_lineage.digest)
        given = (self.cache, config, self.name, self.schedule, prompt, self.questions, rank, num_ranks, tokens)
        return model, Steps(*given), HeldOutSteps(*given) if self.schedule.held_out else None

    def _initial(self, embeddings: torch.Tensor, prompt) -> torch.Tensor:
        """Values of the soft prompt before the first step, from the word embeddings `[V, D]`."""
        settings = self.config.stage2
        question = self.questions.emotion_first(self.cache.categories)
        words = " ".join([*self.config.aspects, question]).replace("_", " ")
        return initial_soft_prompt(
            settings.soft_prompt_init,
            settings.num_soft_prompt_tokens,
            embeddings,
            prompt.ids(words),
            torch.Generator().manual_seed(self.config.seed),
        )

    @property
    def artefact(self) -> Path:
        """What the stage leaves."""
        name = "aspect" if self.name == "stage1" else f"soft_prompt_{safe_name(self.config.dataset.name)}"
        return self.folder / f"{name}.safetensors"

    def export(self, state: dict[str, torch.Tensor], identity: dict) -> None:
        """Write the artefact.

        Args:
            state: trained tensors in fp32 by name; moments in it are left aside.
            identity: for the record.
        """
        config = self.config
        lineage = Lineage(
            kind="aspect" if self.name == "stage1" else "soft_prompt",
            origin="trained",
            aspects=tuple(used_aspects(config, self.name)),
            aspect_digest=self.aspect_lineage.digest if self.aspect_lineage else None,
            model=self.model_fields,
            machine=self.cache.manifest.fingerprint.machine.fields,
            categories=self.cache.categories,
            cache=identity["cache"],
            dataset=safe_name(config.dataset.name),
            layout=self.settings.layout,
            settings=identity,
        )
        if self.name == "stage1":
            modules = AspectModules(config.aspects, self.cache.hidden_size, config.aspect_module.num_queries)
            modules.load_state_dict({n.removeprefix("aspect_modules."): t for n, t in state.items() if "#" not in n})
            save_aspects(modules, self.folder, lineage)
        else:
            save_soft_prompt(SoftPrompt(state["soft_prompt.weight"]), self.folder, lineage)
