"""Scores depend on nothing but sample and model: features cached or live, batch size, ranks, and kills in between."""

import hashlib
import json
import shutil
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import masp
from masp.cache.manifest import read_manifest
from masp.cache.reader import open_cache
from masp.config import load_config
from masp.data.questions import questions_of
from masp.errors import DataError
from masp.files.sealed import digest_of
from masp.results.ledger import read_records
from masp.results.ledger_format import Record, encode_line
from masp.results.probabilities.temperature import fit_temperature
from masp.results.records import read_maps, read_records_file
from masp.runtime.run_directory import noting_failure, read_status
from tests.images import make_config, make_dataset
from tests.runs import assert_same, numbers

NUM_TEST = 13


def records(directory: Path) -> list[Record]:
    return read_records(directory / "ledger")


def assert_same_records(found: list[Record], expected: list[Record]) -> None:
    assert [r.sample_key for r in found] == [r.sample_key for r in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.label, ours.prediction, ours.text) == (theirs.label, theirs.prediction, theirs.text)
        for a, b in ((ours.scores, theirs.scores), (ours.mean_scores, theirs.mean_scores)):
            assert a == (None if b is None else pytest.approx(b, abs=1e-5, rel=1e-6))


@pytest.fixture(scope="module")
def evaluate(commands, world, trained):
    """Evaluates what `trained` holds into a folder, by `num_ranks` processes one after another."""

    def run(output: Path, *overrides: str, num_ranks: int = 1, as_array: bool = False) -> list[str]:
        settings = world.settings(trained, f"evaluate.output_dir={output}", *overrides)
        ranks = [{"RANK": r, "WORLD_SIZE": num_ranks, "LOCAL_RANK": r} for r in range(num_ranks)]
        if as_array:  # numbered from 5, as Slurm lets them be
            names = ("ID", "COUNT", "MIN", "MAX")
            values = [(5 + r, num_ranks, 5, 4 + num_ranks) for r in range(num_ranks)]
            ranks = [{f"SLURM_ARRAY_TASK_{n}": v for n, v in zip(names, each, strict=True)} for each in values]
        return [
            commands.ok("evaluate", *settings, **(ranks[r] if num_ranks > 1 else {})).last_line
            for r in range(num_ranks)
        ]

    return run


@pytest.fixture(scope="module")
def expected(evaluate, tmp_path_factory) -> Path:
    """One process, batches of 4, features from the cache."""
    output = tmp_path_factory.mktemp("expected")
    evaluate(output)
    assert len({r.prediction for r in records(output)}) > 1  # or nothing would be compared
    return output


def test_the_lineage_names_what_a_paper_has_to_cite(commands, world, trained, expected, tmp_path):
    """Of an evaluation from the cache, live with a cache, and live without one."""
    commands.ok("evaluate", *world.settings(trained, f"evaluate.output_dir={tmp_path / 'live'}", "cache.dir=null"))
    commands.ok("evaluate", *world.settings(trained, "evaluate.stage=stage1", f"evaluate.output_dir={tmp_path / 'a'}"))
    config, manifest = load_config(world.config), read_manifest(world.folder / "cache")
    cached, live, aspects = (
        json.loads((directory / "metrics.json").read_text())["lineage"]
        for directory in (expected, tmp_path / "live", tmp_path / "a")
    )
    vlm = {"path": config.vlm.path, "revision": None, "weights": manifest.fingerprint.model["weights"]}
    splits = {name: {"num_images": split.num_samples, "num_quarantined": 0} for name, split in manifest.splits.items()}
    for lineage in (cached, live, aspects):
        assert lineage["vlm"] == vlm | {"fingerprint": manifest.fingerprint.digest}
        assert lineage["dataset"]["digest"] == manifest.dataset.digest and lineage["dataset"]["splits"] == splits
        assert lineage["dataset"]["cache"] == (None if lineage is live else manifest.index.sha256)
        assert lineage["questions"]["file"] == hashlib.sha256(Path(config.questions).read_bytes()).hexdigest()
        assert lineage["software"]["torch"] == lineage["features"]["machine"]["torch"]
        assert (lineage["precision"], lineage["software"]["masp"]) == ("fp32", masp.__version__)
    questions = questions_of(config)
    assert cached["questions"]["templates"] == {"emotion": digest_of(list(questions.target_templates))}
    assert aspects["questions"]["templates"]["scene"] == digest_of(list(questions.templates("scene")))
    assert list(aspects["questions"]["templates"]) == config.aspects


@pytest.mark.parametrize("scoring", ["likelihood", "generate"])
def test_cached_features_against_live_ones(evaluate, tmp_path, scoring):
    for source in ("cache", "live"):
        evaluate(
            tmp_path / source, f"evaluate.source={source}", f"evaluate.scoring={scoring}", "evaluate.num_workers=1"
        )
    assert_same_records(records(tmp_path / "live"), records(tmp_path / "cache"))
    found, theirs = (numbers(tmp_path / source / "metrics.json") for source in ("live", "cache"))
    assert_same(found | {"source": None}, theirs | {"source": None})


MATRIX = [(ranks, size, source) for ranks in (1, 2, 3) for size in (1, 7, 32) for source in ("cache", "live")]
QUICK = {(1, 1, "cache"), (2, 7, "live"), (3, 32, "cache")}


@pytest.mark.parametrize(
    ("num_ranks", "batch_size", "source"),
    [pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.full]) for case in MATRIX],
)
def test_neither_batch_size_nor_ranks_nor_source_change_a_score(
    evaluate, expected, tmp_path, num_ranks, batch_size, source
):
    more = (f"evaluate.batch_size={batch_size}", f"evaluate.source={source}")
    lines = evaluate(tmp_path, *more, num_ranks=num_ranks, as_array=num_ranks == 3)
    assert all(line.endswith("other ranks still have samples to score") for line in lines[:-1])
    assert lines[-1].endswith(str(tmp_path / "metrics.json"))
    assert sorted(p.name for p in (tmp_path / "ledger").glob("*.jsonl")) == [
        f"rank-{r}.jsonl" for r in range(num_ranks)
    ]
    assert_same_records(records(tmp_path), records(expected))
    found, theirs = (numbers(folder / "metrics.json") | {"source": None} for folder in (tmp_path, expected))
    assert_same(found, theirs)
    found, theirs = (read_records_file(folder / "records.h5") for folder in (tmp_path, expected))
    assert found.keys == theirs.keys and len(found.keys) == NUM_TEST and found.aspects == ()
    assert (found.labels, found.predictions) == (theirs.labels, theirs.predictions)
    assert np.abs(found.scores - theirs.scores).max() < 1e-5
    assert found.scores.tolist() == [list(r.scores) for r in records(tmp_path)]


@pytest.mark.full
def test_attention_maps_survive_a_kill_between_map_and_record(commands, world, trained, expected, tmp_path):
    settings = world.settings(
        trained, f"evaluate.output_dir={tmp_path}", "evaluate.attention=true", "evaluate.batch_size=5"
    )
    alone = tmp_path / "alone"
    commands.ok("evaluate", *settings, f"evaluate.output_dir={alone}")
    ledgers = tmp_path / "ledger"
    commands.ok("evaluate", *settings, RANK=0, WORLD_SIZE=2, LOCAL_RANK=0)
    ledger = ledgers / "rank-0.jsonl"
    ledger.write_bytes(ledger.read_bytes().rpartition(b"\n")[0][:-20])  # its map is there
    commands.ok("evaluate", *settings)
    assert_same_records(records(tmp_path), records(expected))
    keys = [r.sample_key for r in records(expected)]
    files = (tmp_path / "records.h5", alone / "records.h5")
    found, theirs = (read_maps(file, read_records_file(file), keys) for file in files)
    assert sorted(found) == keys
    cache = open_cache(world.folder / "cache")
    for key, maps in found.items():
        grid = cache.index.grid[cache.row_of(key)]
        assert list(maps) == ["scene", "object", "brightness"]
        for aspect, values in maps.items():
            assert values.shape == (grid[1] // 2, grid[2] // 2) and values.sum() == pytest.approx(1, abs=1e-5)
            assert np.allclose(values, theirs[key][aspect], atol=1e-6)
    refused = commands("evaluate", *settings, "evaluate.attention=false")
    assert refused.code == 2 and "attention is true there and not set here" in refused.stderr
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"


def test_stage_1_is_evaluated_per_aspect(commands, world, trained, tmp_path):
    settings = world.settings(trained, "evaluate.stage=stage1")
    only_of_stage2 = ("evaluate.attention=true", "evaluate.explain=all")
    out = f"evaluate.output_dir={tmp_path / 'one'}"
    said = commands.ok("evaluate", *settings, out, "evaluate.batch_size=7", *only_of_stage2).stderr
    assert "evaluate.attention = true: only evaluations of stage 2 keep where aspects look" in said
    assert "evaluate.explain = 'all': nothing is explained; only evaluations of stage 2 have predictions" in said
    assert not (tmp_path / "one" / "explanations").exists()
    for rank in range(2):
        ranks = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}
        more = (f"evaluate.output_dir={tmp_path / 'two'}", "evaluate.batch_size=1", "evaluate.source=live")
        done = commands.ok("evaluate", *settings, *more, **ranks)
    assert "brightness: " in done.stdout and "token F1" in done.stdout
    assert_same_records(records(tmp_path / "two"), records(tmp_path / "one"))
    one, two = (numbers(tmp_path / name / "metrics.json") for name in ("one", "two"))
    assert_same(one | {"source": None}, two | {"source": None})
    # two thirds of 13 pictures are annotated, each with three aspects
    assert one["num_samples"] == one["num_expected"] == 3 * 8 and one["coverage"] == 1
    assert {aspect: values["kind"] for aspect, values in one["per_aspect"].items()} == {
        "scene": "open", "object": "open", "brightness": "closed"
    }  # fmt: skip
    assert one["per_aspect"]["brightness"]["categories"] == ["very low", "low", "moderate", "high", "very high"]
    with h5py.File(tmp_path / "two" / "records.h5") as file:
        assert len(file["sample_key"]) == 24 and file["answers/brightness/scores"].shape == (8, 5)


def test_categories_that_were_not_trained_are_mapped_or_refused(commands, world, trained, tmp_path):
    others = make_dataset(tmp_path / "others", 3, 6)
    for split in ("train", "test"):
        (others / split / "anger").rename(others / split / "rage")
        (others / split / "joy").rename(others / split / "surprise")
    settings = world.settings(
        trained, f"dataset.root={others}", "evaluate.source=live", f"evaluate.output_dir={tmp_path / 'out'}"
    )
    refused = commands("evaluate", *settings)
    assert refused.code == 2 and "not trained on: rage, surprise" in refused.stderr
    done = commands.ok("evaluate", *settings, "evaluate.category_map=[rage=anger,surprise=]")
    assert " on 4 images of the 6 in the split (2 left out by the category map; " in done.last_line
    assert "2 of 6 images are left out by evaluate.category_map: surprise 2" in done.stderr
    metrics = numbers(tmp_path / "out" / "metrics.json")
    assert metrics["categories"] == ["anger", "awe"] and metrics["num_samples"] == metrics["num_expected"] == 4
    assert metrics["num_in_split"] == 6 and metrics["left_out"] == {"surprise": 2} and metrics["coverage"] == 4 / 6
    assert metrics["accuracy_of_split"] == metrics["num_correct"] / 6
    assert metrics["category_map"] == {"awe": "awe", "rage": "anger"}
    assert {r.label for r in records(tmp_path / "out")} == {"anger", "awe"}


def test_the_temperature_of_the_validation_split_corrects_probabilities_only(commands, world, trained, tmp_path):
    root = make_dataset(tmp_path / "images", 3, 9)
    held_out = shutil.copytree(root / "test", root / "val")
    for path in [path for path in held_out.rglob("*") if path.is_file()]:
        path.rename(path.with_name(f"val-{path.name}"))
    next(path for path in held_out.rglob("*") if path.is_file()).unlink()
    settings = world.settings(trained, f"dataset.root={root}", "evaluate.source=live")
    out = tmp_path / "out"
    commands.ok("evaluate", *settings, f"evaluate.output_dir={out}")
    before = numbers(out / "metrics.json")
    assert before["temperature_scaling"]["reason"].endswith("evaluate.validation=true scores it")
    done = commands.ok("evaluate", *settings, f"evaluate.output_dir={out}", "evaluate.validation=true")
    after = numbers(out / "metrics.json")
    scaling = after.pop("temperature_scaling")
    assert {**before, "temperature_scaling": None} == {**after, "temperature_scaling": None}  # nothing else changed
    theirs = read_records_file(out / "val" / "records.h5")
    labels = np.array([theirs.categories.index(label) for label in theirs.labels])
    assert scaling["temperature"] == pytest.approx(fit_temperature(theirs.scores, labels))
    assert (scaling["num_fitted"], scaling["reason"]) == (8, None) and scaling["scaled"]["nll"] < after["nll"]
    assert "evaluate: temperature " in done.stdout and done.last_line.endswith(f"{out / 'metrics.json'}")

    other = (f"evaluate.output_dir={out}", "evaluate.split=val")
    commands.ok("evaluate", *settings, *other[1:], f"evaluate.output_dir={tmp_path / 'val'}")
    reason = numbers(tmp_path / "val" / "metrics.json")["temperature_scaling"]["reason"]
    assert reason.startswith("this is the validation split itself")
    refused = commands("evaluate", *world.settings(trained, "evaluate.validation=true"))
    assert refused.code == 2 and "evaluate.validation = true: the dataset has no validation split" in refused.stderr


def test_other_wordings_and_a_probe_resume_and_are_summed_up(commands, world, trained, expected, tmp_path):
    settings = world.settings(trained, f"evaluate.output_dir={tmp_path}", "evaluate.prompts=all")
    first = commands.ok("evaluate", *settings, RANK=0, WORLD_SIZE=2, LOCAL_RANK=0)
    assert "behind one pass of the prefix" in first.stdout and not (tmp_path / "prompts.json").exists()
    commands.ok("evaluate", *settings, RANK=1, WORLD_SIZE=2, LOCAL_RANK=1)
    table = json.loads((tmp_path / "prompts.json").read_text())
    assert [name for name in table["rows"] if name.startswith("template")] == [f"template-{n}" for n in (2, 3, 4)]
    assert "order-2" in table["rows"] and len({row["question"] for row in table["rows"].values()}) == len(table["rows"])
    accuracies = [row["accuracy"] for row in table["rows"].values()]
    assert table["mean"] == pytest.approx(np.mean(accuracies)) and table["spread"] == pytest.approx(
        np.std(accuracies, ddof=1)
    )
    assert (table["lowest"], table["highest"]) == (min(accuracies), max(accuracies))
    answers = [
        [r.prediction for r in records(tmp_path / ("" if name == "first" else f"prompts/{name}"))]
        for name in table["rows"]
    ]
    assert table["agreement_of_all"] == np.mean([len(set(each)) == 1 for each in zip(*answers, strict=True)])
    assert table["rows"]["template-3"]["agreement"] == np.mean(np.array(answers[0]) == np.array(answers[2]))
    assert_same_records(records(tmp_path), records(expected))  # what is asked first is what is asked otherwise

    ledgers = {path: path.read_bytes() for path in tmp_path.rglob("ledger/*.jsonl")}
    probed = commands.ok("evaluate", *settings, "evaluate.linear_probe=true")
    assert {path: path.read_bytes() for path in tmp_path.rglob("ledger/*.jsonl")} == ledgers
    probe = json.loads((tmp_path / "linear_probe.json").read_text())
    assert (probe["num_samples"], probe["num_train"]) == (NUM_TEST, 18)
    assert f"linear probe on mean features of 18 training images: {probe['accuracy']:.4f}" in probed.stdout
    for setting in ("prompts=all", "validation=true", "linear_probe=true"):
        refused = commands("evaluate", *world.settings(trained, "evaluate.stage=stage1", f"evaluate.{setting}"))
        assert refused.code == 2 and f"error: evaluate.{setting.split('=')[0]} = " in refused.stderr


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_and_resumed_on_other_numbers_of_ranks(commands, world, trained, evaluate, expected, tmp_path):
    settings = world.settings(trained, f"evaluate.output_dir={tmp_path}", "evaluate.batch_size=1")
    ledger = tmp_path / "ledger" / "rank-0.jsonl"
    running = commands.start("evaluate", *settings)
    running.when(lambda: num_lines(ledger) >= 4)
    running.kill()
    assert running.wait().code == -9
    with open(ledger, "ab") as file:
        file.write(b'{"sample_key": "test/awe/te')  # as a kill within a write leaves it
    scored = num_lines(ledger) - 1
    assert 3 <= scored < NUM_TEST and not (tmp_path / "metrics.json").exists()

    second = commands.ok("evaluate", *settings, RANK=1, WORLD_SIZE=3, LOCAL_RANK=1)
    assert "other ranks still have samples to score" in second.stdout
    lines = evaluate(tmp_path, num_ranks=2)
    assert lines[-1].endswith("metrics.json")
    assert_same_records(records(tmp_path), records(expected))
    assert numbers(tmp_path / "metrics.json")["coverage"] == 1
    assert_same(numbers(tmp_path / "metrics.json"), numbers(expected / "metrics.json"))

    before = {path: path.read_bytes() for path in (tmp_path / "ledger").glob("*.jsonl")}
    again = commands.ok("evaluate", *settings)
    assert f"{NUM_TEST} of {NUM_TEST} samples are scored already" in again.stdout
    assert {path: path.read_bytes() for path in (tmp_path / "ledger").glob("*.jsonl")} == before
    other = commands("evaluate", *settings, "evaluate.scoring=generate")
    assert other.code == 2 and "scoring is" in other.stderr
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("finished", 2)  # what stands there is whole


def test_results_of_an_earlier_evaluation_do_not_outlive_its_ledger(commands, world, trained, expected, tmp_path):
    out = tmp_path / "evaluate"
    settings = world.settings(trained, f"evaluate.output_dir={out}", "evaluate.batch_size=1")
    names = ("metrics.json", "records.h5", "datasets.json")

    def restore():
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(expected, out)
        (out / "datasets.json").write_text("{}")

    def there():
        return [name for name in names if (out / name).exists()]

    restore()
    commands.ok("evaluate", *settings)
    assert there() == list(names)
    (out / "ledger" / "rank-0.jsonl").unlink()
    other = (*settings, "evaluate.scoring=generate")
    running = commands.start("evaluate", *other)
    running.when(lambda: (out / "ledger" / "rank-0.jsonl").exists())
    assert there() == []
    running.kill()
    running.wait()
    refused = commands("report", out)
    assert refused.code == 2 and "run `masp evaluate" in refused.stderr
    commands.ok("evaluate", *other)
    assert json.loads((out / "metrics.json").read_text())["scoring"] == "generate"

    restore()
    shutil.copy(out / "ledger" / "rank-0.jsonl", out / "ledger" / "rank-7.jsonl")
    refused = commands("evaluate", *settings)
    assert refused.code == 3 and "more than one record" in refused.stderr and there() == []
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3)


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_record_that_does_not_fit_the_data_is_refused_by_name(commands, world, trained, expected, tmp_path, stage):
    settings = world.settings(trained, f"evaluate.stage={stage}", f"evaluate.output_dir={tmp_path / 'out'}")
    if stage == "stage1":
        commands.ok("evaluate", *settings)
    else:
        shutil.copytree(expected, tmp_path / "out")
    ledger = tmp_path / "out" / "ledger" / "rank-0.jsonl"
    whole = ledger.read_text().splitlines()
    cases = [({"label": "sloth"}, "has label 'sloth'; the dataset says ")]
    if stage == "stage2":
        cases += [({"scores": None, "mean_scores": None}, "has no scores for 3")]
        cases += [
            ({"scores": None}, "has mean_scores without scores"),
            ({"mean_scores": [0.0]}, "has 1 mean_scores for 3"),
        ]
        cases += [({"prediction": None}, "predicts null, but")]
    for changes, problem in cases:
        lines = list(whole)
        changed = json.loads(lines[3]) | changes
        lines[3] = json.dumps(changed)
        ledger.write_text("\n".join(lines) + "\n")
        refused = commands("evaluate", *settings)
        assert refused.code == 3 and f"{ledger}, line 4: its checksum is not that of its content" in refused.stderr
        del changed["crc32"]
        lines[3] = encode_line(changed).decode().rstrip()  # as a process that checks nothing writes it
        ledger.write_text("\n".join(lines) + "\n")
        refused = commands("evaluate", *settings)
        assert refused.code == 3 and refused.stderr.count("\n") == 1, refused
        assert f"{ledger}, line 4: the record of sample {changed['sample_key']} {problem}" in refused.stderr
        assert not (tmp_path / "out" / "metrics.json").exists()
    ledger.write_text("\n".join(whole) + "\n")
    commands.ok("evaluate", *settings)


def test_ranks_on_different_machines_evaluate_live_together_and_it_is_noted(
    commands, world, trained, expected, tmp_path
):
    settings = world.settings(trained, f"evaluate.output_dir={tmp_path}", "evaluate.source=live")
    for rank, num_threads in enumerate((2, 1)):  # which belongs to the machine part of a fingerprint
        environment = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank}
        done = commands.ok("evaluate", *settings, f"extract.num_threads={num_threads}", **environment)
        assert ("num_threads was 1, is 2" in done.stderr) == (num_threads == 2)
    assert_same_records(records(tmp_path), records(expected))
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "features come from different machines: num_threads was 2, 1" in metrics["notes"]
    features = metrics["lineage"]["features"]
    assert [m["num_threads"] for m in (features["machine"], *features["other_machines"])] == [2, 1]


def test_images_that_cannot_be_read_live_cost_only_themselves(commands, world, trained, expected, tmp_path):
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(world.folder / "pictures", pictures)
    paths = sorted((pictures / "test").rglob("test.*"))
    broken = {path: path.read_bytes() for path in (paths[1], paths[4])}
    for path, data in broken.items():
        path.write_bytes(data[:300])
    settings = world.settings(trained, f"evaluate.output_dir={out}", "evaluate.source=live", f"dataset.root={pictures}")
    ended = commands("evaluate", *settings)
    assert ended.code == 3 and ended.stderr.count("error: ") == 1 and "Traceback" not in ended.stderr, ended
    assert f"error: {paths[1]} cannot be read: " in ended.stderr and f"; 2 of {NUM_TEST} images" in ended.stderr
    assert len(records(out)) == NUM_TEST - 2 and not (out / "metrics.json").exists()
    for path, data in broken.items():
        path.write_bytes(data)
    done = commands.ok("evaluate", *settings)
    assert f"{NUM_TEST - 2} of {NUM_TEST} samples are scored already" in done.stdout
    assert_same_records(records(out), records(expected))
    paths[0].write_bytes(paths[3].read_bytes())
    changed = commands("evaluate", *settings)
    assert changed.code == 2 and f"error: {paths[0]} has changed since it was scored; " in changed.stderr


def test_images_in_quarantine_are_counted_in_the_notes(commands, world, trained, tmp_path):
    from masp.evaluation.feed import open_feed
    from masp.extraction.job import extract

    root = make_dataset(tmp_path / "pictures", 3, 6, broken=True)
    config = make_config(root, world.folder / "vlm", tmp_path / "cache")
    extract(config)
    note = "1 image of the split is in quarantine, which extraction could not read: not evaluated"
    for config.evaluate.source in ("cache", "live"):
        assert open_feed(config).notes() == [note]
    cached, config.cache.dir = open_feed(config), None
    feed = open_feed(config)
    assert feed.notes() == ["1 image of the split cannot be read: not evaluated"]
    assert (feed.keys, feed.labels, feed.num_quarantined) == (cached.keys, cached.labels, 1)
    assert feed.category_counts("train") == cached.category_counts("train")
    settings = world.settings(
        trained, f"evaluate.output_dir={tmp_path / 'out'}", "evaluate.source=live", f"dataset.root={root}",
        f"cache.dir={tmp_path / 'cache'}", "evaluate.batch_size=6",
    )  # fmt: skip
    commands.ok("evaluate", *settings)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert note in metrics["notes"] and metrics["num_samples"] == 6
    with open(tmp_path / "cache" / "quarantine.jsonl", "ab") as file:
        file.write(b"\xff garbage\n")
    refused = commands("evaluate", *settings)
    assert refused.code == 3 and refused.stderr.count("\n") == 1, refused
    assert "quarantine.jsonl is damaged: its digest is not the manifest's" in refused.stderr


@pytest.mark.parametrize(
    "name", ["ledger", "ledger/rank-0.jsonl", "ledger/.rank-0.lock", "metrics.json", "status.json"]
)
def test_what_stands_in_the_way_of_results_is_one_line(commands, world, trained, tmp_path, name):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("words") if name == "ledger" else path.mkdir()
    ended = commands("evaluate", *world.settings(trained, f"evaluate.output_dir={tmp_path}"))
    assert ended.code == 2 and "Traceback" not in ended.stderr, ended
    assert ended.stderr.splitlines()[-1].startswith("error: ") and str(path) in ended.stderr.splitlines()[-1], ended


@pytest.mark.parametrize("garbage", [b"\xff{", b"[]", b'{"state": "failed"}', b""])
def test_a_status_that_is_none_does_not_hide_what_went_wrong(tmp_path, garbage):
    for error in (DataError("a shard is damaged"), ZeroDivisionError("a bug")):
        (tmp_path / "status.json").write_bytes(garbage)
        assert read_status(tmp_path) is None
        with pytest.raises(type(error), match=str(error)), noting_failure(tmp_path):
            raise error
        status = read_status(tmp_path)
        assert status.state == "failed" and str(error) in status.message


def _becomes_rank(monkeypatch, rank: int, size: int) -> None:
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("window", ["before it begins", "loading"])
def test_what_others_score_while_this_one_starts_is_not_scored_again(
    commands, world, trained, expected, tmp_path, monkeypatch, window
):
    """The same command before the slice is taken; then a rank of another division, and the same command again."""
    import masp.evaluation.run
    from masp.config import load_config
    from masp.evaluation.target import TargetEvaluation
    from masp.results.ledger import Ledgers

    settings = world.settings(trained, f"evaluate.output_dir={tmp_path}")
    load, begin = TargetEvaluation.load, Ledgers.begin
    loaded = []

    def meanwhile_the_same(*arguments):
        monkeypatch.setattr(Ledgers, "begin", begin)
        commands.ok("evaluate", *settings)
        return begin(*arguments)

    def meanwhile_another(evaluation, device, language):
        loaded.append(device)
        if window == "loading":
            other = commands.ok("evaluate", *settings, RANK=1, WORLD_SIZE=2, LOCAL_RANK=1)
            assert "other ranks still have samples to score" in other.stdout
            same = commands("evaluate", *settings)
            assert same.code == 2 and "another process is writing it" in same.stderr, same
            assert json.loads((tmp_path / "status.json").read_text())["state"] == "running"
        load(evaluation, device, language)

    monkeypatch.setattr(TargetEvaluation, "load", meanwhile_another)
    if window == "before it begins":
        monkeypatch.setattr(Ledgers, "begin", meanwhile_the_same)
    _becomes_rank(monkeypatch, 0, 1)
    assert masp.evaluation.run.evaluate(load_config(settings[1], settings[2:])) == tmp_path / "metrics.json"
    assert len(loaded) == (window == "loading")
    assert_same_records(records(tmp_path), records(expected))
    assert numbers(tmp_path / "metrics.json")["coverage"] == 1


def test_sigterm_stops_between_batches(commands, world, trained, expected, tmp_path):
    settings = world.settings(
        trained, f"evaluate.output_dir={tmp_path}", "evaluate.batch_size=1", "evaluate.num_workers=1"
    )
    running = commands.start("evaluate", *settings)
    running.when(lambda: num_lines(tmp_path / "ledger" / "rank-0.jsonl") >= 3)
    running.kill(15, group=True)
    started = time.monotonic()
    stopped = running.wait()
    assert stopped.code == 75 and time.monotonic() - started < 60
    assert stopped.stderr.splitlines()[-1].startswith("error: evaluate: stopped on request; ")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"
    commands.ok("evaluate", *settings)
    assert_same_records(records(tmp_path), records(expected))
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "finished"
