"""What a VLM's directory may not hold: code, quantized or partial weights, and two answers to one question."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from masp.errors import InputError
from masp.vlm.families import load_config

REPOSITORY = Path(__file__).resolve().parents[4]


def refused(vlm) -> str:
    with pytest.raises(InputError) as error:
        load_config(vlm)
    assert str(vlm) in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"]
)
@pytest.mark.parametrize("value", [{"AutoConfig": "code.Evil"}, ["code.Evil", None], "other/repo--code.Evil"])
def test_code_is_refused_before_transformers_sees_it(vlm, name, value):
    path = vlm / name
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**content, "auto_map": value}))
    assert f"{path}: auto_map = " in refused(vlm)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"model_type": "evil"}, "model_type = 'evil': not a model of transformers"),
        ("config.json", {"attn_implementation": "owner/kernel"}, "asks for code from the hub"),
        ("config.json", {"vision_config__attn_implementation": "owner/kernel:f"}, "asks for code from the hub"),
        ("config.json", {"use_kernels": True}, "asks for code from the hub"),
        ("config.json", {"quantization_config": {"quant_method": "modelopt"}}, "quantized weights are not supported"),
        ("config.json", {"text_config__quantization_config": {"bits": 4}}, "quantized weights are not supported"),
        ("config.json", {"hidden_size": 64}, "hidden_size = 64 in config.json, but text_config.hidden_size = 32 in"),
        ("config.json", {"vision_config__hidden_size": 64}, "vision_config.hidden_size = 64 in config.json, but "),
        ("config.json", {"vision_config__in_chans": 1}, "vision_config.in_channels = 3 in config.json, but "),
        ("config.json", {"vision_config__spatial_patch_size": 16}, "vision_config.spatial_patch_size = 16"),
        ("config.json", {"vocab_size": 7}, "vocab_size = 7 in config.json, but text_config.vocab_size = "),
        ("preprocessor_config.json", {"merge_size": 4}, "but vision_config.spatial_merge_size = 2 in config.json"),
        (
            "preprocessor_config.json",
            {"image_processor_type": "Evil"},
            "must be the class of an image processor in transformers",
        ),
        ("tokenizer_config.json", {"tokenizer_class": "Evil"}, "must be the class of a tokenizer in transformers"),
        ("tokenizer_config.json", {"processor_class": "Evil"}, "must be the class of a processor in transformers"),
    ],
)
def test_a_key_that_is_refused(vlm, change, name, values, message):
    change(name, **values)
    assert message in refused(vlm)


@pytest.mark.parametrize("sections", [[1, 1, 1], [2, 1, 2], [1, 3.0], "124"])
def test_sections_of_positions_that_do_not_make_up_a_head(vlm, change, sections):
    change("config.json", text_config__rope_parameters={"rope_type": "default", "mrope_section": sections})
    assert ": must be integers whose sum is 4, half of hidden_size = 32 divided by num_attention_heads = 4" in refused(
        vlm
    )


@pytest.mark.parametrize("name", ["adapter_config.json", "hf_quant_config.json"])
def test_weights_of_something_else(vlm, name):
    (vlm / name).write_text('{"base_model_name_or_path": "owner/other"}')
    assert f"holds {name}: " in refused(vlm)


def test_the_image_processor_stated_twice(vlm):
    (vlm / "processor_config.json").write_text('{"image_processor": {"image_mean": [0.5, 0.5, 0.5]}}')
    assert "image_mean = [0.48, 0.45, 0.4] in preprocessor_config.json, but image_processor.image_mean" in refused(vlm)


def test_files_that_are_not_regular_or_too_large(vlm):
    os.mkfifo(vlm / "chat_template.json")
    assert "chat_template.json cannot be read: not a regular file" in refused(vlm)
    (vlm / "chat_template.json").unlink()
    (vlm / "added_tokens.json").symlink_to("/dev/zero")
    assert "added_tokens.json cannot be read: not a regular file" in refused(vlm)
    (vlm / "added_tokens.json").unlink()
    with open(vlm / "merges.txt", "wb") as file:
        file.truncate(1 << 40)
    assert "must be at most 67,108,864" in refused(vlm)


def test_a_yes_on_stdin_runs_nothing(vlm, change):
    """transformers asks whether to run the code of a directory, and believes the answer."""
    code = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Evil: pass\n"
    (vlm / "code.py").write_text(code)
    change("config.json", model_type="evil", auto_map={"AutoConfig": "code.Evil"})
    command = f"yes | {sys.executable} -m masp doctor vlm.path={vlm} dataset.root={vlm} cache.dir={vlm}/cache"
    command += f" output_dir={vlm}/out"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.returncode == 2 and not list(vlm.rglob("ran")) and "MASP never runs it" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_transformers_is_never_called_without_the_refusal_of_code():
    for path in [p for top in ("masp", "launch", "tools") for p in sorted((REPOSITORY / top).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(getattr(node, "func", None), "attr", "")
            if name in ("from_pretrained", "from_config", "get_config_dict", "pipeline"):
                arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert arguments.get("trust_remote_code") == "False", f"{path}:{node.lineno}"
