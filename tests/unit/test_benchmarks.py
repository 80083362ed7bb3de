"""The benchmarks run, at sizes for which their figures mean nothing."""

import json

import numpy as np
import pytest

from benchmarks import annotated, demo_answers, explanations, own_aspects, scale, scale_ledgers, scale_merge
from benchmarks.cache import main as cache_main
from benchmarks.evaluation import main as evaluation_main
from benchmarks.headers import write_images
from benchmarks.learning_curve import members
from benchmarks.predict import main as predict_main
from benchmarks.rows import main as rows_main
from benchmarks.serve import main as serve_main
from benchmarks.sizes import METHODS
from benchmarks.sizes import settings_of as settings_of_size
from benchmarks.sizes import table as table_of_sizes
from masp.config import load_aspects, load_config
from masp.data.keys import sample_key
from masp.demo.world.factors import ASPECTS, EMOTIONS, FACTORS, LOGITS, Annotation, draw_scene, posterior
from masp.demo.world.write_dataset import write_demo_data
from masp.files.typed import decode
from masp.plan.headers.reading import read_sizes
from masp.results.explanations.averages import averages_of
from masp.results.explanations.explanation import AspectExplanation, Explanation
from masp.results.explanations.explanations_file import ExplanationsFile, image_entry, write_explanations
from masp.results.ledger_format import Record
from masp.sweep.axes import read_members
from tests.tiny import make_tokenizer

TINY = "--rounds 1 --samples 6 --tokens 10 --hidden 32 --shards 2 --images 3 --side 70 --width 64 --depth 1 --rows 1000"


@pytest.mark.full
def test_cache(tmp_path, capsys, monkeypatch, repository):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert cache_main([*TINY.split(), "--dir", str(tmp_path), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["reading"]["cold"]["ratio"] > 0 and found["reading"]["warm"]["ratio"] > 0
    assert found["extraction"]["ratio"] > 0 and found["index"]["rows"] == 1000
    text = capsys.readouterr().out
    for words in ("reading, cold", "reading, warm", "extraction", "index, 1,000 rows", ">= 0.7", "< 200 MB"):
        assert words in text
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] in ([], ["home"])  # it cleans up


def test_evaluation(tmp_path, capsys, monkeypatch, repository):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "tokenizer").mkdir()
    make_tokenizer(tmp_path / "tokenizer")
    sizes = "--rounds 1 --threads 1 --images 2 --slow-images 1 --hidden 64 --layers 1 --vocabulary 500"
    sizes += " --width 64 --height 48"
    arguments = ["--tokenizer", tmp_path / "tokenizer", "--dir", tmp_path, "--json", tmp_path / "found.json"]
    assert evaluation_main([*sizes.split(), *map(str, arguments)]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert set(found["seconds_per_image"]) == {"masp", "live generate", "one at a time", "published"}
    assert "target >= 10" in capsys.readouterr().out


@pytest.mark.full
def test_predict(tmp_path, capsys, monkeypatch, repository):
    monkeypatch.chdir(repository)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "tokenizer").mkdir()
    make_tokenizer(tmp_path / "tokenizer")
    sizes = "--rounds 1 --images 5 --num-workers 1 --hidden 64 --layers 1 --vocabulary 500 --width 64 --height 48"
    arguments = ["--tokenizer", tmp_path / "tokenizer", "--dir", tmp_path, "--json", tmp_path / "found.json"]
    assert predict_main([*sizes.split(), *map(str, arguments)]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["ratio"] > 0
    assert "target >= 0.9" in capsys.readouterr().out


@pytest.mark.full
def test_own_aspects(tmp_path, capfd, monkeypatch, repository):
    monkeypatch.chdir(repository)
    sizes = ["--seeds", "1", "--num-train", "48", "--num-test", "16", "--dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["own_aspects.py", *sizes])
    assert own_aspects.main() == 0
    found = json.loads((tmp_path / "own_aspects.json").read_text())
    assert list(found["accuracy"]) == ["six", "seven", "six, no features", "seven, no features"]
    assert set(found["answers"]) - set(ASPECTS) == {"weather"}
    assert found["best_possible"]["all factors"] > found["best_possible"]["without weather"] + 0.1
    assert "| seven minus six |" in capfd.readouterr().out


@pytest.mark.full
def test_annotated(tmp_path, capfd, monkeypatch, repository):
    monkeypatch.chdir(repository)
    sizes = ["--seeds", "1", "--num-train", "48", "--num-test", "16", "--dir", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["annotated.py", *sizes])
    assert annotated.main() == 0
    found = json.loads((tmp_path / "annotated.json").read_text())
    assert [(each["side"], each["seed"]) for each in found] == [("people", 1), ("vlm", 1)]
    for each in found:
        low, high = each["ci95"]
        assert 0 <= low <= each["accuracy"] <= high <= 1
        metrics = json.loads((tmp_path / f"{each['side']}-1" / "evaluate" / "metrics.json").read_text())
        answers = metrics["lineage"]["aspect"]["answers"]
        assert set(answers) == set(load_aspects(annotated.DEFINITIONS))
        # each side learned from what its name says, of the same features
        assert all(bool(of["people"]) == (each["side"] == "people") for of in answers.values())
    shards = [sorted((tmp_path / f"cache-{side}" / "shards").glob("*.tar")) for side in ("people", "vlm")]
    assert shards[0] and all(one.samefile(other) for one, other in zip(*shards, strict=True))
    assert "| people | " in (shown := capfd.readouterr().out) and "ratio of the means" in shown


def test_what_answers_allow_is_compared_with_what_is_reached():
    """Scores that are half the world's logits have weights of one half; one wrong answer costs what it says."""
    rng, order = np.random.default_rng(3), [EMOTIONS.index(name) for name in sorted(EMOTIONS)]
    scenes = {sample_key("test", f"image/{n}.jpg"): draw_scene(rng) for n in range(60)}
    answers, emotions = [], []
    for number, (key, scene) in enumerate(scenes.items()):
        logits = sum(LOGITS[f][index] for f, index in zip(FACTORS, scene.labels, strict=True))
        best = EMOTIONS[int(logits.argmax())]
        emotions.append(Record(key, best, best, scores=tuple(0.5 * logits[order] - 3)))
        for aspect in ASPECTS:
            label = scene.label(aspect)
            if label is not None:
                wrong = aspect == "scene" and number == 7
                answers.append(Record(f"{key}#{aspect}", label, "nothing of the kind" if wrong else label))
    found = demo_answers.compare(scenes, answers, emotions)
    assert found.num_wrong.tolist() == [float(n == 7) for n in range(60)]
    assert np.allclose(found.reached, found.possible) and np.allclose(found.weights, 0.5) and found.explained > 0.999
    right = found.num_wrong == 0
    assert np.allclose(found.by_answers[right], found.possible[right])
    (unknown,) = (scene.labels for number, scene in enumerate(scenes.values()) if number == 7)
    without = [-1 if name == "scene" else index for name, index in zip(FACTORS, unknown, strict=True)]
    assert found.by_answers[7] == pytest.approx(posterior(unknown)[posterior(without).argmax()])
    lines = demo_answers.table(found)
    assert lines[2].startswith("| any | 60 | ") and [line[:6] for line in lines[3:5]] == ["| 0 | ", "| 1 | "]


def test_explanations_are_compared_with_the_world(repository, tmp_path, capsys, monkeypatch):
    """Contributions that are the world's own weights agree with it, and those of another aspect do not."""
    root, run = tmp_path / "data", tmp_path / "run"
    write_demo_data(root, 1, 40, seed=5)
    rows = json.loads((root / "test.json").read_text())
    weights = {}
    for emotion, image, annotation in rows:
        scene = decode(Annotation, (root / annotation).read_bytes(), annotation).to_scene()
        weights[sample_key("test", image)] = emotion, explanations.world_weights(scene, emotion, ASPECTS)
    path = run / "evaluate" / "explanations" / "explanations.json"
    path.parent.mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["explanations.py", "--run", str(run), "--root", str(root)])

    def compared(shift):
        found, labels = [], [emotion for emotion, _ in weights.values()]
        for key, (emotion, values) in weights.items():
            moved = [*values[shift:], *values[:shift]]
            said = tuple(AspectExplanation(a, "x", 0.5, v, v) for a, v in zip(ASPECTS, moved, strict=True))
            shares = {name: float(name == emotion) for name in EMOTIONS}
            found.append(Explanation(key, emotion, 1.0, shares, said, 0.0, 0.0))
        content = ExplanationsFile(
            version=1, categories=EMOTIONS, aspects=ASPECTS, explained="all", num_images=40, num_scored=40,
            split="test", averages=averages_of(found, labels, ASPECTS, EMOTIONS), records="", has_attention=False,
            images=tuple(image_entry(e, label, [None] * 6) for e, label in zip(found, labels, strict=True)),
            notes=(), lineage={},
        )  # fmt: skip
        write_explanations(path, content)
        return explanations.main(), capsys.readouterr().out

    code, out = compared(0)
    assert code == 0 and "most weight: 1.000 of" in out and "contributions: 1.000" in out
    code, out = compared(1)
    assert code == 1 and "most weight: 1.000 of" not in out


@pytest.mark.parametrize("accuracies", [(0.5, 0.5), (0.5, 0.4)])
def test_the_table_of_annotated_says_whether_the_ratio_is_reached(accuracies):
    runs = [
        {"side": side, "seed": seed, "accuracy": accuracy + seed / 100}
        for side, accuracy in zip(annotated.SIDES, accuracies, strict=True)
        for seed in (1, 2)
    ]
    people, vlm, _, verdict = annotated.table(runs, [1, 2]).splitlines()[2:]
    assert people == "| people | 0.510 | 0.520 | 0.515 |"
    assert vlm.endswith(f"| {accuracies[1] + 0.015:.3f} |")
    assert verdict.endswith("at least 0.95" if accuracies[1] == 0.5 else "BELOW 0.95")


def test_an_unknown_part_is_refused(capsys):
    with pytest.raises(SystemExit):
        cache_main(["writing"])
    assert "invalid choice" in capsys.readouterr().err


def test_headers(tmp_path):
    paths = write_images(tmp_path, 40)
    sizes, broken = read_sizes(paths, 1024, num_processes=1)
    assert not broken and len(sizes) == 40
    # turned upright, and never longer than 1024
    assert sizes[:2].tolist() == [[1024, 768], [768, 1024]] and sizes.max() == 1024


def test_scale_merge(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["scale_merge.py", "--shards", "3"])
    assert scale_merge.main() == 0
    assert [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()][2:4] == ["merged", "content_findings"]


def test_the_table_of_scale_says_what_was_not_measured():
    small, large = scale.Cost(50.0, 6.0, 10**9, 7.0), scale.Cost(400.0, 61.0, 10**9, 7.0)
    table = scale.table({"plan": {0.1: small, 1.0: large}, "merge": {0.1: small}}).splitlines()
    assert table[0].startswith("| step | 330,000 images") and "3,300,000 images" in table[0]
    assert table[2:] == [
        "| merge | 6.0, 50.0; 1.00 | not measured |  |  |",
        "| plan | 6.0, 50.0; 1.00 | 61.0, 400.0; 1.00 | 8.0 | exceeded |",
    ]


def test_scale_ledgers(tmp_path, capsys):
    size = scale_ledgers.prepare(tmp_path / "made", 400, 7)
    for name, step in scale_ledgers.STEPS:
        step(size)
        assert name
    assert "images per second" in capsys.readouterr().out


def test_rows(tmp_path, capsys):
    arguments = [
        "--rows",
        "70",
        "--files",
        "3",
        "--group",
        "9",
        "--dir",
        str(tmp_path),
        "--json",
        str(tmp_path / "f.json"),
    ]
    assert rows_main(arguments) == 0
    found = json.loads((tmp_path / "f.json").read_text())
    assert {kind: figures["rows"] for kind, figures in found.items()} == {"parquet": 70, "arrow": 70, "tars": 70}
    assert "less than 30 s and 1 GB" in capsys.readouterr().out


@pytest.mark.parametrize("size", [140, 1000, 4000])
def test_sizes(size, repository, monkeypatch):
    monkeypatch.chdir(repository)
    found = {method: load_config("configs/demo.yaml", settings_of_size(method, size)) for method in METHODS}
    assert found["demo"] == load_config("configs/demo.yaml")
    assert (found["published"].stage2.learning_rate, found["published"].stage2.num_epochs) == (5e-6, 1)
    rule = found["rule"]
    assert rule.stage2.validation_size == size // 10 and rule.stage2.validate_every
    assert 1.0 < rule.stage2.learning_rate < 2.0 and rule.stage1.num_epochs >= 3  # no setting of the demo survives
    rate, epochs = rule.stage2.learning_rate, rule.stage2.num_epochs
    for method, factor in (("half-reach", 0.5), ("twice-reach", 2), ("half-steps", epochs / (epochs // 2))):
        other = load_config("configs/demo.yaml", settings_of_size(method, size))
        assert other.stage2.learning_rate == pytest.approx(factor * rate, rel=0.05)
    runs = [{"method": "rule", "size": size, "accuracy": 0.5}, {"method": "rule", "size": size, "accuracy": 0.7}]
    assert table_of_sizes(runs)[-1] == f"| {size:,} | 0.600 (0.500, 0.700) |  |  |"


@pytest.mark.full
def test_serve(tmp_path, capsys, monkeypatch, repository):
    monkeypatch.chdir(repository)
    sizes = "--rounds 1 --images 8 --clients 4 --width 96 --height 64"
    assert serve_main([*sizes.split(), "--dir", str(tmp_path), "--json", str(tmp_path / "found.json")]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["ratio"] > 0 and found["largest_difference"] < 1e-5  # every answer was compared
    assert "serve / predict" in capsys.readouterr().out


def test_the_learning_curve_has_a_member_for_each_size_and_seed_with_more_epochs_for_fewer_images(tmp_path):
    path = tmp_path / "members.txt"
    path.write_text("\n".join(members([0.05, 0.5, 1.0], [1, 2], 4)))
    found = [each.values for each in read_members(str(path))]
    assert [(each["dataset.fraction"], each["seed"]) for each in found] == [
        (fraction, seed) for fraction in (0.05, 0.5, 1.0) for seed in (1, 2)
    ]
    assert [each["stage1.num_epochs"] for each in found[::2]] == [20, 10, 5]
    assert [each["stage2.num_epochs"] for each in found[::2]] == [12, 6, 3]
