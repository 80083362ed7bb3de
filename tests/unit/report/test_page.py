"""The report: complete, self-contained, and never fooled by a name."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masp.data.keys import sample_key
from masp.errors import DataError, InputError
from masp.report.page import write_report
from masp.results.ledger_file import Ledger
from masp.results.ledger_format import Record
from masp.results.metrics import compute_metrics
from masp.results.records import write_target_records

HOSTILE = ("<script>alert(1)</script>", "say \"no\" & 'yes'", "שמחה", "x" * 300)
NAMES = (
    "<img src=x onerror=alert(1)>.jpg", "\"'><svg onload=alert(1)>.png", "gpj.\u202e evil.png", "絵 €.jpg",
    "n\udcffl.jpg",
)  # fmt: skip
MAGENTA = (255, 0, 200)
COLOURS = (MAGENTA, (0, 255, 60), (0, 200, 255), (255, 255, 0), (120, 0, 255))
"""Of the pictures, and of nothing else on the page."""


def make_run(tmp_path, categories=HOSTILE, *, scored=True, with_training=True, with_images=True, lineage=None) -> Path:
    """A run in which every prediction is wrong, with images of one colour."""
    run, root = tmp_path / "run", tmp_path / "data"
    records = []
    with Ledger(run / "evaluate" / "ledger", "rank-0", {"split": "test"}) as ledger:
        for index, name in enumerate(NAMES):
            label, prediction = categories[index % len(categories)], categories[(index + 1) % len(categories)]
            # A folder cannot hold the slash of "</script>", a label can.
            relative = f"{label.replace('/', '_')[:50]}/{name}"
            if with_images:
                (root / "test" / relative).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (120, 80), COLOURS[index]).save(root / "test" / relative)
            scores = tuple(0.0 if category == prediction else -3.0 for category in categories)
            records.append(
                Record(
                    sample_key=sample_key("test", relative),
                    label=label,
                    prediction=prediction if scored or index else None,
                    scores=scores if scored else None,
                    text=None if scored else "<b>bold</b>",
                )
            )
            ledger.append(records[-1])
    metrics = compute_metrics(records, categories).to_json() | {"split": "test", "lineage": lineage or {}}
    (run / "evaluate" / "metrics.json").write_text(json.dumps(metrics))
    maps = [np.arange(1, 7, dtype="f4").reshape(1, 2, 3).repeat(2, 0) / 21 for _ in records]
    aspects = ("scene", "object") if scored else ()
    write_target_records(run / "evaluate" / "records.h5", records, categories, aspects, maps)
    (run / "config.yaml").write_text(f"dataset: {{name: folder, root: {json.dumps(str(root))}}}\n# <script>config()\n")
    if with_training:
        for stage in ("stage1", "stage2"):
            (run / stage).mkdir()
            lines = [{"step": step, "epoch": step / 40, "loss": 40 / step, "learning_rate": 1e-3,
                      "samples_per_second": 5.5} for step in range(10, 400, 10)]  # fmt: skip
            text = "".join(json.dumps(line) + "\n" for line in [*lines, lines[-1]])
            (run / stage / "metrics.jsonl").write_text(text + '{"step": 4')
        summary = {"zero_shot": {"accuracy": 0.2}, "masp": {"accuracy": 0.7, "accuracy_ci95": [0.6, 0.8]}}
        others = {"num_samples": 9, "accuracy": 0.4, "accuracy_ci95": [0.1, 0.7], "macro_f1": 0.3}
        datasets = {"<u>near": others, "far": others | {"category_map": {"<b>joy": "awe", "awe": "awe"}}}
        (run / "evaluate" / "datasets.json").write_text(json.dumps(datasets))
        answers = {"kind": "open", "accuracy": 0.25, "accuracy_ci95": [0.1, 0.5], "num_samples": 8, "token_f1": 0.5}
        levels = answers | {"kind": "closed", "categories": ["low", "high"], "macro_f1": 0.125}
        (run / "evaluate-stage1").mkdir()
        per_aspect = {"per_aspect": {"human_action": answers, "brightness": levels}}
        (run / "evaluate-stage1" / "metrics.json").write_text(json.dumps(per_aspect))
        (run / "summary.json").write_text(json.dumps(summary | {"<i>mine": {"accuracy": 0.5}, "seed": 1}))
    return run


class Page(HTMLParser):
    """Collects the tags with their attributes and the text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("scored", [True, False])
def test_the_page_needs_nothing_from_outside_and_runs_nothing(tmp_path, scored):
    path = write_report(make_run(tmp_path, scored=scored))
    page = Page(path)
    allowed = {
        "html", "head", "meta", "title", "link", "style", "body", "main", "header", "section", "footer", "h1", "h2",
        "div", "p", "span", "small", "strong", "em", "b", "i", "bdi", "br", "dl", "dt", "dd", "ul", "li", "img",
        "table", "thead", "tbody", "tr", "th", "td", "details", "summary", "pre",
        "svg", "g", "defs", "path", "use", "text", "clippath", "rect",
    }  # fmt: skip
    assert {tag for tag, _ in page.tags} <= allowed
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "formaction", "background"):
                assert value.startswith(("data:", "#")), (tag, name, value)
            if name == "style":
                assert "url(" not in value.replace("url(#", "")
    html = path.read_text(encoding="utf-8")
    assert "@import" not in html and "//" not in re.sub(r'src="data:[^"]*"', "", html)
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy and "script" not in policy


def test_ids_are_unique(tmp_path):
    ids = [attributes["id"] for _, attributes in Page(write_report(make_run(tmp_path))).tags if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def test_hostile_names_and_labels_are_shown_as_text(tmp_path):
    page = Page(write_report(make_run(tmp_path)))
    for label in HOSTILE:
        assert label in page.text
    for shown in (NAMES[0], NAMES[1], "gpj.\\u202e evil.png", NAMES[3], "n\\udcffl.jpg", "<script>config()", "<i>mine"):
        assert shown in page.text


def test_everything_there_is_is_shown(tmp_path):
    page = Page(write_report(make_run(tmp_path)))
    for title in ("What each part adds", "Confusion matrix", "Per category", "The surest mistakes", "Calibration",
                  "On several datasets", "Stage 1: answers per aspect", "Where the aspects look",
                  "Stage 1: aspect modules", "Stage 2: soft prompt", "Resolved configuration"):  # fmt: skip
        assert title in page.text
    assert "Zero-shot" in page.text and "70.0" in page.text
    assert "390 steps" in page.text and "1 unreadable line" in page.text
    for text in ("human action", "likeliest of 2 answers", "written, exactly the same", "<u>near", "<b>joy → awe"):
        assert text in page.text
    # the mistakes, and three of them with both aspects
    assert sum(tag == "img" for tag, _ in page.tags) == len(NAMES) + 3 * (1 + 2)
    assert sum(tag == "svg" for tag, _ in page.tags) == 5


def test_parts_that_are_missing_are_left_out(tmp_path):
    run = make_run(tmp_path, scored=False, with_training=False, with_images=False)
    (run / "config.yaml").unlink()
    page = Page(write_report(run))
    for title in ("What each part adds", "Calibration", "Stage 1", "Resolved configuration", "Where the aspects"):
        assert title not in page.text
    assert "The images are not here" in page.text and "1 generated line names no category; it counts" in page.text
    assert not any(tag == "img" for tag, _ in page.tags)


def test_metrics_alone_are_enough(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"accuracy": 0.5, "num_samples": 2, "num_correct": 1}))
    assert write_report(tmp_path, tmp_path / "new" / "out.html") == tmp_path / "new" / "out.html"
    assert "1 of 2 samples right" in Page(tmp_path / "new" / "out.html").text


def test_an_evaluation_of_stage_1_alone(tmp_path):
    run = make_run(tmp_path)
    folder = run / "evaluate-stage1"
    metrics = json.loads((folder / "metrics.json").read_text())
    more = {"accuracy": 0.2, "num_samples": 16, "num_correct": 3, "mean_accuracy": 0.25, "stage": "stage1"}
    (folder / "metrics.json").write_text(json.dumps(metrics | more))
    page = Page(write_report(folder))
    assert "3 of 16 samples right" in page.text and "Stage 1: answers per aspect" in page.text
    assert "mistakes" not in page.text.lower()
    shutil.rmtree(run / "evaluate")
    assert "3 of 16 samples right" in Page(write_report(run)).text


@pytest.mark.parametrize("path", ["evaluate/records.h5", "evaluate/datasets.json", "evaluate-stage1/metrics.json"])
def test_what_is_damaged_beside_the_metrics_is_left_out(tmp_path, path):
    run = make_run(tmp_path)
    (run / path).write_bytes(b"[1, ")
    assert "Confusion matrix" in Page(write_report(run)).text


def test_notes_and_setting_of_the_evaluation_are_shown(tmp_path):
    run = make_run(tmp_path)
    path = run / "evaluate" / "metrics.json"
    more = {"notes": ["pillow <b>was</b> '1', is '2'"], "time": 0.0, "scoring": "likelihood"}
    path.write_text(json.dumps(json.loads(path.read_text()) | more))
    page = Page(write_report(run))
    assert more["notes"][0] in page.text and "1970-01-01 00:00 UTC" in page.text and "likelihood" in page.text


def test_what_is_imported_is_said(tmp_path):
    lineage = {"soft_prompt": {"origin": "imported"}, "aspect": {"origin": "trained", "digest": "ab12"}}
    page = Page(write_report(make_run(tmp_path, lineage=lineage)))
    assert "Imported: soft_prompt." in page.text and "Imported: aspect" not in page.text and "ab12" in page.text


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = make_run(tmp_path)
    assert write_report(run).read_bytes() == write_report(run, tmp_path / "again.html").read_bytes()


@pytest.mark.parametrize("exists", [False, True])
def test_nothing_to_report_says_what_to_run(tmp_path, exists):
    folder = tmp_path if exists else tmp_path / "absent"
    with pytest.raises(InputError, match="masp evaluate") as error:
        write_report(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def test_a_file_in_the_place_of_a_run_is_called_one(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match="metrics.json is a file; name the directory of the run"):
        write_report(tmp_path / "metrics.json")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"accuracy": "x", "num_samples": 1, "num_correct": 1}'])
def test_damaged_metrics_are_an_error(tmp_path, text):
    (tmp_path / "metrics.json").write_text(text)
    with pytest.raises(DataError, match="metrics.json"):
        write_report(tmp_path)


def test_what_is_damaged_is_left_out_and_named(tmp_path):
    """Which values those are is tested with the readers (`tests/unit/results/test_metrics_file.py`)."""
    run = make_run(tmp_path)
    damage = {"macro_f1": float("nan"), "confusion": [[1], [1, 2]], "nll": 10**400, "time": 1e30, "notes": 3}
    files = {
        "evaluate/metrics.json": (), "evaluate/datasets.json": ("far",), "summary.json": ("masp",),
        "evaluate-stage1/metrics.json": ("per_aspect", "brightness"),
    }  # fmt: skip
    for name, keys in files.items():
        content = json.loads((run / name).read_text())
        part = content
        for key in keys:
            part = part[key]
        part |= {"accuracy_ci95": [0.1, 2], **damage}
        (run / name).write_text(json.dumps(content))
    text = Page(write_report(run)).text
    for name, row in zip(files, ("", "far: ", "masp: ", "brightness: "), strict=True):
        assert f"Damaged, so not on this page: {run / name}: {row}accuracy_ci95: " in text
    for key in damage:
        assert f"{run}/evaluate/metrics.json: {key}: " in text
    assert "Confusion matrix" not in text and "What each part adds" in text and "On several datasets" in text


@pytest.mark.parametrize("text", [b"[" * 100_000, b"{", b"\xff", b'{"step": 1' + b"0" * 5000 + b"}", b'{"step": NaN}'])
def test_what_no_json_parser_can_take_is_left_out(tmp_path, text):
    run = make_run(tmp_path)
    for name in ("evaluate/datasets.json", "evaluate-stage1/metrics.json", "stage1/metrics.jsonl"):
        (run / name).write_bytes(text)
    page = Page(write_report(run)).text
    assert "Confusion matrix" in page and "On several datasets" not in page


def test_an_accuracy_that_is_no_number_is_an_error(tmp_path):
    for value in ("NaN", "1e999", "2", "true", "null", "1" + "0" * 400, "[" * 500 + "]" * 500):
        (tmp_path / "metrics.json").write_text(f'{{"accuracy": {value}, "num_samples": 1, "num_correct": 1}}')
        with pytest.raises(DataError, match="metrics.json: accuracy") as error:
            write_report(tmp_path)
        assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_closed_aspects_show_their_answers_and_calibration(tmp_path):
    run = make_run(tmp_path)
    words = ("low", "high")
    records = [Record(str(i), words[i % 2], words[i % 3 % 2], scores=(0.5, 0.1)) for i in range(9)]
    path = run / "evaluate-stage1" / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["per_aspect"]["brightness"] |= compute_metrics(records, words).to_json()
    many = [f"answer {i}" for i in range(30)]
    record = Record("0", many[0], many[1], scores=(0.0,) * 30)
    metrics["per_aspect"]["scene"] = {"kind": "closed", **compute_metrics([record], many).to_json()}
    path.write_text(json.dumps(metrics))
    page = Page(write_report(run))
    assert "brightness: answers and calibration" in page.text and "answer 7" not in page.text
    assert "human action: answers" not in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 5 + 2
    assert sum(tag == "table" and a.get("class", "").startswith("confusion") for tag, a in page.tags) == 2
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    run = make_run(tmp_path)
    (tmp_path / "file").write_text("")
    for path in ("/proc/x.html", tmp_path / "file" / "x.html"):
        with pytest.raises(InputError, match=f"{path}: cannot be written: "):
            write_report(run, path)


def test_an_output_that_is_a_directory_is_refused(tmp_path):
    run = make_run(tmp_path)
    with pytest.raises(InputError, match="is a directory"):
        write_report(run, tmp_path)


def test_an_output_that_is_a_device_or_a_fifo_is_not_replaced(tmp_path):
    run, output = make_run(tmp_path), tmp_path / "fifo"
    os.mkfifo(output)
    with pytest.raises(InputError, match="fifo: cannot be written: not a regular file; give --output another file"):
        write_report(run, output)
    assert output.is_fifo()


def browse(chromium, page, screenshot, profile, width, height=4000):
    """Open a page in headless Chromium; returns what it wrote to its console."""
    command = [
        chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
        f"--user-data-dir={profile}", f"--window-size={width},{height}", "--enable-logging=stderr",
        f"--screenshot={screenshot}", page.as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120)
    return [line for line in result.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1280, pytest.param(500, marks=pytest.mark.full)])
def test_chromium_shows_every_picture_and_complains_of_nothing(tmp_path, chromium, width):
    page = write_report(make_run(tmp_path))
    assert browse(chromium, page, tmp_path / "shot.png", tmp_path / "profile", width) == []
    with Image.open(tmp_path / "shot.png") as screenshot:
        colours = screenshot.convert("RGB").getcolors(2**24)
    for picture in COLOURS:  # JPEG moves a colour by a few steps
        near = (count for count, colour in colours if all(abs(a - b) < 8 for a, b in zip(colour, picture, strict=True)))
        assert sum(near) > 120 * 80, picture


MEASURE = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("img, svg")].map(e => {
    const box = e.getBoundingClientRect(), style = getComputedStyle(e);
    const shown = e.checkVisibility() && style.visibility == "visible" && style.opacity > 0;
    return [e.tagName.toLowerCase(), box.width, box.height, shown, e.naturalWidth || 0];
  });
  document.title = "measured " + JSON.stringify(found);
});
</script>
"""


@pytest.mark.chromium
def test_chromium_gives_every_picture_and_chart_a_size(tmp_path, chromium):
    """Thumbnails of mistakes, maps of attention, charts; the policy would forbid our script, so a copy goes without."""
    html = write_report(make_run(tmp_path)).read_text(encoding="utf-8")
    copy = tmp_path / "copy.html"
    copy.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html) + MEASURE, encoding="utf-8")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,4000",
               f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", copy.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=120).stdout
    found = json.loads(re.search(r"<title>measured (.*?)</title>", dom).group(1))
    assert [tag for tag, *_ in found].count("img") == len(NAMES) + 3 * (1 + 2)
    assert [tag for tag, *_ in found].count("svg") == 5
    for tag, width, height, shown, natural in found:
        assert width > 20 and height > 20 and shown and (tag == "svg" or natural > 0), (tag, width, height, natural)


@pytest.mark.chromium
def test_the_console_check_would_see_a_complaint(tmp_path, chromium):
    page = tmp_path / "bad.html"
    page.write_text("<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\"><script>1</script>")
    assert browse(chromium, page, tmp_path / "shot.png", tmp_path / "profile", 500)
