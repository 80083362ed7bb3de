"""`masp serve` as a process: answers as of the Python API under load, limits, refusals, and how it ends."""

import base64
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import masp
from tests.serving import bomb, form, png, serving
from tests.tiny import make_vlm

NUM_CLIENTS = 64


@pytest.fixture(scope="module")
def server(commands, trained):
    with serving(commands, "serve", trained, "--max-body-mb", 1, "engine.device=cpu") as server:
        yield server


@pytest.fixture(scope="module")
def model(trained):
    return masp.load(trained, device="cpu")


def test_many_clients_at_once_get_each_the_answer_about_its_image(server, model):
    images = [png(seed) for seed in range(NUM_CLIENTS)]
    expected = model.predict(images)
    replies = [None] * NUM_CLIENTS
    start = threading.Barrier(NUM_CLIENTS)

    def client(number):
        start.wait()
        replies[number] = server.predict(images[number])

    before = [server.metric(f"masp_batch_images_{name}") for name in ("sum", "count")]
    threads = [threading.Thread(target=client, args=[number]) for number in range(NUM_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [reply.status for reply in replies] == [200] * NUM_CLIENTS
    for reply, one in zip(replies, expected, strict=True):
        assert reply.json["label"] == one.label
        assert reply.json["log_likelihoods"] == pytest.approx(one.log_likelihoods, abs=1e-5, rel=0)
        assert reply.json["probabilities"] == pytest.approx(one.probabilities, abs=1e-5, rel=0)
    assert len({tuple(reply.json["log_likelihoods"].values()) for reply in replies}) == NUM_CLIENTS
    images_scored, batches = (
        server.metric(f"masp_batch_images_{name}") - old for name, old in zip(("sum", "count"), before, strict=True)
    )
    assert images_scored == NUM_CLIENTS and batches < NUM_CLIENTS / 2  # and so they were scored together
    assert server.metric("masp_queue_images") == 0


def test_an_image_in_any_form_is_answered_alike(server, model):
    image = png(1)
    (expected,) = model.predict([image])
    raw = server.predict(image).json
    assert raw["image"] == "image" and raw["label"] == expected.label
    coded = json.dumps({"image": base64.b64encode(image).decode()}).encode()
    one = server.ask("POST", "/predict", *form([("a.png", image)]))
    for reply in (server.ask("POST", "/predict", coded, "application/json; charset=utf-8"), one):
        assert reply.status == 200 and reply.headers["content-type"] == "application/json"
        assert reply.json["log_likelihoods"] == pytest.approx(expected.log_likelihoods, abs=1e-5, rel=0)
    assert one.json["image"] == "a.png"


def test_a_bad_image_does_not_fail_the_others_of_its_form(server, model):
    name = "<script>alert(1)</script>.png"
    files = [("one.png", png(1)), (name, b"words, no pixels"), ("bomb.png", bomb()), ("two.png", png(2))]
    reply = server.ask("POST", "/predict", *form(files))
    assert reply.status == 200
    found = reply.json["predictions"]
    assert [one["image"] for one in found] == [name for name, _ in files]
    assert "no image" in found[1]["error"] and "too large" in found[2]["error"]
    for one, expected in zip((found[0], found[3]), model.predict([png(1), png(2)]), strict=True):
        assert one["log_likelihoods"] == pytest.approx(expected.log_likelihoods, abs=1e-5, rel=0)


def test_an_explanation_is_that_of_the_api(server, model):
    expected = model.explain(png(3)).to_json()
    found = server.predict(png(3), explain=True).json["explanation"]
    assert list(found["aspects"]) == list(model.aspects)
    for aspect, values in found["aspects"].items():
        assert values["answer"] == expected["aspects"][aspect]["answer"]
        assert values["contribution"] == pytest.approx(expected["aspects"][aspect]["contribution"], abs=1e-4)
    assert found["all_aspects"] == pytest.approx(expected["all_aspects"], abs=1e-4)
    assert found["sentence"].startswith(expected["prediction"])


@pytest.mark.parametrize(
    ("path", "body", "kind", "status", "words"),
    [
        ("/predict", b"words", "image/png", 422, "cannot read this image: no image"),
        ("/predict", bomb(), "image/png", 422, "cannot read this image: too large"),
        ("/predict", b"<html>", "text/html", 415, "Content-Type text/html: send multipart/form-data"),
        ("/predict", b"", "image/png", 400, "the image is empty"),
        ("/predict", b"{", "application/json", 400, "not valid JSON"),
        ("/predict", b'{"image": 3}', "application/json", 400, "must be an object with the key 'image'"),
        ("/predict", b'{"image": "a b"}', "application/json", 400, "base64"),
        ("/predict", b"words", "multipart/form-data", 400, "the form cannot be read"),
        ("/predict", *form([("a.png", b"x")], field="picture"), 400, "field 'picture'"),
        ("/predict", *form([]), 400, "no file named 'image'"),
        ("/predict?explain=perhaps", png(1), "image/png", 400, "explain must be true or false"),
        ("/predict?explian=true", png(1), "image/png", 400, "unknown parameter 'explian'"),
        ("/docs", b"", None, 404, "Not Found"),
        ("/openapi.json", b"", None, 404, "Not Found"),
        ("/health", b"", None, 405, "Method Not Allowed"),
    ],
)
def test_what_is_not_valid_is_refused_with_the_reason(server, path, body, kind, status, words):
    reply = server.ask("POST", path, body, kind)
    assert reply.status == status and words in reply.json["error"]


def test_a_body_that_is_too_large_is_refused_while_it_is_read(server):
    large = b"\0" * (1 << 20) + b"\0"
    assert server.ask("POST", "/predict", large, "image/png").status == 413
    pieces = (b"\0" * 65536 for _ in range(40))  # chunked: nothing says how long it will be
    assert server.ask("POST", "/predict", pieces, "image/png").status == 413
    parts = form([("a.png", b"\0" * 600_000), ("b.png", b"\0" * 600_000)])
    reply = server.ask("POST", "/predict", iter([parts[0]]), parts[1])
    assert reply.status == 413 and "larger than 1 MiB" in reply.json["error"]
    assert server.metric("masp_queue_images") == 0


def test_it_says_what_there_is_and_what_it_counted(server, trained):
    index = server.ask("GET", "/")
    assert index.json["run"] == str(trained) and index.json["categories"] == ["anger", "awe", "joy"]
    assert "default-src 'none'" in index.headers["content-security-policy"]
    assert "access-control-allow-origin" not in index.headers and "server" not in index.headers
    assert server.ask("GET", "/health").json == {"alive": True, "ready": True}
    before = server.metric('masp_requests_total{path="other",status="404"}') if server.ask("GET", "/a") else 0
    server.ask("GET", "/b")
    assert server.metric('masp_requests_total{path="other",status="404"}') == before + 1
    assert server.metric('masp_request_seconds_count{path="/predict"}') > 0
    assert server.metric('masp_images_total{outcome="unreadable"}') > 0
    assert server.metric("masp_ready") == 1


def test_pages_of_other_sites_cannot_ask(server):
    for host in ("evil.example", f"evil.example:{server.port}", "127.0.0.1.evil.example", "", "localhost@evil.example"):
        assert server.ask("GET", "/", headers={"Host": host}).status in (400, 403), host
    for host in ("localhost", f"127.0.0.1:{server.port}", f"[::1]:{server.port}"):
        assert server.ask("GET", "/", headers={"Host": host}).status == 200, host
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        reply = server.ask("POST", "/predict", png(1), "image/png", {"Origin": origin})
        assert reply.status == 403 and "other sites" in reply.json["error"]
    own = {"Origin": f"http://127.0.0.1:{server.port}"}
    assert server.ask("POST", "/predict", png(1), "image/png", own).status == 200


def half_sent(port, image=b"half of it"):
    """A client that has sent the headers of a request and a part of its body."""
    client = socket.create_connection(("127.0.0.1", port))
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: {len(image) + 9}"
    client.sendall(head.encode() + b"\r\n\r\n" + image)
    return client


def until(condition, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_place_no_time_and_clients_that_go_away(commands, trained):
    limits = ("--queue", 2, "--batch-size", 2, "--time-limit", 3, "--max-wait-ms", 9000)
    with serving(commands, "serve", trained, *limits) as server:
        with half_sent(server.port), half_sent(server.port):
            until(lambda: server.metric("masp_queue_images") == 2)
            full = server.predict(png(1))
            assert full.status == 503 and full.headers["retry-after"] == "1" and "wait already" in full.json["error"]
        until(lambda: server.metric("masp_queue_images") == 0)  # both have gone
        several = server.ask("POST", "/predict", *form([(f"{n}.png", png(n)) for n in range(3)]))
        assert several.status in (400, 503)
        # a single image waits nine seconds for a second one, and its client only one
        with pytest.raises(TimeoutError):
            server.ask("POST", "/predict", png(1), "image/png", timeout_s=1)
        until(lambda: server.metric("masp_queue_images") == 0, timeout_s=1.5)
        assert server.metric('masp_images_total{outcome="given up"}') == 1
        late = server.predict(png(1))
        assert late.status == 504 and "no answer within 3 s" in late.json["error"]
        with half_sent(server.port) as slow:
            slow.settimeout(20)
            assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        pair = server.ask("POST", "/predict", *form([("1.png", png(1)), ("2.png", png(2))]))
        assert pair.status == 200 and len(pair.json["predictions"]) == 2  # nobody who went away is in the batch


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_in_work_is_finished_before_it_ends(commands, trained, number):
    with serving(commands, "serve", trained, "--max-wait-ms", 1500) as server:
        found = []
        idle = http.client.HTTPConnection("127.0.0.1", server.port)  # kept alive, without a request
        idle.request("GET", "/health")
        idle.getresponse().read()
        client = threading.Thread(target=lambda: found.append(server.predict(png(1))))
        client.start()
        until(lambda: server.metric("masp_queue_images") == 1)
        server.running.kill(number)
        result = server.running.wait()
        client.join()
        idle.close()
        assert result.code == 0 and "Traceback" not in result.stderr and "error" not in result.stderr
        assert found[0].status == 200 and found[0].json["label"]


def test_beyond_loopback_a_token_is_needed(commands, trained):
    token = "0123456789abcdef"
    with serving(commands, "serve", trained, "--host", "0.0.0.0", MASP_TOKEN=token) as server:
        assert server.ask("GET", "/health").status == 200
        for path in ("/", "/metrics", f"/?token={token}"):
            reply = server.ask("GET", path)
            assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer", path
        for given in ("Bearer x", f"Basic {token}", "Bearer", f"Bearer {token}0", "Bearer \xe9"):
            reply = server.ask("POST", "/predict", png(1), "image/png", {"Authorization": given})
            assert reply.status == 401, given
        given = {"Authorization": f"Bearer {token}", "Host": "any.name"}
        assert server.ask("POST", "/predict", png(1), "image/png", given).status == 200
        assert token not in "".join(server.running.output())
    with serving(commands, "serve", trained, "--host", "0.0.0.0") as server:
        new = server.running.output()[0].split("Bearer ")[1].split()[0]
        assert len(new) > 40
        assert server.ask("GET", "/", headers={"Authorization": f"Bearer {new}"}).status == 200


def test_what_cannot_be_served_is_one_line_before_the_vlm_is_loaded(commands, trained, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for argv, words in (
            (("serve", trained, "--port", port), f"--port {port}: cannot be listened on: Address already in use"),
            (("serve", tmp_path / "gone", "--port", port), "no such directory; name the output_dir of a run"),
            (("serve", trained, "--port", 70000), "--port 70000: must be 0 to 65535"),
            (("serve", trained, "--queue", 1), "--queue 1: must be 4 (--batch-size) or more"),
            (("serve", trained, "--host", "no.such.host.invalid"), "not an address of this machine"),
            (("serve", trained, "--host", "192.0.2.1"), "cannot be listened on"),
            (("serve", trained, "engine.devise=cpu"), "did you mean engine.device?"),
        ):
            result = commands(*argv)
            assert result.code == 2 and words in result.stderr, result
            assert result.stderr.count("\n") == 1 and result.stdout == ""
    result = commands("serve", trained, MASP_TOKEN="short")
    assert result.code == 2 and "MASP_TOKEN: must be 16 or more" in result.stderr


def test_a_vlm_that_cannot_be_loaded_ends_the_server(commands, trained, world, tmp_path):
    import shutil

    vlm = tmp_path / "vlm"
    shutil.copytree(world.folder / "vlm", vlm)
    tokenizer = vlm / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text()[:50])  # nothing needs it before the VLM itself is loaded
    result = commands("serve", trained, f"vlm.path={vlm}", "--port", 0)
    assert result.code == 2 and "tokenizer" in result.stderr and "ready" not in result.stdout


@pytest.fixture(scope="module")
def deep_vlm(tmp_path_factory):
    """A VLM that takes seconds to load."""
    return make_vlm(tmp_path_factory.mktemp("deep") / "vlm", layers=200)


@pytest.mark.parametrize("command", ["serve", "app"])
def test_it_stops_while_the_vlm_is_loading(commands, trained, deep_vlm, command):
    # what was trained is of another VLM
    settings = (f"vlm.path={deep_vlm}", "checkpoint.aspect=none", "checkpoint.soft_prompt=none")
    running = commands.start(command, trained, *settings, "dataset.categories=[awe,joy]", "--port", 0)
    running.when(lambda: "loading the VLM\n" in running.output()[0])
    asked_at = time.monotonic()
    running.kill(signal.SIGTERM)
    result = running.wait()
    assert time.monotonic() - asked_at < 20
    assert result.code == 0 and "ready" not in result.stdout and result.stdout.count("\n") == 1
    assert result.stderr == "note: SIGTERM: stopping as soon as that is clean\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_before_it_listens(trained, number):
    command = [sys.executable, "-m", "masp", "serve", trained, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        until(lambda: "libtorch_cpu" in maps.read_text(), timeout_s=120)  # what serves is being imported
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "stopped before it listened\n", "")
