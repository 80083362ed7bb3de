"""The hub, for which a server on this machine stands in: huggingface_hub itself is the real one."""

import itertools
import signal
import threading

import pytest

from masp.cache.layout import MANIFEST
from masp.cache.remote.hub import HubPlace
from masp.cache.verify import verify_cache
from masp.errors import InputError
from tests.unit.cache.remote.conftest import content, extend

NUMBERS = itertools.count()


@pytest.fixture
def name(hub):
    """The name of a repository that is not there yet."""
    hub.requests.clear()
    hub.large.clear()
    yield f"owner/cache-{next(NUMBERS)}"
    hub.before = lambda method, path: None


def files(hub, name, number=-1):
    found = dict(hub.repositories[name].commits[number][1])
    found.pop(".gitattributes")
    return found


def error_of(result, code=2):
    lines = [line for line in result.stderr.replace("\r", "\n").splitlines() if line.startswith("error: ")]
    assert result.code == code and len(lines) == 1 and "Traceback" not in result.stderr, result
    return lines[0]


def test_there_and_back(hub, name, cache, processes, tmp_path):
    result = processes.ok("cache", "push", cache, f"hf://{name}")
    assert f"9 files sent; `masp cache pull hf://{name} DIR` fetches it" in result.last_line
    assert files(hub, name) == content(cache)
    assert hub.repositories[name].private
    result = processes.ok("cache", "pull", f"hf://datasets/{name}", tmp_path / "back")
    assert "7 files fetched, every digest is the manifest's" in result.last_line
    assert content(tmp_path / "back") == content(cache) and verify_cache(tmp_path / "back") == []
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "back"}


def test_the_layout_is_the_first_commit_and_the_manifest_the_last(hub, name, cache, processes):
    processes.ok("cache", "push", cache, f"hf://{name}")
    states = [set(files(hub, name, number)) for number in range(len(hub.repositories[name].commits))]
    assert states[:2] == [set(), {"layout.json"}]
    assert states[-1] - states[-2] == {MANIFEST} and all(MANIFEST not in state for state in states[:-1])


def test_what_is_there_is_not_sent_again(hub, name, cache, processes):
    processes.ok("cache", "push", cache, f"hf://{name}", "--public")
    assert not hub.repositories[name].private
    commits, puts = len(hub.repositories[name].commits), len(hub.asked("PUT", "^/upload/"))
    assert puts == 5
    hub.requests.clear()
    result = processes.ok("cache", "push", cache, f"hf://{name}")
    assert "all of it was there already" in result.last_line
    assert len(hub.repositories[name].commits) == commits
    assert {method for method, _ in hub.requests} == {"GET"}


def test_killed_while_sending_the_same_command_goes_on(hub, name, cache, processes, tmp_path):
    """Killed inside an upload, and again between two commits: what the hub has is not sent again."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(method, path):
        if len(hub.asked("PUT", "^/upload/")) >= 3 and method == "PUT":
            reached.set()
            go_on.wait(30)

    hub.before = hold
    running = processes.start("cache", "push", cache, f"hf://{name}", "--num-threads", 1)
    running.when(reached.is_set)
    running.kill()
    assert running.wait().code == -signal.SIGKILL
    assert set(files(hub, name)) == {"layout.json"}
    error = error_of(processes("cache", "pull", f"hf://{name}", tmp_path / "back"))
    assert "is a cache that is not finished: it has no manifest.json; run the `masp cache push` again" in error
    hub.before = lambda method, path: None
    go_on.set()
    hub.requests.clear()
    processes.ok("cache", "push", cache, f"hf://{name}")
    assert files(hub, name) == content(cache)
    assert len(hub.asked("PUT", "^/upload/")) <= 3  # of five large files two had arrived


def test_killed_while_fetching_the_same_command_goes_on(hub, name, cache, processes, tmp_path):
    processes.ok("cache", "push", cache, f"hf://{name}")
    reached, go_on = threading.Event(), threading.Event()

    def hold(method, path):
        if path.endswith("shards/train-00001.tar"):
            reached.set()
            go_on.wait(30)

    hub.before = hold
    running = processes.start("cache", "pull", f"hf://{name}", tmp_path / "back", "--num-threads", 1)
    running.when(reached.is_set)
    running.kill()
    assert running.wait().code == -signal.SIGKILL
    assert MANIFEST not in content(tmp_path / "back")
    hub.before = lambda method, path: None
    go_on.set()
    hub.requests.clear()
    processes.ok("cache", "pull", f"hf://{name}", tmp_path / "back")
    assert content(tmp_path / "back") == content(cache)
    fetched = [path.rpartition("/")[2] for path in hub.asked("GET", "/resolve/")]
    assert sorted(fetched) == ["index.h5", "manifest.json", "train-00001.json", "train-00001.tar"]


def test_asked_to_stop_it_stops_at_once(hub, name, cache, processes, tmp_path):
    reached, go_on = threading.Event(), threading.Event()

    def hold(method, path):
        if method == "PUT":
            reached.set()
            go_on.wait(60)

    hub.before = hold
    running = processes.start("cache", "push", cache, f"hf://{name}")
    running.when(reached.is_set)
    running.kill(signal.SIGTERM)
    error = error_of(running.wait(), 75)
    go_on.set()
    assert error == "error: stopped; what has arrived is kept: the same command goes on from there"
    hub.before = lambda method, path: None
    processes.ok("cache", "push", cache, f"hf://{name}")
    assert files(hub, name) == content(cache)


def test_a_file_that_arrives_damaged_is_fetched_again(hub, name, cache, processes, tmp_path):
    processes.ok("cache", "push", cache, f"hf://{name}")
    damaged = []

    def before(method, path):
        if path.endswith("shards/train-00000.tar") and not damaged:
            damaged.append(path)
            return lambda data: data[:3000] + b"\xff" + data[3001:]
        return None

    hub.before = before
    result = processes.ok("cache", "pull", f"hf://{name}", tmp_path / "back")
    assert damaged and content(tmp_path / "back") == content(cache)
    assert f"warning: hf://{name}: shards/train-00000.tar arrived damaged: its digest is not the man" in result.stderr


def test_a_server_that_fails_for_a_moment(hub, name, cache, processes, tmp_path):
    failed = set()

    def before(method, path):
        if method != "GET" and (method, path) not in failed:
            failed.add((method, path))
            return 503, {"error": "come back later"}
        return None

    hub.before = before
    processes.ok("cache", "push", cache, f"hf://{name}")
    assert files(hub, name) == content(cache)
    assert len(failed) > 7


def test_a_pull_reads_one_commit(hub, name, cache, other, processes, tmp_path):
    """Whatever is committed while it runs."""
    processes.ok("cache", "push", cache, f"hf://{name}")
    repository, done = hub.repositories[name], []

    def before(method, path):
        if path.endswith(MANIFEST) and not done:
            done.append(repository.commit(content(other)))

    hub.before = before
    processes.ok("cache", "pull", f"hf://{name}", tmp_path / "back")
    assert done and content(tmp_path / "back") == content(cache)
    revision = repository.commits[-2][0]
    processes.ok("cache", "pull", f"hf://{name}@{revision}", tmp_path / "back")
    error = error_of(processes("cache", "pull", f"hf://{name}", tmp_path / "back"))
    assert "holds another cache, made from other images or labels" in error
    error = error_of(processes("cache", "push", cache, f"hf://{name}"))
    assert f"hf://{name} holds another cache, made from other images or labels" in error


def test_a_half_arrived_other_cache_is_refused(hub, name, cache, other, processes):
    processes.ok("cache", "push", other, f"hf://{name}")
    left = content(other)
    del left[MANIFEST]
    hub.repositories[name].commit(left)
    error = error_of(processes("cache", "push", cache, f"hf://{name}"))
    assert ".json belongs to another cache, made from other images or labels" in error
    assert hub.repositories[name].files() == left


def test_strange_files_are_not_fetched(hub, name, cache, processes, tmp_path):
    processes.ok("cache", "push", cache, f"hf://{name}")
    repository = hub.repositories[name]
    strange = ("../evil", "/etc/evil", "shards/../../evil", "a.py")
    repository.commit({**repository.files(), **dict.fromkeys(strange, b"x")})
    processes.ok("cache", "pull", f"hf://{name}", tmp_path / "back")
    assert content(tmp_path / "back") == content(cache)
    assert not hub.asked("GET", "evil|a[.]py")


def test_what_a_gitignore_leaves_out_is_noticed(hub, name, cache, processes):
    def before(method, path):
        if "/preupload/" in path:
            return lambda data: data.replace(b'"shouldIgnore": false', b'"shouldIgnore": true')
        return None

    hub.before = before
    error = error_of(processes("cache", "push", cache, f"hf://{name}"))
    assert "did not arrive, and 8 other files, although nothing failed; does a .gitignore there" in error
    assert files(hub, name) == {}


def test_what_the_hub_refuses_is_one_line(hub, name, cache, processes, tmp_path):
    error = error_of(processes("cache", "pull", f"hf://{name}", tmp_path / "back"))
    assert error.startswith(f"error: SOURCE: hf://{name}: no such dataset repository, or you may not see it")
    error = error_of(processes("cache", "push", cache, f"hf://{name}", HF_TOKEN="wrong"))
    assert "Invalid username or password" in error
    hub.before = lambda method, path: (403, {"error": "no rights"}) if method == "POST" else None
    assert "no rights" in error_of(processes("cache", "push", cache, f"hf://{name}"))
    hub.before = lambda method, path: None
    processes.ok("cache", "push", cache, f"hf://{name}")
    error = error_of(processes("cache", "pull", f"hf://{name}@nothing", tmp_path / "back"))
    assert "the repository has no revision 'nothing'" in error
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("address", ["hf://owner", "hf://a/b/c", "hf://", "hf://models/a/b", "hf://owner/.."])
def test_addresses_that_are_none(cache, run, address):
    code, _, error = run("cache", "push", cache, address)
    assert code == 2 and error.startswith(f"error: {address}: ")
    assert "must be hf://owner/name" in error or "not a valid name of a repository" in error


def test_offline(cache, run, tmp_path):
    """As all tests are, but for those that start processes with another environment."""
    code, _, error = run("cache", "push", cache, "hf://owner/name")
    assert code == 2 and error == (
        "error: hf://owner/name: the hub is turned off by HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE; unset it, or give a "
        "directory"
    )
    code, _, error = run("cache", "pull", "hf://owner/name", tmp_path / "target")
    assert code == 2 and "the hub is turned off" in error
    with pytest.raises(InputError, match="turned off"):
        HubPlace("hf://owner/name", public=False)


def test_a_later_state_replaces_an_earlier_one(hub, name, cache, processes, tmp_path):
    processes.ok("cache", "push", cache, f"hf://{name}")
    processes.ok("cache", "pull", f"hf://{name}", tmp_path / "back")
    hub.requests.clear()
    extend(cache)
    first = len(hub.repositories[name].commits)
    processes.ok("cache", "push", cache, f"hf://{name}")
    assert files(hub, name) == content(cache)
    assert MANIFEST not in files(hub, name, first)  # from the first change to the last it is not a whole cache
    assert len(hub.asked("PUT", "^/upload/")) == 1  # the new shard; those images are in quarantine, not in the index
    processes.ok("cache", "pull", f"hf://{name}", tmp_path / "back")
    assert content(tmp_path / "back") == content(cache)
