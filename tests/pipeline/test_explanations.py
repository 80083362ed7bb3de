"""Explanations of a split: the same bytes for any number of ranks and kills, and numbers that separate calls give."""

import json
import shutil
import statistics

import numpy as np
import pytest

import masp
from masp.results.explanations.explanations_file import FILE, read_explanations
from masp.results.records import FILE as RECORDS
from masp.results.records import read_maps, read_records_file
from tests.pipeline.test_evaluation import num_lines

NUM_TEST, PER_IMAGE = 13, 5 + 1 + 3
"""Images; records of each: the prompts of the whole, without each of three aspects, without all, without the vision
features, and three answers."""


@pytest.fixture(scope="module")
def settings(world, trained):
    def made(output, *more):
        return world.settings(trained, f"evaluate.output_dir={output}", "evaluate.explain=all", *more)

    return made


@pytest.fixture(scope="module")
def expected(commands, settings, tmp_path_factory):
    """One process."""
    output = tmp_path_factory.mktemp("explained")
    done = commands.ok("evaluate", *settings(output))
    assert "evaluate: explanations\n" in done.stdout and f"{NUM_TEST} images explained: {output}" in done.stdout
    return output


@pytest.fixture(scope="module")
def found(expected):
    return read_explanations(expected / "explanations" / FILE)


def files(output):
    return [(output / "explanations" / name).read_bytes() for name in (FILE, RECORDS)]


def test_each_image_is_explained_once(expected, found, world):
    whole = read_records_file(expected / RECORDS)
    assert [image.key for image in found.images] == whole.keys and found.num_images == found.num_scored == NUM_TEST
    assert [image.prediction for image in found.images] == whole.predictions
    assert [image.label for image in found.images] == whole.labels
    ledger = expected / "explanations" / "ledger" / "rank-0.jsonl"
    assert num_lines(ledger) == 1 + NUM_TEST * PER_IMAGE
    shown = read_records_file(expected / "explanations" / RECORDS)
    assert shown.digest == found.records and shown.aspects == found.aspects == ("scene", "object", "brightness")
    assert np.abs(shown.scores - whole.scores).max() < 1e-5
    for maps in read_maps(expected / "explanations" / RECORDS, shown, shown.keys).values():
        assert all(one.sum() == pytest.approx(1, abs=1e-5) for one in maps.values())


@pytest.mark.parametrize("num_ranks", [pytest.param(2, marks=pytest.mark.full), 3])
def test_any_number_of_ranks_gives_the_same_bytes(commands, settings, expected, tmp_path, num_ranks):
    for rank in reversed(range(num_ranks)):
        done = commands.ok("evaluate", *settings(tmp_path), RANK=rank, WORLD_SIZE=num_ranks, LOCAL_RANK=rank)
        assert (tmp_path / "explanations" / FILE).exists() == (rank == 0)
    assert done.last_line.endswith(str(tmp_path / "metrics.json"))
    assert files(tmp_path) == files(expected)


def test_killed_at_any_time_and_resumed_it_gives_the_same_bytes(commands, settings, expected, tmp_path):
    ledger = tmp_path / "explanations" / "ledger" / "rank-0.jsonl"
    for wanted in (2, 40):  # in the first image, and further on
        running = commands.start("evaluate", *settings(tmp_path))
        running.when(lambda wanted=wanted: num_lines(ledger) >= wanted)
        running.kill()
        assert running.wait().code == -9
    assert num_lines(ledger) < 1 + NUM_TEST * PER_IMAGE and not (tmp_path / "explanations" / FILE).exists()
    # a kill within the write of an image leaves some of its records, and the beginning of one
    lines = ledger.read_bytes().split(b"\n")[:-1]
    ledger.write_bytes(b"\n".join(lines[:-4]) + b"\n" + lines[-4][:50])
    commands.ok("evaluate", *settings(tmp_path), RANK=1, WORLD_SIZE=2, LOCAL_RANK=1)
    commands.ok("evaluate", *settings(tmp_path))
    assert files(tmp_path) == files(expected)
    before = ledger.read_bytes()
    again = commands.ok("evaluate", *settings(tmp_path))
    assert f"{NUM_TEST * PER_IMAGE} of {NUM_TEST * PER_IMAGE} prompts are scored already" in again.stdout
    assert ledger.read_bytes() == before and files(tmp_path) == files(expected)


def test_removing_a_part_changes_the_score_as_its_contribution_says(
    commands, world, trained, expected, found, tmp_path
):
    whole = read_records_file(expected / RECORDS)
    for part in ("scene", "object", "brightness", "vision_features"):
        out = tmp_path / part
        commands.ok("evaluate", *world.settings(trained, f"evaluate.without=[{part}]", f"evaluate.output_dir={out}"))
        left = read_records_file(out / RECORDS)
        for row, image in enumerate(found.images):
            best = found.categories.index(image.prediction)
            change = whole.scores[row][best] - left.scores[row][best]
            says = image.vision_features
            if part in found.aspects:
                entry = image.aspects[found.aspects.index(part)]
                says = entry.contribution
                logs = [
                    np.log(np.exp(r.scores[row] - r.scores[row].max()).sum()) + r.scores[row].max()
                    for r in (whole, left)
                ]
                in_logs = change - (logs[0] - logs[1])
                assert entry.log_probability_change == pytest.approx(in_logs, abs=1e-5)
            assert says == pytest.approx(change, abs=1e-5) and abs(says) > 1e-6
    both = commands("evaluate", *world.settings(trained, "evaluate.without=[scene]", "evaluate.explain=all"))
    assert both.code == 2 and both.last_line == "" and "evaluate.explain = 'all': " in both.stderr


def test_one_image_is_explained_as_from_python(expected, found, world, trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    model = masp.load(run, device="cpu")
    image = found.images[3]
    ours = model.explain(world.folder / "pictures" / image.key.replace("%2E", "."))
    theirs = found.explanation(image)
    assert ours.category == theirs.category and ours.probability == pytest.approx(theirs.probability, abs=1e-4)
    # without a dataset, only definitions say what may be answered: of a level, the same
    assert ours.aspects[2].answer == theirs.aspects[2].answer
    for a, b in zip(ours.aspects, theirs.aspects, strict=True):
        assert a.contribution == pytest.approx(b.contribution, abs=1e-4)


def test_answers_are_those_of_stage_1_and_averages_those_of_the_images(commands, world, trained, found, tmp_path):
    commands.ok("evaluate", *world.settings(trained, "evaluate.stage=stage1", f"evaluate.output_dir={tmp_path}"))
    lines = [json.loads(line) for line in (tmp_path / "ledger" / "rank-0.jsonl").read_bytes().splitlines()[1:]]
    said = {line["sample_key"]: line for line in lines}
    num_annotated = 0
    for image in found.images:
        for aspect, entry in zip(found.aspects, image.aspects, strict=True):
            line = said.get(f"{image.key}#{aspect}")
            assert (entry.annotated is None) == (line is None)
            if line is not None:
                num_annotated += 1
                assert (entry.answer, entry.annotated) == (line["prediction"], line["label"])
                if line["scores"]:
                    shares = np.exp(np.array(line["scores"]) - max(line["scores"]))
                    assert entry.probability == pytest.approx(1 / shares.sum(), abs=1e-5)
    assert num_annotated == len(said) > NUM_TEST
    for place, aspect in enumerate(found.aspects):
        values = [image.aspects[place].contribution for image in found.images]
        assert found.averages.signed.aspects[aspect].mean == pytest.approx(statistics.fmean(values), abs=1e-9)
        assert found.averages.absolute.aspects[aspect].mean == pytest.approx(
            statistics.fmean(map(abs, values)), abs=1e-9
        )
        for category in found.categories:
            some = [v for v, image in zip(values, found.images, strict=True) if image.prediction == category]
            mean = found.averages.by_prediction[category].aspects[aspect]
            assert (mean is None) == (not some)
            assert mean is None or mean.mean == pytest.approx(statistics.fmean(some), abs=1e-9)


def test_live_features_explain_alike(commands, settings, found, tmp_path):
    commands.ok("evaluate", *settings(tmp_path, "evaluate.source=live"))
    live = read_explanations(tmp_path / "explanations" / FILE)
    assert [image.key for image in live.images] == [image.key for image in found.images]
    for ours, theirs in zip(live.images, found.images, strict=True):
        assert ours.prediction == theirs.prediction
        assert [a.contribution for a in ours.aspects] == pytest.approx(
            [a.contribution for a in theirs.aspects], abs=1e-4
        )


def test_the_report_shows_explanations_and_names_them_if_they_are_damaged(commands, expected, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(expected, run / "evaluate")
    commands.ok("report", run, "--tables", tmp_path / "tables", "--latex", tmp_path / "paper")
    html = (run / "report.html").read_text()
    assert "<h2>Explanations</h2>" in html and "<script" not in html
    assert (tmp_path / "tables" / "explanations.csv").read_text().count("\n") == 1 + NUM_TEST
    assert {"contributions.csv", "contributions.tex"} <= {path.name for path in (tmp_path / "tables").iterdir()}

    for name in ("contributions", "contributions-by-prediction", "contributions-by-label"):
        assert f"{{figures/{name}.pdf}}" in (tmp_path / "paper" / "main.tex").read_text()
        for suffix, start in (("svg", b"<?xml"), ("pdf", b"%PDF")):
            assert (tmp_path / "paper" / "figures" / f"{name}.{suffix}").read_bytes().startswith(start)
    assert (
        f"For {NUM_TEST} images, all that were scored, the contribution"
        in (tmp_path / "paper" / "methods.md").read_text()
    )

    path = run / "evaluate" / "explanations" / FILE
    path.write_bytes(path.read_bytes().replace(b'"answer": "', b'"answer": "x', 1))
    commands.ok("report", run)
    damaged = (run / "report.html").read_text()
    assert "<h2>Explanations</h2>" not in damaged
    (line,) = [line for line in damaged.splitlines() if "Damaged, so not on this page" in line]
    assert str(path) in line and "masp evaluate" in line

    shutil.rmtree(run / "evaluate" / "explanations")
    commands.ok("report", run, "--tables", tmp_path / "others")
    assert "Explanations" not in (run / "report.html").read_text()
    assert not list((tmp_path / "others").glob("*contributions*")) + list((tmp_path / "others").glob("explanations*"))
