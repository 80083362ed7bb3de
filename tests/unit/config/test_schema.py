"""The settings: their defaults, their documentation, and that every shipped file is valid."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from masp.config import Config, load_config, save_config
from masp.config.fields import describe_settings
from masp.data.questions import load_questions
from masp.taxonomy import ASPECTS

REPOSITORY = Path(__file__).resolve().parents[3]


SHIPPED = sorted(
    path
    for path in (REPOSITORY / "configs").rglob("*.yaml")
    if not path.name.startswith(("questions", "aspects")) and path.parent.name != "cluster"
)


def test_defaults_are_those_of_the_method():
    config = load_config(None, ["vlm.path=model", "dataset.root=images", "cache.dir=cache"])
    assert type(config) is Config
    assert config.aspects == list(ASPECTS)
    assert (config.stage1.num_epochs, config.stage1.learning_rate) == (3, 1e-5)
    assert (config.stage2.num_epochs, config.stage2.learning_rate) == (1, 5e-6)
    assert (config.stage1.warmup_ratio, config.stage2.weight_decay, config.seed) == (0.03, 0.01, 3407)
    assert (config.vlm.max_side, config.aspect_module.num_queries, config.stage2.num_soft_prompt_tokens) == (
        1024,
        5,
        32,
    )


def test_every_shipped_file_is_found():
    assert {"train.yaml", "eval.yaml", "demo.yaml", "emoset.yaml", "folder.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(REPOSITORY / "configs")))
def test_shipped_file_loads_and_round_trips(path, tmp_path):
    config = load_config(path, [])
    save_config(config, tmp_path / "resolved.yaml")
    assert load_config(tmp_path / "resolved.yaml", []) == config
    assert [p.name for p in tmp_path.iterdir()] == ["resolved.yaml"]


def test_shipped_questions_load():
    for path in (REPOSITORY / "configs").glob("questions*.yaml"):
        questions = load_questions(path)
        assert set(questions.aspects) == set(ASPECTS) and min(map(len, questions.aspects.values())) >= 3, path
    published = load_questions(REPOSITORY / "configs" / "questions-published.yaml")
    assert all("['joy', 'fear']" in question for question in published.every_emotion(["joy", "fear"]))


def test_the_reference_is_current_and_complete():
    sys.path.insert(0, str(REPOSITORY / "tools"))
    try:
        import config_reference
    finally:
        sys.path.pop(0)
    assert config_reference.main(["--check"]) == 0
    document = (REPOSITORY / "docs" / "configuration.md").read_text()
    names = describe_settings(Config)
    assert len(names) > 50
    assert all(re.search(rf"^\| `{re.escape(name)}` \|.*\| .+ \|$", document, re.M) for name in names)


def test_reading_the_schema_imports_nothing_heavy():
    code = "import sys, masp.config; print([m for m in ('torch', 'PIL', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert result.stdout.strip() == "[]"
