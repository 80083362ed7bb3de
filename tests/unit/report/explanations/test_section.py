"""The section of explanations: what is shown of which images, whatever their names, and what is left out if damaged."""

import dataclasses
import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from masp.data.keys import sample_key
from masp.report.explanations.section import NUM_SHOWN, shown_explanations
from masp.report.page import write_report
from masp.report.run_config import find_config
from masp.results.explanations.explanations_file import write_explanations
from masp.results.ledger_format import Record
from masp.results.records import write_target_records
from tests.unit.report.test_page import COLOURS, HOSTILE, Page, browse, make_run
from tests.unit.results.explanations.test_explanations_file import make_file

COLOR = (40, 200, 120)
"""Of the explained images."""


def explained_run(tmp_path, count=40, num_pixels=(120, 80)):
    """A run whose explained images have hostile categories and answers."""
    run, root = make_run(tmp_path), tmp_path / "data"
    content = make_file(count, HOSTILE[:3])
    images, records, maps = [], [], []
    (root / "test").mkdir(exist_ok=True, parents=True)
    for number, entry in enumerate(content.images):
        name = f"<i>{number}</i>.png".replace("/", "_")
        Image.new("RGB", num_pixels, COLOR).save(root / "test" / name)
        key = sample_key("test", name)
        aspects = tuple(dataclasses.replace(a, answer="<script>a</script>", annotated="<b>") for a in entry.aspects)
        images.append(dataclasses.replace(entry, key=key, aspects=aspects))
        records.append(Record(key, entry.label, entry.prediction, (-1.0, -2.0, -3.0), (-1.0, -1.0, -1.0)))
        maps.append(np.arange(1, 13, dtype="f4").reshape(2, 2, 3) / 78)
    directory = run / "evaluate" / "explanations"
    directory.mkdir()
    digest = write_target_records(directory / "records.h5", records, content.categories, content.aspects, maps)
    content = dataclasses.replace(content, images=tuple(images), records=digest, has_attention=True)
    write_explanations(directory / "explanations.json", content)
    return run, content


def test_some_right_and_some_wrong_predictions_are_shown(tmp_path):
    run, content = explained_run(tmp_path)
    problems = []
    config = find_config(run / "evaluate", run)
    shown = shown_explanations(run / "evaluate" / "explanations", content, config, problems)
    assert not problems and len(shown.shown) == NUM_SHOWN
    assert [each.is_right for each in shown.shown] == [True] * 3 + [False] * 3
    by_name = {image.key: image for image in content.images}
    largest = 0.0
    for each in shown.shown:
        entry = by_name[sample_key("test", each.name.removeprefix("test/"))]
        assert each.sentence == content.explanation(entry).sentence
        assert [a.bar.value for a in each.aspects] == [a.contribution for a in entry.aspects]
        assert each.image.startswith("data:image/jpeg;base64,") and all(a.look for a in each.aspects)
        bars = [*(a.bar for a in each.aspects), *(bar for _, bar in each.together)]
        for bar in bars:
            assert bar.left >= -1e-9 and bar.left + bar.width <= 100 + 1e-9 and bar.is_for == (bar.value >= 0)
            assert (bar.left if bar.is_for else bar.left + bar.width) == pytest.approx(50)
            largest = max(largest, bar.width)
    assert largest == pytest.approx(50)
    means = dict(content.averages.signed.parts(content.aspects))
    assert [row.bar.value for row in shown.parts] == [mean.mean for mean in means.values()]


def test_names_labels_and_answers_are_shown_as_text(tmp_path):
    run, _ = explained_run(tmp_path)
    page = Page(write_report(run))
    assert "Explanations" in page.text and "<script>a</script>" in page.text and "<i>" in page.text
    assert not {tag for tag, _ in page.tags} & {"script", "a"}
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    heat = [a for tag, a in page.tags if tag == "svg" and a.get("class") == "heat"]
    assert len(heat) == 2 and all(a["role"] == "img" and "most by" in a["aria-label"] for a in heat)
    images = [a for tag, a in page.tags if tag == "img"]
    assert all(a["src"].startswith("data:image/jpeg;base64,") and a["alt"] for a in images)


def test_records_of_another_evaluation_are_left_out_and_named(tmp_path):
    run, content = explained_run(tmp_path)
    directory = run / "evaluate" / "explanations"
    write_explanations(directory / "explanations.json", dataclasses.replace(content, records="1" * 64))
    text = Page(write_report(run)).text
    assert f"{directory / 'records.h5'}: not the file that the explanations beside it were written with" in text
    assert "Some predictions, one by one" in text
    (directory / "records.h5").unlink()
    assert str(directory / "records.h5") in Page(write_report(run)).text


def test_without_images_the_rest_is_shown(tmp_path):
    run, _ = explained_run(tmp_path)
    (run / "config.yaml").write_text("dataset: {name: folder, root: /nowhere}\n")
    page = Page(write_report(run))
    assert "Some predictions, one by one" in page.text
    assert not [a for tag, a in page.tags if tag == "img"]


@pytest.mark.full
def test_the_page_stays_light(tmp_path):
    """However many images are explained and however large they are."""
    small = write_report(explained_run(tmp_path / "small", count=12)[0]).stat().st_size
    large = write_report(explained_run(tmp_path / "large", count=150, num_pixels=(1600, 1200))[0]).stat().st_size
    assert large < small + 300_000


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1280, pytest.param(500, marks=pytest.mark.full)])
def test_chromium_shows_it_and_complains_of_nothing(tmp_path, chromium, width):
    page = write_report(explained_run(tmp_path)[0])
    assert browse(chromium, page, tmp_path / "shot.png", tmp_path / "profile", width, 9000) == []
    assert COLOR not in COLOURS
    with Image.open(tmp_path / "shot.png") as screenshot:
        pixels = np.asarray(screenshot.convert("RGB")).astype(int)
    assert (np.abs(pixels - COLOR).max(axis=-1) < 8).sum() > NUM_SHOWN // 2 * 120 * 80


MEASURE = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll(".heat text, .heat rect, .why img, .pull i")].map(e => {
    const box = e.getBoundingClientRect();
    return [e.closest("details:not([open])") ? "hidden" : e.tagName.toLowerCase(), box.width, box.height];
  });
  document.title = "measured " + JSON.stringify([found, document.documentElement.scrollWidth, innerWidth]);
});
</script>
"""


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1280, pytest.param(500, marks=pytest.mark.full)])
def test_chromium_gives_everything_a_size_and_nothing_is_wider_than_the_page(tmp_path, chromium, width):
    html = write_report(explained_run(tmp_path)[0]).read_text(encoding="utf-8")
    start = html.index("<meta http-equiv")
    html = html[:start] + html[html.index(">", start) + 1 :]  # the policy would forbid our script
    copy = tmp_path / "copy.html"
    copy.write_text(html + MEASURE, encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--window-size={width},4000",
               f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120).stdout
    text = dom.partition("<title>measured ")[2].partition("</title>")[0]
    found, needed, there = json.loads(text)
    assert needed <= there
    sizes = {tag: [(w, h) for name, w, h in found if name == tag] for tag in ("text", "rect", "img", "i")}
    assert len(sizes["img"]) == NUM_SHOWN * (1 + 2) and all(w > 20 and h > 20 for w, h in sizes["img"])
    assert len(sizes["rect"]) == 3 * 3 and all(w > 40 and h > 20 for w, h in sizes["rect"])
    assert all(h > 8 for _, h in sizes["text"]) and all(w >= 1 and h > 5 for w, h in sizes["i"])
