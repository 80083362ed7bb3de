"""`masp predict`: the emotion of pictures that a user names, with the probability of every category."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masp.artifacts.trained import load_trained
from masp.config import Config
from masp.data.images import load_image
from masp.data.questions import load_questions
from masp.errors import InputError
from masp.evaluation.emotion_scorer import Scorer
from masp.evaluation.emotions import machine_notes
from masp.extraction.encoder import Encoder
from masp.extraction.provenance import machine_part, model_part
from masp.report.attention import aspect_pictures, write_page
from masp.report.html import data_address, small
from masp.results.metrics import softmax
from masp.runtime.devices import pick_device
from masp.taxonomy import CATEGORY_SETS, normalise_category


@dataclass(frozen=True)
class _Named:
    image_path: Path


def predict(config: Config, images: Sequence[str], as_json: bool = False, attention: str | None = None) -> list[dict]:
    """Predict the emotions of pictures and print them.

    Args:
        config: names the VLM, the checkpoints and the categories.
        images: paths.
        as_json: print one JSON line per picture instead of a table.
        attention: write an HTML page to this file that shows where each aspect looked.

    Returns:
        Per readable picture `image`, `prediction` and `probabilities` (category -> share).

    Raises:
        InputError: a picture cannot be read (the others are printed first), nothing says what the categories are, or
            there are no aspect modules whose attention could be shown.
    """
    model = model_part(config)
    encoder = Encoder(config)
    trained = load_trained(config, encoder.vision.hidden_size, model)
    for note in machine_notes(trained, machine_part(config)):
        print(f"note: {note}", file=sys.stderr)
    if attention and trained.aspects is None:
        raise InputError(f"--attention {attention}: there are no aspect modules here to look with")
    categories = _categories(config, trained)
    config.evaluate.scoring = "likelihood"
    questions = load_questions(config.questions)
    scorer = Scorer(config, trained, questions, categories, pick_device(config.engine.device, "engine.device"))
    results, broken, entries = [], [], []
    stream = encoder.stream([_Named(Path(p)) for p in images], num_workers=0)
    for path, picture in zip(images, stream, strict=True):
        if picture.reason or picture.failure:
            broken.append(f"{path} ({picture.reason or picture.failure})")
            continue
        features = encoder.encode([picture])
        (score,) = scorer.score(features, [picture.grid])
        assert score.scores is not None  # scoring is by likelihood
        shares = softmax([score.scores])[0].tolist()
        results.append(
            {
                "image": path,
                "prediction": score.prediction,
                "probabilities": dict(zip(categories, shares, strict=True)),
            }
        )
        if attention:
            maps = dict(zip(config.aspects, scorer.attention(features, [picture.grid])[0], strict=True))
            entries.append(_shown(results[-1], maps, config))
        print(json.dumps(results[-1]) if as_json else _table(results[-1]))
    if attention and entries:
        print(f"attention: {write_page(attention, entries)}", file=sys.stderr)
    if broken:
        raise InputError(f"{len(broken)} of {len(images)} images cannot be read: {', '.join(broken)}")
    return results


def _shown(result: dict, maps: dict, config: Config) -> dict:
    """What the page shows of one picture."""
    image = load_image(result["image"], config.vlm.max_side)
    return {
        "name": result["image"],
        "picture": data_address(small(image)),
        "prediction": result["prediction"],
        "probabilities": result["probabilities"],
        "aspects": aspect_pictures(image, maps),
    }


def _categories(config: Config, trained) -> tuple[str, ...]:
    """What to choose from: as configured, as trained, or the named dataset's."""
    if config.dataset.categories:
        return tuple(normalise_category(category) for category in config.dataset.categories)
    if trained.soft_prompt_lineage and trained.soft_prompt_lineage.categories:
        return trained.soft_prompt_lineage.categories
    if config.dataset.name in CATEGORY_SETS:
        return CATEGORY_SETS[config.dataset.name]
    raise InputError(
        "dataset.categories = null: neither the soft prompt nor the dataset's name says what the categories are; "
        "give a list such as dataset.categories=[joy,fear]"
    )


def _table(result: dict) -> str:
    ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
    shares = "  ".join(f"{name} {share:.3f}" for name, share in ranked)
    return f"{result['image']}: {result['prediction']}\n    {shares}"
