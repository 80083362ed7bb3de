"""Stored answers in training and evaluation: who wins, which confidence counts, what is said about it."""

from pathlib import Path

import numpy as np
import pytest

from masp.annotation.job import annotate
from masp.cache.annotations.manifest import read_stored
from masp.cache.describe import describe
from masp.cache.findings import findings_of
from masp.cache.reader import open_cache, open_matching_cache
from masp.errors import InputError
from tests.annotated import changed, make_annotated


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    config = make_annotated(tmp_path_factory.mktemp("read"), "aspects=[weather,scene,light]")
    annotate(config)
    return config


def test_people_keep_their_answers_and_gaps_are_filled(config):
    own, cache = open_cache(config.cache.dir), open_matching_cache(config)[0]
    rows = np.arange(len(cache))
    assert cache.has_answer(rows, "scene").all() and not own.has_answer(rows, "scene").all()
    assert cache.aspects == ("brightness", "light", "object", "scene", "weather") or "scene" in cache.aspects
    for row in rows.tolist():
        mine, seen = own.read_record(row).answers, cache.read(row).answers
        assert mine.items() <= seen.items()
        assert seen == cache.answers()[row]
    origins = cache.origins["scene"]
    assert origins.people == int(own.has_answer(rows, "scene").sum()) and origins.people + origins.vlm == len(cache)
    assert cache.origins["light"].pixels == len(cache) and cache.origins["light"].vlm == 0


def test_low_confidence_does_not_count(config, tmp_path):
    import pyarrow.parquet as pq

    table = pq.read_table(Path(config.cache.dir) / "annotations" / "weather.parquet").to_pydict()
    limit = float(np.median(table["confidence"]))
    cache = open_matching_cache(changed(config, tmp_path, f"annotate.min_confidence={limit}"))[0]
    sure = [c >= limit and a is not None for c, a in zip(table["confidence"], table["answer"], strict=True)]
    assert cache.has_answer(np.arange(len(cache)), "weather").tolist() == sure
    origins = cache.origins["weather"]
    assert origins.vlm == sum(sure) and origins.num_unsure == sum(
        c < limit and a is not None for c, a in zip(table["confidence"], table["answer"], strict=True)
    )
    assert origins.min_confidence == limit
    everything = open_matching_cache(changed(config, tmp_path, "annotate.min_confidence=1.0"))[0]
    assert everything.origins["light"].pixels == len(cache)  # pixels are sure


def test_confidence_above_one_is_refused(config, tmp_path):
    with pytest.raises(InputError, match=r"annotate\.min_confidence.*1"):
        changed(config, tmp_path, "annotate.min_confidence=1.5")


def test_aspects_that_are_not_in_use_change_nothing(config, tmp_path):
    cache = open_matching_cache(changed(config, tmp_path, "aspects=[mood]"))[0]
    assert not cache.origins and cache.answers().columns.keys() == open_cache(config.cache.dir).answers().columns.keys()


def test_info_says_what_is_stored(config):
    text, own = describe(config.cache.dir), open_cache(config.cache.dir)
    people = int(own.has_answer(np.arange(len(own)), "scene").sum())
    lines = [line.split() for line in text.splitlines()]
    start = lines.index("answers people VLM pixels absent file".split())
    stored = read_stored(Path(config.cache.dir))
    rows = {line[0]: line[1:] for line in lines[start + 1 : start + 4]}
    absent, files = (
        {name: str(s.num_absent) for name, s in stored.items()},
        {n: s.sha256[:12] for n, s in stored.items()},
    )
    assert rows["light"] == ["0", "0", "19", absent["light"], files["light"]]
    assert rows["scene"] == [str(people), str(19 - people), "0", absent["scene"], files["scene"]]
    assert rows["weather"] == ["0", str(19 - stored["weather"].num_absent), "0", absent["weather"], files["weather"]]


@pytest.mark.parametrize("who", ["nobody", "test images alone"])
def test_what_is_missing_is_not_said_of_what_the_vlm_has_answered(tmp_path, who):
    """Neither by `masp cache info` nor by what training, evaluation and the report show."""

    def edit(images: Path) -> None:
        for path in (images / "annotation").rglob("*.json"):
            path.unlink()
        if who != "nobody":
            image = next((images / "test" / "joy").iterdir())
            (images / "annotation" / "joy" / f"{image.stem}.json").write_text('{"weather": "fog"}')

    config = make_annotated(tmp_path, "aspects=[weather]", prepare=edit)

    def said() -> list[str]:
        record = findings_of(open_matching_cache(config)[0])
        texts = [str(finding) for finding in record.findings if finding.kind in ("annotations", "aspects")]
        shown = describe(config.cache.dir)
        assert all(text in shown for text in texts)
        return texts

    before = said()
    assert any("no image has an annotation" in text for text in before) == (who == "nobody")
    assert any("no training image is annotated with the aspect" in text for text in before) == (who != "nobody")
    annotate(config)
    after = "\n".join(said())
    assert "no image has an annotation" not in after and "no training image" not in after
    assert "no image is annotated with 6 aspects: color" in after and "weather" not in after
    assert "no image has an annotation" not in describe(config.cache.dir)


def test_a_damaged_manifest_is_not_ignored(config, tmp_path):
    import shutil

    from masp.errors import DataError

    shutil.copytree(config.cache.dir, tmp_path / "cache")
    other = changed(config, tmp_path, f"cache.dir={tmp_path / 'cache'}")
    path = tmp_path / "cache" / "annotations" / "_manifest.json"
    path.write_text(path.read_text().replace('"num_absent"', '"num_absents"', 1))
    with pytest.raises(
        DataError, match=r"_manifest\.json is damaged.*delete .*annotations and run `masp annotate` again"
    ):
        open_matching_cache(other)
    path.unlink()
    assert not open_matching_cache(other)[0].origins
