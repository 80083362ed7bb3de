"""The model card of an exported model, in the format of the hub: YAML for machines, then text for people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from masp.artifacts.export_format import SCHEME, ExportRecord
from masp.artifacts.exported import OWN_VLM
from masp.data.questions import EMOTION
from masp.data.splits.subset import described
from masp.errors import one_line
from masp.files.text import shortened
from masp.inference.model import Model
from masp.inference.sharing.evaluation import Evaluated
from masp.results.metrics_file import MetricsFile

LICENSE = "unknown"
"""The hub's identifier of a license that nobody has stated."""
PLACE = f"{SCHEME}owner/name"
"""Stands in the card for the name of its repository, which `masp push` knows."""

_METHOD = "https://doi.org/10.1609/aaai.v40i3.37168"
_HUB_DATASET = re.compile(r"hf://(?:datasets/)?(?P<name>[\w.-]+/[\w.-]+)")
_SHOWN_SETTINGS = (
    "seed",
    "engine.precision",
    "vlm.quantization",
    "dataset.augment",
    "dataset.fraction",
    "dataset.shots",
    "dataset.subset_seed",
    "aspect_module.num_queries",
    "num_steps",
)

_LIMITS = """\
- **It recognizes the emotion that an image evokes in those who look at it**, as the annotators of its dataset saw it.
  It does not recognize what a person in the image feels, and it knows nothing of the person who looks.
- Do not judge people by it: not applicants, employees, pupils, patients, customers or defendants, neither the people in
  an image nor those who took or like it. In the European Union, the AI Act (Regulation (EU) 2024/1689, Article 5)
  prohibits AI systems that infer the emotions of a person at work and in education, but for medical and safety reasons.
  This card is no legal advice.
- What an image evokes depends on culture, age and experience. The labels are the opinion of a few annotators, most
  likely of one culture; people elsewhere may see another emotion, and one image may evoke several.
- Datasets of this kind come from the web: what is frequent there, the faces, places and styles that are rare, and the
  words by which images were searched all leave their bias in labels and predictions. So does the VLM.
- Probabilities compare the categories listed above with each other and nothing else. For images of other kinds than
  those of training, measure before you rely on them."""


def model_card(model: Model, record: ExportRecord, evaluated: Evaluated | None, license: str) -> str:
    """The text of `README.md`.

    Args:
        model: What is exported.
        record: Its `lineage.json`.
        evaluated: Its evaluation, if there is one.
        license: Identifier of the hub.
    """
    metrics = None if evaluated is None else evaluated.metrics
    metadata = _metadata(model, record, metrics, license).to_yaml()
    sections = [
        f"# {_title(model)}",
        _what(model, record),
        "## How to load it",
        _how(model, record),
        "## Results",
        *_results(metrics),
        "## Training",
        *_training(record),
        "## Limits of use",
        _LIMITS,
        "## License",
        _license(license, record),
        "## Lineage",
        *_lineage(record),
    ]
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(model: Model, record: ExportRecord, metrics: MetricsFile | None, license: str) -> ModelCardData:
    root = _HUB_DATASET.match(model.config.dataset.root)
    dataset = root["name"] if root else model.config.dataset.name
    name, results = _title(model), []
    if metrics is not None:
        of = {
            "task_type": "image-classification",
            "task_name": f"Recognition of {_target(model)}",
            "dataset_type": "imagefolder" if dataset == "folder" else dataset,
            "dataset_name": "images in directories" if dataset == "folder" else dataset,
            "dataset_split": metrics.split,
        }
        measured = (("accuracy", "Accuracy", metrics.accuracy), ("f1", "Macro F1", metrics.macro_f1))
        results = [
            EvalResult(metric_type=kind, metric_name=words, metric_value=value, **of)  # type: ignore[arg-type]
            for kind, words, value in measured
            if value is not None
        ]
    return ModelCardData(
        license=license,
        language="en",
        library_name="masp",
        pipeline_tag="image-classification",
        tags=["masp", "emotion-recognition", "soft-prompt", "vision-language-model"],
        base_model=record.vlm.name,
        base_model_relation="adapter" if record.vlm.name else None,
        datasets=None if dataset == "folder" else [dataset],
        metrics=["accuracy", "f1"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _target(model: Model) -> str:
    return "evoked emotion" if model.config.target.name == EMOTION else model.config.target.name


def _title(model: Model) -> str:
    trained_on = model.config.dataset.name
    return f"MASP: {_target(model)}" + ("" if trained_on == "folder" else f", trained on {trained_on}")


def _what(model: Model, record: ExportRecord) -> str:
    is_emotion = model.config.target.name == EMOTION
    held = [
        f"**aspect modules** for {_listed(model.aspects)}, which turn an image's vision features into a few tokens each"
        if record.aspect
        else "",
        "a **soft prompt**, learned vectors after which the VLM names one of the categories"
        if record.soft_prompt
        else "",
    ]
    parts = " and ".join(part for part in held if part) or "nothing that was trained: the settings of a VLM alone"
    known = "" if record.soft_prompt else " It has no soft prompt: the VLM answers the question unprompted."
    what = "the emotion that an image evokes" if is_emotion else f"the {_code(_target(model))} of an image"
    return (
        f"This model recognizes {what}: one of {_listed(model.categories)}. It consists of {parts}.{known} The "
        f"vision-language model (VLM) around which it works, {_vlm(record, model)}, is not part of it and was not "
        f"changed.\n\nIt was made with MASP {_plain(record.masp)}; the method is that of [Lee et al., AAAI "
        f"2026]({_METHOD})."
    )


def _vlm(record: ExportRecord, model: Model) -> str:
    vlm = record.vlm
    if vlm.name:
        at = f" at commit `{vlm.revision}`" if vlm.revision else ""
        return f"[{_plain(vlm.name)}](https://huggingface.co/{vlm.name}){at}"
    if model.config.vlm.path.endswith(OWN_VLM):
        return "the tiny one that comes with MASP for its demo"
    return f"a `{_plain(vlm.model_type)}`"


def _is_bound(record: ExportRecord) -> bool:
    """Whether something in it knows the VLM that it was trained around."""
    return any(part and part.get("origin") == "trained" for part in (record.aspect, record.soft_prompt))


def _how(model: Model, record: ExportRecord) -> str:
    needs_vlm = not record.vlm.name and not model.config.vlm.path.endswith(OWN_VLM)
    vlm = ', vlm="DIRECTORY_OR_NAME_OF_THE_VLM"' if needs_vlm else ""
    kept = "another one is refused" if _is_bound(record) else "nothing checks that, since it was imported"
    note = (
        "The VLM was a directory of the machine that exported this model, so name yours. It must have the same weights "
        f"(digest `{record.vlm.weights}`); {kept}.\n\n"
        if needs_vlm
        else ""
    )
    aspects = f"    checkpoint.aspect={PLACE}\n" if record.aspect else ""
    soft_prompt = f"    checkpoint.soft_prompt={PLACE}\n" if record.soft_prompt else ""
    return (
        f"{note}```python\nimport masp\n\n"
        f'model = masp.load("{PLACE}"{vlm})\n'
        'for prediction in model.predict(["photo.jpg"]):\n    print(prediction.label, prediction.probabilities)\n```\n'
        "\nA downloaded copy is loaded by its directory. In a configuration of MASP, these are its parts:\n\n"
        f"{aspects}{soft_prompt}"
    ).rstrip()


def _results(metrics: MetricsFile | None) -> list[str]:
    if metrics is None:
        return ["This model was not evaluated before it was exported."]
    images = f"{metrics.num_samples or 0:,} images"
    where = f"split `{metrics.split}` of `{_plain(metrics.dataset or '')}`"
    how = [f"scoring `{metrics.scoring}`", f"features from `{metrics.source}`"]
    how += [f"language model in `{metrics.quantization}`"] if metrics.quantization else []
    left = (
        f", of {metrics.num_in_split:,} in the split" if metrics.num_in_split not in (None, metrics.num_samples) else ""
    )
    rows = [
        ("accuracy", metrics.accuracy, metrics.accuracy_ci95),
        ("macro F1", metrics.macro_f1, metrics.macro_f1_ci95),
        ("balanced accuracy", metrics.balanced_accuracy, None),
        ("top-2 accuracy", metrics.top2_accuracy, None),
        ("negative log-likelihood, nats", metrics.nll, metrics.nll_ci95),
        ("calibration error (ECE; its interval is corrected for bias)", metrics.ece, metrics.ece_ci95),
    ]
    if guess := metrics.majority_class:
        rows.append(("accuracy of always answering the largest category", guess.accuracy, guess.accuracy_ci95))
    table = _table(
        ("metric", "value", "95 % interval"),
        [(name, f"{value:.4f}", _interval(interval)) for name, value, interval in rows if value is not None],
    )
    found = [f"On {where}, {images}{left}; {', '.join(how)}.", table]
    if metrics.per_category:
        lines = [
            (_plain(name), f"{each.precision:.3f}", f"{each.recall:.3f}", f"{each.f1:.3f}", f"{each.support:,}")
            for name, each in metrics.per_category.items()
        ]
        found.append(_table(("category", "precision", "recall", "F1", "images"), lines))
    if metrics.category_map:
        pairs = ", ".join(f"`{_plain(theirs)}` as `{_plain(ours)}`" for theirs, ours in metrics.category_map.items())
        found.append(f"Categories of the dataset counted: {pairs}.")
    return found


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4f} to {interval[1]:.4f}"


def _training(record: ExportRecord) -> list[str]:
    found = []
    for title, lineage in (("Aspect modules", record.aspect), ("Soft prompt", record.soft_prompt)):
        if lineage is None:
            found.append(f"{title}: none.")
        elif lineage.get("origin") == "imported":
            found.append(
                f"{title}: **imported** (`origin: imported`) from a file in the released format, which does not say "
                "what it was trained with, on or around. Nothing but its shape was checked."
            )
        else:
            found += [f"{title}, trained by MASP:", _settings_table(lineage)]
    return found


def _settings_table(lineage: Mapping[str, Any]) -> str:
    settings = lineage.get("settings") or {}
    rows = [("dataset", lineage.get("dataset")), ("layout", lineage.get("layout"))]
    rows += [
        (name, value)
        for name, value in sorted(settings.items())
        if name in _SHOWN_SETTINGS or name.startswith(("stage1.", "stage2."))
    ]
    if trained_on := described(settings):
        rows.append(("trained on", trained_on))
    for aspect, origins in sorted((lineage.get("answers") or {}).items()):
        given = [(origins.get(who), who) for who in ("people", "vlm", "pixels")]
        rows.append((f"answers: {aspect}", ", ".join(f"{count:,} by {who}" for count, who in given if count)))
    target = lineage.get("target")
    if isinstance(target, Mapping):
        rows += [("target", target.get("name")), ("labels", target.get("source"))]
    return _table(("setting", "value"), [(f"`{_plain(name)}`", f"`{_plain(value)}`") for name, value in rows])


def _license(license: str, record: ExportRecord) -> str:
    said = (
        "Nobody has stated under which license this model may be used; ask its owner."
        if license == LICENSE
        else f"The files of this model are under the license `{license}`, by whoever shares them."
    )
    of_vlm = f"[{_plain(record.vlm.name)}](https://huggingface.co/{record.vlm.name})" if record.vlm.name else "the VLM"
    return f"{said} The licenses of {of_vlm} and of the dataset apply besides."


def _lineage(record: ExportRecord) -> list[str]:
    rows = [("weights of the VLM", f"`{record.vlm.weights}`")]
    for title, lineage in (("aspect modules", record.aspect), ("soft prompt", record.soft_prompt)):
        if lineage is not None:
            rows.append((f"{title} ({lineage.get('origin')})", f"`{_plain(lineage.get('digest'))}`"))
            data = lineage.get("cache") or lineage.get("dataset_digest")
            rows += [(f"features of the {title}", f"`{_plain(data)}`")] if data else []
    rows += [(f"`{name}`", f"`{file.sha256}`") for name, file in sorted(record.files.items())]
    refused = "MASP refuses a soft prompt with other aspect modules than its own, and both with another VLM. "
    return [
        f"{refused if _is_bound(record) else ''}`lineage.json` has all of this, and `metrics.json` the evaluation.",
        _table(("what", "SHA-256"), rows),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell for cell in line)} |" for line in lines)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_code(name) for name in names)


def _code(name: str) -> str:
    return f"`{_plain(name)}`"


def _plain(value: Any) -> str:
    """A value on one line, without characters that mean something in Markdown's code or tables."""
    text = shortened(one_line(str(value)), 80)
    return text.replace("`", "'").replace("|", "/").replace("<", "‹").replace(">", "›")
