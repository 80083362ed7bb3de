"""A stand-in for the Hugging Face Hub, on this machine: what huggingface_hub asks of a repository, over HTTP.

Regular files are kept in commits, large ones by their SHA-256 as in git LFS. Every request is recorded.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml

LARGE = (".tar", ".h5", ".safetensors")
LICENSES = ("apache-2.0", "cc-by-nc-4.0", "mit", "other", "unknown")
FOREIGN = "foreign"
"""Owner whose repositories the token may not make."""
Answer = tuple[int, dict | bytes]


@dataclass
class Repository:
    """A repository of a dataset or a model."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    """Name and all files of each commit."""

    def commit(self, files: dict[str, bytes]) -> str:
        name = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits.append((name, files))
        return name

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[-1][1] if revision == "main" else dict(self.commits)[revision]


class Hub:
    """The server. Use as a context manager.

    `before(method, path)` is called at the start of every request: it may wait, and may return another answer or a
    function that changes the answer's bytes.
    """

    def __init__(self, token: str):
        self.token, self.repositories, self.large, self.requests = token, {}, {}, []
        self.before: Callable[[str, str], Answer | Callable[[bytes], bytes] | None] = lambda method, path: None
        self.lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def asked(self, method: str, pattern: str) -> list[str]:
        """Paths of the requests so far."""
        return [path for asked, path in self.requests if asked == method and re.search(pattern, path)]

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> Answer:
        """The answer to a request."""
        if method == "POST" and path == "/api/validate-yaml":
            return _card_problems(json.loads(body))
        if method not in ("GET", "HEAD") and "/upload/" not in path and token != self.token:
            return 401, {"error": "Invalid username or password."}
        if method == "POST" and path == "/api/repos/create":
            order = json.loads(body)
            if order["organization"] == FOREIGN:
                return 403, {"error": f"You don't have the rights to create a repo under the namespace {FOREIGN}"}
            of_model = order.get("type", "model") == "model"
            name = f"{'models/' if of_model else ''}{order['organization']}/{order['name']}"
            if name in self.repositories:
                return 409, {"error": "You already created this repo"}
            self.repositories[name] = Repository(order.get("visibility") == "private")
            self.repositories[name].commit({".gitattributes": b"*.tar filter=lfs\n"})
            shown = name.removeprefix("models/") if of_model else f"datasets/{name}"
            return 200, {"url": f"{self.endpoint}/{shown}"}
        if method == "PUT" and path.startswith("/upload/"):
            oid = path.removeprefix("/upload/")
            if hashlib.sha256(body).hexdigest() != oid:
                return 400, {"error": "wrong digest"}
            self.large[oid] = body
            return 200, {}
        match = re.fullmatch(r"(?:/api)?/(?:(datasets|models)/)?([^/]+/[^/.]+)(?:\.git)?(?:/(.*))?", path)
        if not match:
            return 404, {"error": f"no such page: {path}"}
        name = match[2] if match[1] == "datasets" else f"models/{match[2]}"
        found = self.repositories.get(name)
        if found is None or (found.private and token != self.token):
            return 401, {"error": "Repository not found", "code": "RepoNotFound"}
        return self._of_repository(found, name, match[3] or "", body)

    def commit_of(self, path: str) -> str:
        """The commit that a file was asked for in."""
        name, _, more = path.removeprefix("/").partition("/resolve/")
        found = self.repositories[name.removeprefix("datasets/") if name.startswith("datasets/") else f"models/{name}"]
        revision = more.partition("/")[0]
        return found.commits[-1][0] if revision == "main" else revision

    def _of_repository(self, found: Repository, name: str, rest: str, body: bytes) -> Answer:
        what, _, more = rest.partition("/")
        if what in ("tree", "preupload", "commit") and more != "main" and more not in dict(found.commits):
            return 404, {"error": "Invalid rev id", "code": "RevisionNotFound"}
        if what in ("", "revision"):
            revision = more or "main"
            if revision != "main" and revision not in dict(found.commits):
                return 404, {"error": "Invalid rev id", "code": "RevisionNotFound"}
            return 200, {
                "id": name.removeprefix("models/"),
                "sha": found.commits[-1][0] if revision == "main" else revision,
            }
        if what == "tree":
            return 200, [_entry(path, data) for path, data in found.files(more).items()]
        if what == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"}
                for f in json.loads(body)["files"]
            ]
            there = found.files(more)
            for f in files:
                entry = _entry(f["path"], there[f["path"]]) if f["path"] in there else {}
                f |= {"shouldIgnore": False, "oid": entry["lfs"]["oid"] if "lfs" in entry else entry.get("oid")}
            return 200, {"files": files}
        if rest == "info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            for o in objects:
                if o["oid"] not in self.large:
                    o["actions"] = {"upload": {"href": f"{self.endpoint}/upload/{o['oid']}", "header": {}}}
            return 200, {"transfer": "basic", "objects": objects}
        if what == "commit":
            files = dict(found.files(more))
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.large[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            commit = found.commit(files)
            of = name.removeprefix("models/") if name.startswith("models/") else f"datasets/{name}"
            url = f"{self.endpoint}/{of}/commit/{commit}"
            return 200, {"success": True, "commitOid": commit, "commitUrl": url}
        assert what == "resolve", rest
        revision, _, path = more.partition("/")
        if revision != "main" and revision not in dict(found.commits):
            return 404, {"error": "Invalid rev id", "code": "RevisionNotFound"}
        files = found.files(revision)
        return (200, files[path]) if path in files else (404, {"error": "Entry not found", "code": "EntryNotFound"})


def _card_problems(asked: dict) -> Answer:
    """What the hub answers to a model card: part of the rules that its documentation names."""
    block = re.match(r"---\n(.*?)\n---\n", asked["content"], re.DOTALL)
    try:
        values = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError as error:
        return 400, {"errors": [{"message": str(error)}], "warnings": []}
    if not isinstance(values, dict):
        return 200, {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    errors = []
    if not isinstance(values.get("license"), str) or values["license"] not in LICENSES:
        errors.append('"license" must be one of the known identifiers')
    for name in ("tags", "datasets", "metrics"):
        if not all(isinstance(each, str) for each in values.get(name, [])):
            errors.append(f'"{name}" must be a list of strings')
    for name in [values["base_model"]] if "base_model" in values else []:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
            errors.append('"base_model" must be the name of a model')
    for entry in values.get("model-index", []):
        for result in entry["results"]:
            if not (
                entry["name"] and result["task"]["type"] and result["dataset"]["type"] and result["dataset"]["name"]
            ):
                errors.append('"model-index" must name model, task and dataset')
            if any(not isinstance(metric["value"], float) or not metric["type"] for metric in result["metrics"]):
                errors.append('"model-index" must have metrics with types and values')
    return (400 if errors else 200), {"errors": [{"message": e} for e in errors], "warnings": []}


def _entry(path: str, data: bytes) -> dict:
    entry = {"type": "file", "path": path, "size": len(data)}
    if path.endswith(LARGE):
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return {**entry, "oid": "0" * 40, "lfs": lfs}
    return {**entry, "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        """Nothing is printed where a client was killed; a bug of this server would be an answer that is missing."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append((self.command, path))
        other = self.hub.before(self.command, path)
        authorization = self.headers.get("Authorization") or ""
        token = authorization.removeprefix("Bearer ") or None
        with self.hub.lock:
            status, content = other if isinstance(other, tuple) else self.hub.answer(self.command, path, body, token)
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        if callable(other):
            data = other(data)
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        if status == 200 and "/resolve/" in path:
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", self.hub.commit_of(path))
        if not isinstance(content, bytes) and isinstance(content, dict) and "code" in content:
            self.send_header("X-Error-Code", content["code"])
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_POST = do_PUT = do_HEAD = _handle

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""
