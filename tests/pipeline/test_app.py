"""`masp app` as a process, in a real browser: upload, result, comparison, mistakes, hostile files, the token."""

import json
import shutil

import pytest

import masp
from masp.results.records import FILE, read_records_file
from tests.browser import browsing
from tests.serving import bomb, form, png, serving

TAB = 9


@pytest.fixture(scope="module")
def run(commands, world, trained, tmp_path_factory):
    """A run with an evaluation."""
    run = tmp_path_factory.mktemp("app") / "run"
    shutil.copytree(trained, run)
    commands.ok("evaluate", *world.settings(run))
    return run


@pytest.fixture(scope="module")
def other(commands, world, tmp_path_factory):
    """A run without aspects, around the same VLM; not evaluated."""
    other = tmp_path_factory.mktemp("other") / "without aspects"
    commands.ok("train", "--stage", "stage2", *world.settings(other, "aspects=[]"))
    return other


@pytest.fixture(scope="module")
def server(commands, run, other):
    with serving(commands, "app", run, other, "--max-body-mb", 1) as server:
        yield server


@pytest.fixture(scope="module")
def tab(chromium, server, tmp_path_factory):
    with browsing(chromium, tmp_path_factory.mktemp("browser") / "profile") as tab:
        yield tab


@pytest.fixture
def page(tab, server):
    """The page, ready, in a wide window."""
    tab.complaints.clear()
    tab.resize(1400)
    tab.open(f"http://127.0.0.1:{server.port}/")
    tab.until("!document.getElementById('file').disabled")
    tab.until("document.getElementById('mistakes-list').children.length")
    return tab


def mistakes_of(run):
    records = read_records_file(run / "evaluate" / FILE)
    return [records.outcome(row) for row in range(len(records.keys)) if not records.is_right[row]]


def test_both_runs_answer_as_by_themselves(server, run, other):
    expected = [masp.load(one, device="cpu").predict([png(1)])[0] for one in (run, other)]
    found = server.ask("POST", "/api/look", *form([("a.png", png(1))])).json
    assert found["name"] == "a.png" and found["image"].startswith("data:image/jpeg;base64,")
    for model, one in zip(found["models"], expected, strict=True):
        assert model["label"] == one.label
        shares = {row["category"]: row["probability"] for row in model["probabilities"]}
        assert shares == pytest.approx(one.probabilities, abs=1e-5, rel=0)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert [model["name"] for model in found["models"]] == ["run", "without aspects"]
    assert [one["aspect"] for one in found["models"][0]["aspects"]] == ["scene", "object", "brightness"]
    assert all(one["overlay"].startswith("data:image/jpeg") for one in found["models"][0]["aspects"])
    assert found["models"][1]["aspects"] == []


def test_mistakes_are_those_of_the_evaluation(server, run):
    wrong = mistakes_of(run)
    found = server.ask("GET", "/api/mistakes/0").json
    assert found["num_mistakes"] == len(wrong) and found["num_samples"] == 13 and found["split"] == "test"
    shown = found["mistakes"]
    assert len(shown) == min(12, len(wrong)) and all(one["image"] for one in shown)
    sure = [one["probability"] for one in shown]
    assert found["by_confidence"] and sure == sorted(sure, reverse=True)
    seen = server.ask("POST", "/api/mistakes/0/0").json
    assert (seen["name"], seen["label"]) == (shown[0]["name"], shown[0]["label"])
    assert seen["models"][0]["label"] == shown[0]["prediction"]
    assert seen["models"][0]["probabilities"][0]["probability"] == pytest.approx(sure[0], abs=1e-4)
    rest = server.ask("GET", f"/api/mistakes/0?start={len(wrong) - 1}").json["mistakes"]
    assert len(rest) == 1
    for path, method, words in (
        ("/api/mistakes/1", "GET", "has not been evaluated: masp evaluate"),
        ("/api/mistakes/2", "GET", "there is no model 2"),
        (f"/api/mistakes/0/{len(wrong)}", "POST", f"there are {len(wrong)}"),
    ):
        reply = server.ask(method, path)
        assert reply.status == 404 and words in reply.json["error"], reply


def test_the_page_brings_nothing_from_elsewhere(server):
    reply = server.ask("GET", "/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    for path in ("/", "/app.js", "/app.css"):
        assert b"://" not in server.ask("GET", path).body, path
    script = server.ask("GET", "/app.js").body
    assert all(word not in script for word in (b"innerHTML", b"outerHTML", b"insertAdjacentHTML", b"document.write"))


@pytest.mark.chromium
@pytest.mark.parametrize("width", [1400, 360])
def test_an_uploaded_image_is_shown_with_all_that_is_known_of_it(page, server, tmp_path, width):
    page.resize(width)
    path = tmp_path / "an image.png"
    path.write_bytes(png(2))
    label = server.predict(png(2)).json["label"]
    page.upload("#file", path)
    page.until("!document.getElementById('result').hidden")
    assert page.evaluate("document.getElementById('result-title').innerText") == "an image.png"
    assert page.evaluate("document.querySelector('.label bdi').innerText") == label
    assert page.evaluate("document.activeElement.id") == "result-title"
    assert label in page.evaluate("document.getElementById('status').innerText")
    page.until("[...document.images].every((one) => one.complete && one.naturalWidth)")
    shown = page.evaluate(
        "[...document.querySelectorAll('.model, #seen, .aspects img, .bar, .aspects li')].every((one) => "
        "one.checkVisibility() && one.getBoundingClientRect().width > 40)"
    )
    assert shown and page.evaluate("document.querySelectorAll('.aspects img').length") == 3
    rights = page.evaluate("[...document.querySelectorAll('body *')].map((one) => one.getBoundingClientRect().right)")
    assert max(rights) <= width and page.evaluate("document.documentElement.scrollWidth") <= width
    columns = page.evaluate("[...document.querySelectorAll('.model')].map((one) => one.getBoundingClientRect().top)")
    assert (columns[0] == columns[1]) == (width == 1400)  # side by side, or one below the other
    assert page.complaints == []
    page.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


@pytest.mark.chromium
def test_mistakes_are_looked_at_with_the_keyboard(page, run):
    page.evaluate("document.querySelector('#mistakes-list button').focus()")
    page.press("Enter", 13)
    page.until("!document.getElementById('result').hidden")
    labels = {label for _, label, _ in mistakes_of(run)}
    assert page.evaluate("document.getElementById('truth').innerText").removeprefix("Labeled ") in labels
    if page.evaluate("!document.getElementById('more').hidden"):
        before = page.evaluate("document.getElementById('mistakes-list').children.length")
        page.evaluate("document.getElementById('more').click()")
        page.until(f"document.getElementById('mistakes-list').children.length > {before}")
    # the other run has not been evaluated
    page.evaluate("const s = document.getElementById('which-run'); s.value = '1'; s.dispatchEvent(new Event('change'))")
    page.until("document.getElementById('mistakes-lead').innerText.includes('has not been evaluated')")
    assert len(page.complaints) == 1 and "404" in page.complaints[0]


@pytest.mark.chromium
def test_a_screen_reader_has_a_name_for_everything(page, tmp_path):
    path = tmp_path / "an image.png"
    path.write_bytes(png(2))
    page.upload("#file", path)
    page.until("!document.getElementById('result').hidden")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node.get("ignored")
    ]
    wanted = ("button", "image", "combobox", "heading", "table", "region")
    assert {role for role, _ in named} >= set(wanted)
    assert all(name.strip() for role, name in named if role in wanted), named
    assert ("status", "") in [(role, "") for role, _ in named]
    page.evaluate("document.activeElement.blur(); document.getElementById('file').focus()")
    assert page.evaluate("document.activeElement.id") == "file"
    page.press("Tab", TAB)
    assert page.evaluate("document.activeElement.id") == "which-run"


@pytest.mark.chromium
def test_a_hostile_file_is_a_message(page, tmp_path):
    hostile = "<img src=x onerror=alert(1)>.jpg"
    files = {
        "words.jpg": (b"words, no pixels", "no image, or of a format that is not supported"),
        "bomb.png": (bomb(), "too large"),
        "page.html": (b"<!DOCTYPE html><script>alert(1)</script>", "no image"),
        hostile: (b"words", "no image"),
        "\u202egnp.exe": (b"words", "\\u{202e}gnp.exe"),
        "empty.png": (b"", "empty"),
        "large.png": (b"\0" * (1 << 20), "larger than 1 MiB"),
    }
    for number, (name, (data, words)) in enumerate(files.items()):
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(data)
        page.upload("#file", path)
        page.until(f"document.getElementById('error').innerText.includes({json.dumps(words)})")
        assert page.evaluate("document.getElementById('error').checkVisibility()")
        assert page.evaluate("document.getElementById('result').hidden")
        assert page.evaluate("document.querySelectorAll('main script, main img[onerror], #error *').length") == 0
    assert all("Failed to load resource" in one for one in page.complaints), page.complaints  # no dialog, no exception
    good = tmp_path / hostile
    good.write_bytes(png(3))
    page.upload("#file", good)
    page.until("!document.getElementById('result').hidden")
    assert page.evaluate("document.getElementById('result-title').innerText") == hostile
    assert page.evaluate("document.getElementById('error').hidden")
    assert page.evaluate("document.querySelectorAll('main script, img[onerror]').length") == 0
    assert all("Failed to load resource" in one for one in page.complaints), page.complaints


@pytest.mark.chromium
def test_beyond_loopback_the_token_is_in_the_address_once(commands, run, tab):
    token = "0123456789abcdef"
    with serving(commands, "app", run, "--host", "0.0.0.0", MASP_TOKEN=token) as server:
        first = server.ask("GET", f"/?token={token}")
        assert first.status == 303 and first.headers["location"] == "/" and first.body == b""
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
        for headers, status in (
            ({}, 401),
            ({"Cookie": cookie.partition(";")[0]}, 200),
            ({"Cookie": cookie.partition(";")[0] + "0"}, 401),
            ({"Cookie": cookie.partition(";")[0], "Origin": "http://evil.example"}, 403),
        ):
            assert server.ask("GET", "/api/about", headers=headers).status == status, headers
        assert server.ask("GET", "/?token=wrong").status == 401
        tab.complaints.clear()
        tab.open(f"http://127.0.0.1:{server.port}/?token={token}")
        tab.until("document.getElementById('file') && !document.getElementById('file').disabled")
        assert tab.evaluate("location.search + document.cookie") == ""
        assert tab.complaints == []


def test_more_runs_than_two_and_what_is_no_run_are_refused(commands, run, other, tmp_path):
    result = commands("app", run, other, run)
    assert result.code == 2 and "3 runs: the page shows one, or compares two" in result.stderr
    result = commands("app", run, tmp_path / "gone")
    assert result.code == 2 and "no such directory" in result.stderr and result.stdout == ""
