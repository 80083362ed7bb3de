import socket
import sys

import pytest

from masp.errors import InputError
from masp.inference.serving.settings import ServerSettings, address_of, bind, is_loopback, need_extra, token_for


@pytest.mark.parametrize("module", ["fastapi", "uvicorn", "python_multipart", "prometheus_client"])
def test_a_missing_extra_is_named(monkeypatch, module):
    need_extra()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"{module} is not installed.*pip install 'masp\[serve\]'"):
        need_extra()


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.3.2.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False),
        ("::", False), ("192.168.0.1", False), ("localhost.evil.example", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host, expected):
    assert is_loopback(host) == expected


def test_a_token_is_new_beyond_loopback_and_none_on_it(monkeypatch):
    monkeypatch.delenv("MASP_TOKEN", raising=False)
    assert token_for("127.0.0.1") == (None, False)
    (one, is_new), (other, _) = token_for("0.0.0.0"), token_for("0.0.0.0")
    assert is_new and one != other and len(one) > 40
    monkeypatch.setenv("MASP_TOKEN", "0123456789abcdef")
    assert token_for("127.0.0.1") == token_for("0.0.0.0") == ("0123456789abcdef", False)
    for wrong in ("", "short", "0123456789abcdef; x", "0123456789abcde\u00e9"):
        monkeypatch.setenv("MASP_TOKEN", wrong)
        with pytest.raises(InputError, match="MASP_TOKEN: must be 16 or more"):
            token_for("127.0.0.1")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"port": -1}, "--port -1: must be 0 to 65535"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"max_wait_ms": float("nan")}, "--max-wait-ms nan"),
        ({"queue": 15}, r"--queue 15: must be 16 \(--batch-size\) or more"),
        ({"time_limit_s": 0}, "--time-limit 0"),
        ({"max_body_mb": 1e9}, "--max-body-mb"),
    ],
)
def test_limits_that_are_not_valid(given, words):
    with pytest.raises(InputError, match=words):
        ServerSettings(**given)


def test_a_port_is_taken_before_anybody_can_take_it_too():
    settings = ServerSettings(port=0)
    with bind(settings) as taken:
        port = taken.getsockname()[1]
        assert address_of(taken, settings) == f"http://127.0.0.1:{port}"
        with pytest.raises(InputError, match="Address already in use; give another --port"):
            bind(ServerSettings(port=port))
    with bind(ServerSettings(port=port)) as again:
        assert again.getsockname()[1] == port
    everywhere = ServerSettings(host="0.0.0.0", port=0)
    with bind(everywhere) as taken:
        assert address_of(taken, everywhere).startswith(f"http://{socket.gethostname()}:")
    with pytest.raises(InputError, match="not an address of this machine"):
        bind(ServerSettings(host="no.such.host.invalid"))
