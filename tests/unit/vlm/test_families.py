"""A directory that is not a VLM, or not one of ours, is one line that names it."""

import pytest

from masp.errors import InputError
from masp.vlm.families import load_config, resolve_directory
from masp.vlm.files.errors import plain_vlm_errors


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "must be an object|valid dictionary"),
        ("[" * 100_000, "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"model_type": "llama"}', "model_type = 'llama': not an image-text-to-text model"),
        ('{"model_type": "mllama"}', "'mllama': its image features enter through cross-attention"),
        ('{"model_type": "florence2"}', "'florence2': an encoder-decoder"),
        ('{"model_type": "qwen2_vl", "image_token_id": "x"}', "field 'image_token_id': TypeError: .* expected int"),
        ('{"model_type": "new", "auto_map": {"AutoConfig": "code.Config"}}', "MASP never runs it"),
    ],
)
def test_an_odd_configuration(vlm, content, message):
    (vlm / "config.json").write_text(content)
    with pytest.raises(InputError, match=message) as error:
        load_config(vlm)
    assert str(vlm) in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2


def test_a_path_that_is_not_a_vlm(tmp_path):
    for path in ("/no/such/vlm", "./vlm", "a/b/c"):
        with pytest.raises(InputError, match=f"vlm.path: '{path}' is not a directory; give that of a VLM, or a hub"):
            resolve_directory(path)
    with pytest.raises(InputError, match=f"vlm.path: {tmp_path} has no config.json"):
        resolve_directory(str(tmp_path))
    with pytest.raises(InputError, match="vlm.path: 'no/such' is not a local directory and cannot be downloaded"):
        resolve_directory("no/such")  # offline


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("first\nsecond"), "first"),
        (ValueError("first:\n  second\nthird"), "first: second third"),
        (KeyError("weight_map"), "missing 'weight_map'"),
        (MemoryError(), "MemoryError"),
        (Exception("odd"), "odd"),
        (InputError("vlm.path: ours"), None),
    ],
)
def test_whatever_is_raised_is_one_line(error, reason):
    with pytest.raises(InputError) as found, plain_vlm_errors("DIR cannot be read"):
        raise error
    assert str(found.value) == (f"vlm.path: DIR cannot be read: {reason}" if reason else "vlm.path: ours")


def test_an_interrupt_passes():
    with pytest.raises(KeyboardInterrupt), plain_vlm_errors("DIR cannot be read"):
        raise KeyboardInterrupt
