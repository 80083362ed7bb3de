"""Measures the tiny VLM: naming the aspects of unseen images, and the emotion given the words for the aspects."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration

from masp.data.questions import Questions
from masp.demo.tiny_vlm.batch import Packer, embed, hidden_states
from masp.demo.tiny_vlm.examples import EMOTION, Example, Examples, Turn
from masp.demo.tiny_vlm.image_pool import draw_pool
from masp.demo.tiny_vlm.model import encode
from masp.demo.world.factors import ASPECTS, EMOTIONS, SENSES, draw_scene, posterior, words
from masp.demo.world.factors import Scene as DemoScene


def load_demo_vlm(directory: Path):
    """Load the model, in fp32, and the tokenizer of a demo VLM."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(
        str(directory), dtype=torch.float32, trust_remote_code=False
    ).eval()
    return model.requires_grad_(False), AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False)


def aspect_accuracy(model, tokenizer, questions: Questions, count: int, name: str = "unseen") -> dict[str, float]:
    """For each aspect, the share of images with that aspect whose greedily decoded answer is exactly right.

    Args:
        count: Number of images to draw; none of them was used in pretraining.
        name: Name from which the images are drawn.
    """
    packer, hits, totals = Packer(tokenizer), dict.fromkeys(ASPECTS, 0), dict.fromkeys(ASPECTS, 0)
    for pixels, labels in draw_pool(count, name).values():
        for start in range(0, len(pixels), 50):
            features, (_, rows, columns) = encode(model, torch.from_numpy(pixels[start : start + 50]))
            scenes = [DemoScene(tuple(row.tolist())) for row in labels[start : start + 50]]
            asked = [[a for a in ASPECTS if scene.label(a) is not None] for scene in scenes]
            examples = [
                Example(
                    image=k,
                    grid=(rows // 2, columns // 2),
                    turns=[Turn(a, questions.aspect_first(a), words(scene.shown(a))) for a in asked[k]],
                )
                for k, scene in enumerate(scenes)
            ]
            packed = packer.pack(examples)
            hidden, _ = hidden_states(model, packed, embed(model, packed, features), packer.opening)
            right = iter((model.lm_head(hidden).argmax(-1) == packed.targets).tolist())
            for k, scene in enumerate(scenes):
                for aspect in asked[k]:  # greedy decoding gives the answer if each of its tokens is the most likely one
                    length = len(packer.ids(words(scene.shown(aspect)))) + 1
                    correct = [next(right) for _ in range(length)]  # consume all of them, even after a wrong one
                    hits[aspect] += all(correct)
                    totals[aspect] += 1
    return {aspect: hits[aspect] / totals[aspect] for aspect in ASPECTS}


def caption_accuracy(model, tokenizer, questions: Questions, count: int, seed: int = 0) -> tuple[float, float]:
    """Expected accuracy of the language model when a caption with the true aspects replaces the image.

    The caption is followed by the word that says that the evoked emotion is meant, as a soft prompt can say it.

    Returns:
        The accuracy, and the best possible accuracy on the same captions.
    """
    rng = np.random.default_rng([seed, 99])
    writer, packer = Examples(tokenizer, questions, rng, model.config.text_config.vocab_size), Packer(tokenizer)
    before = writer.plain_slots("sense", SENSES[0], 1)
    turn = Turn(EMOTION, questions.target_first(EMOTIONS), EMOTIONS[0], before=before)
    reached = best = 0.0
    for start in range(0, count, 50):
        scenes = [draw_scene(rng).only(ASPECTS) for _ in range(min(50, count - start))]
        chances = posterior(np.array([scene.labels for scene in scenes]))
        examples = [Example(slots=writer.caption(scene), turns=[turn]) for scene in scenes]
        packed = packer.pack(examples)
        hidden, _ = hidden_states(model, packed, embed(model, packed), packer.opening)
        first = hidden[::2]  # an emotion is one token, followed by the end token
        guesses = model.lm_head(first)[:, packer.emotions].argmax(-1).numpy()
        reached += chances[np.arange(len(scenes)), guesses].sum()
        best += chances.max(-1).sum()
    return float(reached / count), float(best / count)
