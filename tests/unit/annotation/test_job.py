"""The job in one process: which images are asked, what is stored, what is refused, what is resumed."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from masp.annotation import job as annotation_job
from masp.annotation.asking import VlmAnnotator
from masp.annotation.job import annotate, forget_answers
from masp.cache.annotations.manifest import read_stored
from masp.cache.reader import open_cache, open_matching_cache
from masp.data.datasets import dataset_of
from masp.errors import DataError, FilesInUse, InputError, StoppedEarly
from masp.extraction.extend import extend
from masp.runtime.stop import StopFlag
from tests.annotated import changed, copy_cache, files_of


def rows_of(config, aspect=None):
    table = pq.read_table(Path(config.cache.dir) / "annotations").to_pylist()
    return [row for row in table if aspect in (None, row["aspect"])]


def test_the_directory_reads_as_one_table_of_all_answers(config):
    keys = set(open_cache(config.cache.dir).index.keys)
    rows = rows_of(config)
    assert {row["aspect"] for row in rows} == {"weather", "mood", "things", "light", "color", "scene"}
    for aspect in ("weather", "mood", "things", "light", "color"):  # nobody annotated them: every image
        assert {row["key"] for row in rows_of(config, aspect)} == keys
    assert {row["origin"] for row in rows_of(config, "weather")} == {"vlm"}
    assert {row["question"] for row in rows_of(config, "weather")} == {"Which weather is it?"}
    assert {(row["origin"], row["question"], row["vlm"], row["confidence"]) for row in rows_of(config, "light")} == {
        ("pixels", None, None, 1.0)
    }
    digest = open_cache(config.cache.dir).manifest.fingerprint.digest
    assert {row["vlm"] for row in rows_of(config, "mood")} == {digest}
    assert all(row["answer"] in ("rain", "fog", "sunshine", None) for row in rows_of(config, "weather"))
    assert all(0 < row["confidence"] <= 1 for row in rows)


def test_images_without_a_scene_are_asked_only_if_they_have_no_aspect_at_all(config):
    # two thirds of the images have a scene; the others have none of the aspects in use
    own = open_cache(config.cache.dir).answers()
    keys = open_cache(config.cache.dir).index.keys
    lacking = {key for key, answers in zip(keys, own, strict=True) if "scene" not in answers}
    assert {row["key"] for row in rows_of(config, "scene")} == lacking != set()


def test_a_listed_aspect_is_asked_wherever_it_is_missing_and_people_win(fresh, tmp_path):
    config = changed(fresh, tmp_path, "annotate.aspects=[scene]", "aspects=[scene,weather]")
    annotate(config)
    cache, _ = open_matching_cache(config)
    own = open_cache(config.cache.dir).answers()
    for mine, seen in zip(own, cache.answers(), strict=True):
        assert seen.get("scene") in (mine["scene"],) if "scene" in mine else ("sea side", "street")
    assert set(read_stored(Path(config.cache.dir))) == {"scene"}


def test_levels_are_those_of_the_images(config):
    from masp.annotation.pixels import level_of
    from masp.config import load_aspects
    from masp.data.images import load_image

    images = {sample.key: sample.image for sample in dataset_of(config).samples}
    aspects = load_aspects(config.aspect_definitions)
    for name in ("light", "color"):
        for row in rows_of(config, name):
            assert row["answer"] == level_of(aspects[name], load_image(images[row["key"]], 512))


def test_nothing_is_asked_again_and_equal_calls_give_equal_bytes(config, fresh, capsys, monkeypatch):
    annotate(fresh)
    assert files_of(fresh) == files_of(config)
    monkeypatch.setattr(annotation_job, "VlmAnnotator", None)  # nothing may be asked
    capsys.readouterr()
    annotate(fresh)
    assert "masp train --stage stage1" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_tasks_in_any_order_and_a_stop_give_the_same_bytes(config, fresh, tmp_path, workers):
    fresh = changed(fresh, tmp_path, f"annotate.num_workers={workers}")
    stop = StopFlag()
    stop.set()
    with pytest.raises(StoppedEarly, match="keeps the answers of finished shards"):
        annotate(fresh, num_tasks=3, task_index=1, stop=stop)
    for task in (2, 0, 1):
        assert not (Path(fresh.cache.dir) / "annotations" / "scene.parquet").exists()
        annotate(fresh, num_tasks=3, task_index=task)
    assert files_of(fresh) == files_of(config)


def test_a_lost_part_or_file_is_made_again(config, fresh):
    annotate(fresh)
    directory = Path(fresh.cache.dir) / "annotations"
    (part,) = list(directory.glob(".parts/weather-*/train-00000.json"))
    part.write_text(part.read_text().replace("vlm", "VLM"))  # damaged
    (directory / "weather.parquet").unlink()
    annotate(fresh)
    assert files_of(fresh) == files_of(config)


def test_after_an_extension_only_the_new_images_are_asked(config, tmp_path, monkeypatch):
    root = tmp_path / "images"
    shutil.copytree(config.dataset.root, root)
    own = changed(copy_cache(config, tmp_path), tmp_path, f"dataset.root={root}")
    annotate(own)
    directory = Path(own.cache.dir) / "annotations"
    before = {path: path.stat().st_mtime_ns for path in directory.glob(".parts/*/*.json")}
    old = set(open_cache(own.cache.dir).index.keys)
    old_rows = {name: rows_of(own, name) for name in read_stored(directory.parent)}
    for number in range(4):  # nobody annotated them
        shutil.copy(next(iter((root / "train" / "awe").glob("*.png"))), root / "train" / "joy" / f"new{number}.png")
    extend(own)
    new = set(open_cache(own.cache.dir).index.keys) - old
    with pytest.raises(InputError, match="the cache has changed or it is another one; `masp annotate` again answers"):
        open_matching_cache(own)

    asked, answer = [], VlmAnnotator.answer

    def counted(vlm, samples, aspects):
        asked.extend((sample.key, aspect.name) for sample in samples for aspect in aspects)
        return answer(vlm, samples, aspects)

    monkeypatch.setattr(VlmAnnotator, "answer", counted)
    annotate(own)
    assert sorted(asked) == sorted((key, name) for key in new for name in ("weather", "mood", "things", "scene"))
    assert len(new) == 4
    after = {path: path.stat().st_mtime_ns for path in directory.glob(".parts/*/*.json")}
    assert after.items() > before.items() and {path.name[:8] for path in after.keys() - before.keys()} == {"train-g1"}
    for name, rows in old_rows.items():
        assert [row for row in rows_of(own, name) if row["key"] in old] == rows
    assert {row["key"] for row in rows_of(own, "weather")} == old | new
    open_matching_cache(own)  # and training finds them

    # the same as for a cache that never was smaller
    found = files_of(own)
    forget_answers(own, list(old_rows))
    annotate(own)
    assert files_of(own) == found


def test_two_processes_do_not_do_the_same(fresh, tmp_path):
    import subprocess
    import sys

    directory = Path(fresh.cache.dir) / "annotations"
    directory.mkdir()
    hold = (
        "import sys; from pathlib import Path; from masp.files.locks import locked\n"
        "with locked(Path(sys.argv[1]), [(0, 1 << 40)], key='x') as free: print(free, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold, directory / ".lock"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "True\n"
        with pytest.raises(FilesInUse, match="another annotation is writing there"):
            annotate(fresh)
        other.communicate("")


def test_answers_that_the_dataset_has_by_now_are_people_s(config, tmp_path):
    """The aspect was defined after extraction; two images are annotated with it."""
    root = tmp_path / "images"
    shutil.copytree(config.dataset.root, root)
    fresh = changed(copy_cache(config, tmp_path), tmp_path, f"dataset.root={root}", "aspects=[weather,scene]")
    notes = sorted((root / "annotation").rglob("train*.json"))[:2]
    for note in notes:
        note.write_text(json.dumps({**json.loads(note.read_text()), "weather": "Snow"}))
    annotate(fresh)
    rows = rows_of(fresh, "weather")
    assert [row["answer"] for row in rows if row["origin"] == "dataset"] == ["snow"] * 2
    assert {row["origin"] for row in rows} == {"dataset", "vlm"} and len(rows) < len(open_cache(fresh.cache.dir))
    cache, _ = open_matching_cache(fresh)
    assert cache.origins["weather"].people == 2


def test_where_the_dataset_is_gone_a_warning_says_that_its_annotations_are_not_used(config, fresh, tmp_path, caplog):
    gone = changed(fresh, tmp_path, f"dataset.root={tmp_path / 'gone'}", "annotate.aspects=[weather,scene]")
    annotate(gone)
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line.startswith("annotations that the dataset may have beside those in the cache are not used: dataset.root")
    assert str(tmp_path / "gone") in line and "\n" not in line
    assert rows_of(fresh, "weather") == rows_of(config, "weather")

    # where people annotated something before extraction, nothing is looked for
    caplog.clear()
    forget_answers(gone, ["scene"])
    annotate(changed(gone, tmp_path, "annotate.aspects=[scene]"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("override", "field", "old", "new"),
    [
        ("annotate.batch_size=4", "annotate.batch_size", "3", "4"),
        ("engine.precision=bf16", "engine.precision", "fp32", "bf16"),
        ("vlm.attention=eager", "attention", "sdpa", "eager"),
    ],
)
def test_other_settings_are_refused_by_name_and_value(config, tmp_path, override, field, old, new):
    with pytest.raises(InputError) as error:
        annotate(changed(config, tmp_path, override))
    text = str(error.value)
    assert field in text and old in text and new in text and "\n" not in text


def test_other_questions_and_answers_are_refused(config, tmp_path):
    definitions = Path(config.aspect_definitions).read_text()
    for old, new in (("Which weather is it?", "How is the weather?"), ("rain, fog", "rain, snow")):
        (tmp_path / "other.yaml").write_text(definitions.replace(old, new))
        other = changed(config, tmp_path, f"aspect_definitions={tmp_path / 'other.yaml'}")
        for use in (annotate, open_matching_cache):
            with pytest.raises(InputError, match=r"aspect weather was made with (definition\.)?(question|answers) = "):
                use(other)


def test_answers_of_another_cache_are_refused(config, fresh, tmp_path):
    # another VLM: the answers are copied to its cache
    from tests.tiny import make_vlm

    vlm = make_vlm(tmp_path / "other-vlm", seed=5)
    other = changed(fresh, tmp_path, f"vlm.path={vlm}", f"cache.dir={tmp_path / 'other'}")
    from masp.extraction.job import extract

    extract(other)
    shutil.copytree(Path(config.cache.dir) / "annotations", tmp_path / "other" / "annotations")
    for use in (annotate, open_matching_cache):
        with pytest.raises(
            InputError, match=r"aspect \w+ was made with vlm\.weights = .* but here it is|with weights = "
        ):
            use(other)


def test_a_cut_file_is_damage(config, fresh):
    annotate(fresh)
    path = Path(fresh.cache.dir) / "annotations" / "mood.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"mood\.parquet is damaged: its digest is not the manifest's; `masp annotate"):
        open_matching_cache(fresh)
    annotate(fresh)  # writes it again, from the parts
    assert files_of(fresh) == files_of(config)


def test_forgotten_answers_are_gone(config, fresh, capsys):
    annotate(fresh)
    forget_answers(fresh, ["weather", "scene", "absent"])
    assert "there were no answers" in capsys.readouterr().out
    assert set(read_stored(Path(fresh.cache.dir))) == {"mood", "things", "light", "color"}
    annotate(fresh)
    assert files_of(fresh) == files_of(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["annotate.aspects=[sound]"],
            r"annotate\.aspects = .*'sound' is not defined in .*aspects\.yaml, which has weather",
        ),
        (["annotate.aspects=[silent]"], r"annotate\.aspects = .*annotate: never for silent"),
        (["cache.dir=null"], r"cache\.dir = null"),
        (["cache.dir=nowhere"], r"cache\.dir: nowhere does not exist; make it with `masp extract`"),
        (
            ["dataset.root=gone", "annotate.aspects=[light]"],
            r"aspect light is computed from the images: restore dataset",
        ),
    ],
)
def test_what_cannot_be_annotated(fresh, tmp_path, overrides, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        annotate(changed(fresh, tmp_path, *overrides))
    assert "\n" not in str(error.value)


def test_an_unfinished_cache(fresh):
    directory = Path(fresh.cache.dir)
    (directory / "manifest.json").unlink()
    (directory / "shards" / "train-00000.tar").unlink()
    with pytest.raises(InputError, match=r"is unfinished: 1 of \d shards are missing"):
        annotate(fresh)


def test_another_image_in_its_place(config, tmp_path):
    root = tmp_path / "images"
    shutil.copytree(config.dataset.root, root)
    images = sorted(root.rglob("*.png"))
    shutil.copy(images[0], images[1])
    fresh = changed(copy_cache(config, tmp_path), tmp_path, f"dataset.root={root}", "annotate.aspects=[light]")
    with pytest.raises(InputError, match="is not the image that the cache holds features of; aspect light"):
        annotate(fresh)
