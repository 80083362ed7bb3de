"""What a server says before the VLM is loaded."""

import asyncio
import json

import pytest

from masp.inference.model import Model
from masp.inference.serving.batching import Batcher
from masp.inference.serving.guard import Guard
from masp.inference.serving.metrics import ServerMetrics
from masp.inference.serving.page import AppPage
from masp.inference.serving.service import Service
from masp.inference.serving.settings import ServerSettings
from masp.inference.serving.web import make_app
from masp.inference.source import config_of


async def ask(app, method, path):
    """Status, headers and JSON of an answer to a request without a body."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"image/png")], "http_version": "1.1",
        "scheme": "http", "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    await app(scope, receive, send)
    headers = {name.decode().lower(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, json.loads(b"".join(one.get("body", b"") for one in sent[1:]))


@pytest.fixture(scope="module")
def answers(trained):
    """Of a server whose models are not loaded."""

    async def all_of_them():
        model, metrics = Model(config_of(trained)), ServerMetrics()
        settings = ServerSettings()
        service = Service([str(trained)], settings, Batcher([model], 4, 0.01), metrics)
        app = make_app(service)
        AppPage(service).add(app)
        guard = Guard(app, metrics, frozenset(), True, None)
        asked = (("GET", "/health"), ("POST", "/predict"), ("POST", "/api/look"), ("GET", "/api/about"))
        return {path: await ask(guard, method, path) for method, path in asked} | {"taken": service.places.taken}

    return asyncio.run(all_of_them())


def test_it_lives_and_is_not_ready(answers):
    status, _, found = answers["/health"]
    assert status == 503 and found == {"alive": True, "ready": False}
    assert answers["/api/about"][0] == 200 and answers["/api/about"][2]["ready"] is False


def test_images_are_to_be_sent_later(answers):
    for path in ("/predict", "/api/look"):
        status, headers, found = answers[path]
        assert status == 503 and headers["retry-after"] == "1" and found == {"error": "the VLM is still being loaded"}
    assert answers["taken"] == 0
