"""The published procedure as a baseline: one image at a time, running the encoder every time.

Extraction, training and evaluation as plain loops: decode the image, run the encoder, one sample per step, gradient
checkpointing, logits at every position; in stage 2 a gradient and an optimizer step for the whole embedding table; in
evaluation `generate`. Each class counts the operations of its own procedure. The recomputation of layers in the
backward pass is not counted, as usual for model FLOPs utilization.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from masp.vlm.cost.flops import LanguageShape, encoder_flops, language_flops, shapes
from masp.vlm.features import ImageLayout

MAX_NEW_TOKENS = 4


def load_model(path: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load the whole VLM from a directory, with transformers alone."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, attn_implementation="sdpa").to(device)


def attention_flops(width: int, num_queries: int, num_tokens: int, gradient: bool) -> float:
    """FLOP of `torch.nn.MultiheadAttention` with one head, which projects every feature to a key and a value.

    Args:
        width: D.
        num_queries: N.
        num_tokens: T.
        gradient: Whether the module is trained; the features need no gradient.
    """
    queries = 2 * 2.0 * num_queries * width**2
    features = 2 * 2.0 * num_tokens * width**2
    attention = 2 * 2.0 * num_queries * num_tokens * width
    return 3 * queries + 2 * features + 3 * attention if gradient else queries + features + attention


def new_token_flops(language: LanguageShape, before: int) -> float:
    """FLOP of one more token after `before` cached ones, with its logits."""
    with_it = language_flops(language, prefix=before, suffix=1, num_logits=1, gradient=False)
    return with_it - language_flops(language, prefix=before, suffix=0, gradient=False)


class PublishedEncoder:
    """Computes features, one image at a time.

    Args:
        config: Run configuration.
        model: The VLM, whole or its vision half.
    """

    def __init__(self, config, model: nn.Module):
        from masp.vlm.preprocessor import load_preprocessor

        self.model, self.vlm = model, config.vlm
        self.preprocessor = load_preprocessor(config.vlm.path, config.vlm.min_pixels, config.vlm.max_pixels)
        parameter = next(model.parameters())
        self.device, self.dtype = parameter.device, parameter.dtype
        self.layout: ImageLayout
        """How the last image lies in a prompt."""

    @torch.no_grad()
    def __call__(self, path: Path) -> Tensor:
        """Features of an image, `[T, D]`."""
        from masp.data.images import load_image

        image = load_image(path, self.vlm.max_side, transparency=self.vlm.transparency)
        inputs, self.layout = self.preprocessor(image)
        pixels, grid = inputs["pixel_values"].to(self.device, self.dtype), inputs["image_grid_thw"].to(self.device)
        found = self.model.get_image_features(pixels, grid)
        return torch.cat(list(found.pooler_output))


class PublishedTraining:
    """Trains a stage, one sample at a time.

    Args:
        config: Run configuration.
        name: `stage1` or `stage2`.
        model: The whole VLM on its device and in its dtype; it is modified.
    """

    def __init__(self, config, name: str, model: nn.Module):
        from masp.data.datasets import dataset_of
        from masp.data.questions import questions_of
        from masp.vlm.prompt import load_prompt

        self.config, self.name = config, name
        dataset = dataset_of(config)
        self.categories = dataset.categories
        self.samples = [s for s in dataset.samples if s.split == "train"]
        self.prompt, self.questions = load_prompt(config.vlm.path), questions_of(config)
        self.encoder = PublishedEncoder(config, model)
        self.model, self.device = model, self.encoder.device
        self.vision_shape, self.language_shape = shapes(model.config)
        model.requires_grad_(False)
        model.train()
        model.activation_checkpointing_enable({"use_reentrant": False})
        width, count = model.config.text_config.hidden_size, config.aspect_module.num_queries
        with self.device:
            kind = {"dtype": self.encoder.dtype}
            self.queries = {a: nn.Parameter(torch.randn(1, count, width, **kind)) for a in config.aspects}
            self.attention = {a: nn.MultiheadAttention(width, 1, batch_first=True, **kind) for a in config.aspects}
        self.table = model.get_input_embeddings().weight
        self.tied = model.get_output_embeddings().weight is self.table
        if name == "stage1":
            trained = [*self.queries.values(), *(p for m in self.attention.values() for p in m.parameters())]
        else:
            self.table.requires_grad_(True)
            mask = torch.zeros(len(self.table), 1, device=self.device, dtype=self.table.dtype)
            mask[-config.stage2.num_soft_prompt_tokens :] = 1
            self.table.register_hook(lambda gradient: gradient * mask)
            trained = [self.table]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01)
        self.number = self.num_tokens = 0
        self.flops = 0.0
        """Like `num_tokens`, the total over all samples so far."""

    def _tokens(self, aspect: str, features: Tensor) -> Tensor:
        return self.attention[aspect](self.queries[aspect], features, features)[0][0]

    def __call__(self) -> int:
        """Train on one sample: an image and, in stage 1, one of its aspects. Returns 1."""
        from masp.models.sequence import ASPECT, FEATURE, IGNORED, SOFT, build_sequence

        config, aspects = self.config, list(self.config.aspects)
        sample = self.samples[self.number // len(aspects) % len(self.samples)]
        aspect = aspects[self.number % len(aspects)]
        self.number += 1
        features = self.encoder(sample.image)[None]
        first = self.name == "stage1"
        question = self.questions.aspect_first(aspect) if first else self.questions.target_first(self.categories)
        answer = sample.answers[aspect] if first else sample.category
        count, soft = config.aspect_module.num_queries, config.stage2.num_soft_prompt_tokens
        sequence = build_sequence(
            self.prompt, question, answer, layout="released",
            num_aspect_tokens=count if first else count * len(aspects),
            image=None if first else self.encoder.layout, num_soft_tokens=0 if first else soft,
        )  # fmt: skip
        embeds = self.model.get_input_embeddings()(sequence.ids.to(self.device))
        if first:
            values = {ASPECT: self._tokens(aspect, features)}
        else:
            with torch.no_grad():
                tokens = torch.cat([self._tokens(a, features) for a in aspects])
            values = {ASPECT: tokens, FEATURE: features[0], SOFT: self.table[-soft:].repeat(2, 1)}
        for kind, value in values.items():
            places = (sequence.kind == kind).nonzero(as_tuple=True)[0].to(self.device)
            embeds = embeds.index_put((places,), value)
        embeds = embeds[None].requires_grad_() if not embeds.requires_grad else embeds[None]
        hidden = self.model.model.language_model(
            inputs_embeds=embeds, position_ids=sequence.positions[:, None].to(self.device), use_cache=False
        ).last_hidden_state
        logits = self.model.lm_head(hidden).float()  # at every position
        labels = sequence.labels[None].to(self.device)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.num_tokens += len(sequence)
        self.flops += self._flops(len(sequence), features.shape[1])
        return 1

    def _flops(self, length: int, num_features: int) -> float:
        language, first = self.language_shape, self.name == "stage1"
        count = self.config.aspect_module.num_queries
        modules = 1 if first else len(self.config.aspects)
        total = encoder_flops(self.vision_shape, self.encoder.layout.grid)
        total += modules * attention_flops(language.width, count, num_features, gradient=first)
        total += language_flops(language, suffix=length, num_logits=length, gradient=True)
        if (
            self.tied and not first
        ):  # the table is also the vocabulary projection, which therefore has a weight gradient
            total += 2.0 * language.width * language.vocabulary * length
        return total


class PublishedScoring:
    """Evaluates one image at a time, with transformers alone.

    Args:
        config: Run configuration; `checkpoint` names files in the released formats.
        question: Question to ask.
        model: The whole VLM on its device and in its dtype.
    """

    def __init__(self, config, question: str, model: nn.Module):
        from transformers import AutoTokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self.model = model.eval()
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(config.vlm.path)
        self.tokenizer = AutoTokenizer.from_pretrained(config.vlm.path)
        hidden = model.config.text_config.hidden_size
        self.embed = model.get_input_embeddings()
        self.where = {"device": self.embed.weight.device, "dtype": self.embed.weight.dtype}
        aspects = torch.load(config.checkpoint.aspect, weights_only=True)
        self.queries = {aspect: query.to(**self.where) for aspect, query in aspects["q_view"].items()}
        self.attention = {}
        for aspect, state in aspects["cross_attn"].items():
            self.attention[aspect] = nn.MultiheadAttention(hidden, num_heads=1, batch_first=True)
            self.attention[aspect].load_state_dict(state)
            self.attention[aspect].to(**self.where)
        rows = torch.load(config.checkpoint.soft_prompt, weights_only=True).values()
        self.soft_prompt = torch.stack(list(rows))[None].to(**self.where)
        self.before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        self.after = f"{question}<|im_end|>\n<|im_start|>assistant\n"
        self.vision_shape, self.language_shape = shapes(model.config)
        self.num_tokens = 0
        self.flops = 0.0
        """Like `num_tokens`, the total over all images so far."""

    def _words(self, text: str) -> Tensor:
        ids = self.tokenizer(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        return self.embed(ids.to(self.where["device"]))

    @torch.inference_mode()
    def __call__(self, paths: Sequence[Path]) -> list[str]:
        """The generated line for each image."""
        from PIL import Image
        from transformers import DynamicCache

        lines = []
        for path in paths:
            image = Image.open(path).convert("RGB")
            image.thumbnail((1024, 1024))
            inputs = self.processor(images=[image], return_tensors="pt")
            grid = inputs["image_grid_thw"]
            pixels = inputs["pixel_values"].to(**self.where)
            seen = self.model.get_image_features(pixels, grid.to(pixels.device)).pooler_output[0][None]
            tokens = [self.attention[a](query[None], seen, seen)[0] for a, query in self.queries.items()]
            parts = [self._words(self.before), *tokens, seen, self._words("<|vision_end|>")]
            parts += [self.soft_prompt, self._words(self.after)]
            embeds, cache, ids = torch.cat(parts, dim=1), DynamicCache(), []
            length = embeds.shape[1]
            while len(ids) < MAX_NEW_TOKENS:
                states = self.model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
                logits = self.model.lm_head(states.last_hidden_state)  # at every position
                ids.append(int(logits[0, -1].argmax()))
                if ids[-1] == self.tokenizer.eos_token_id:
                    break
                embeds = self.embed(torch.tensor([[ids[-1]]], device=pixels.device))
            lines.append(self.tokenizer.decode(ids, skip_special_tokens=True).split("\n")[0].strip())
            self.num_tokens += length + len(ids) - 1
            self.flops += self._flops(tuple(int(n) for n in grid[0]), seen.shape[1], length, len(ids))
        return lines

    def _flops(self, grid: tuple[int, int, int], num_features: int, length: int, num_new: int) -> float:
        language = self.language_shape
        total = encoder_flops(self.vision_shape, grid)
        for query in self.queries.values():
            total += attention_flops(language.width, len(query), num_features, gradient=False)
        total += language_flops(language, suffix=length, num_logits=length, gradient=False)
        return total + sum(new_token_flops(language, length + n) for n in range(num_new - 1))
