"""Settings that fit the images and the machine; what the user gives wins."""

import dataclasses

import pytest

from masp.config import load_config
from masp.demo.tiny_vlm import VLM_DIR
from masp.errors import InputError
from masp.start.choices import DEFAULT_VLM, as_override, choose
from masp.start.sizing import stage_sizes
from masp.start.write import render, write_config
from tests.unit.start.test_look import make
from tests.unit.start.test_machine import CPU, GPU

VLM = f"vlm.path={VLM_DIR}"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make(tmp_path_factory.mktemp("data") / "mine", {"joy": 60, "quiet fear": 60})


def test_a_plain_directory_gets_settings_of_its_size(data):
    chosen = choose(str(data), [VLM], "mine", CPU)
    config = chosen.config
    assert (config.dataset.name, config.dataset.root) == ("folder", str(data))
    assert config.dataset.split == {"train": 0.55, "val": 0.15, "test": 0.3}
    assert (config.output_dir, config.cache.dir) == ("outputs/mine", "outputs/mine/cache")
    assert config.cache.num_shards == 4 and config.extract.max_bad_fraction == 0.042
    sizes = stage_sizes("stage2", 66, chosen.scales.stage2)
    assert config.stage2.learning_rate == sizes.learning_rate and config.stage2.num_epochs == sizes.num_epochs
    assert config.stage2.validate_every == config.stage2.checkpoint_every == sizes.validate_every
    assert config.stage1.learning_rate == stage_sizes("stage1", 66, chosen.scales.stage1).learning_rate
    assert (config.engine.precision, config.cache.dtype, config.engine.zero_stage) == ("fp32", "fp32", 0)
    assert len(config.aspects) == 6 and config.annotate.aspects == config.aspects  # the VLM will annotate them


def test_annotated_aspects_are_those_in_use(tmp_path):
    root = make(tmp_path / "data", {"joy": 20, "fear": 20}, annotated=True)
    config = choose(str(root), [VLM], "mine", CPU).config
    assert config.aspects == ["scene", "brightness"] and config.annotate.aspects is None
    assert choose(str(root), [VLM, "aspects=[object]"], "mine", CPU).config.aspects == ["object"]


def test_without_a_vlm_it_is_the_published_one_and_a_cpu_is_told_so(data, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    on_cpu, on_gpu = choose(str(data), [], "mine", CPU), choose(str(data), [], "mine", GPU)
    assert on_cpu.config.vlm.path == on_gpu.config.vlm.path == DEFAULT_VLM
    assert on_gpu.config.vlm.path == load_config("configs/train.yaml").vlm.path
    assert "takes long on a CPU; vlm.path=DIR" in render(on_cpu, CPU) and "takes long" not in render(on_gpu, GPU)
    assert (on_gpu.config.engine.precision, on_gpu.config.cache.dtype) == ("bf16", "bf16")


def test_what_is_given_wins_and_the_rest_suits_it(data):
    given = [
        VLM,
        "stage2.num_epochs=2",
        "seed=7",
        "cache.num_shards=9",
        "evaluate.batch_size=3",
        "dataset.split={train: 0.5, test: 0.5}",
    ]
    chosen = choose(str(data), given, "mine", CPU)
    config = chosen.config
    assert (config.seed, config.cache.num_shards, config.evaluate.batch_size, config.stage2.num_epochs) == (7, 9, 3, 2)
    assert config.stage2.learning_rate == stage_sizes("stage2", 60, chosen.scales.stage2, num_epochs=2).learning_rate
    assert config.dataset.split == {"train": 0.5, "test": 0.5}
    why = {choice.key: choice.why for choice in chosen.choices}
    assert why["seed"] == why["evaluate.batch_size"] == why["stage2.num_epochs"] == "as given"
    assert why["stage2.learning_rate"] != "as given"


def test_an_entry_of_a_setting_that_is_a_mapping(data):
    chosen = choose(
        str(data), [VLM, "dataset.split.train=0.7", "dataset.split.val=0.1", "dataset.split.test=0.2"], "m", CPU
    )
    assert chosen.config.dataset.split == {"train": 0.7, "val": 0.1, "test": 0.2}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("stage1.lerning_rate=1", "did you mean stage1.learning_rate"),
        ("learning_rate", "must be key=value"),
        ("stage1.num_epochs=many", "stage1.num_epochs = 'many': must be"),
        ("dataset.root=elsewhere", "dataset.root is the first argument"),
        ("vlm.path=./nothing", "vlm.path: './nothing' is not a directory"),
        ("aspects=[smell]", "'smell' is not defined"),
        ("dataset.format=parquet", "holds nothing of the format parquet"),
    ],
)
def test_what_is_wrong_is_one_line(data, override, words):
    with pytest.raises(InputError, match=words.replace("[", r"\[")) as error:
        choose(str(data), [VLM, override], "mine", CPU)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("machine", [CPU, GPU])
def test_the_file_gives_the_same_settings_and_is_the_same_each_time(data, tmp_path, machine):
    given = [VLM, "output_dir=a: b # c", "dataset.categories=[joy, quiet fear]", "stage1.max_grad_norm=null"]
    chosen = choose(str(data), given, "mine", machine)
    path = tmp_path / "mine.yaml"
    write_config(path, chosen, machine)
    text = path.read_text()
    assert load_config(path) == chosen.config == load_config(None, [as_override(c) for c in chosen.choices])
    assert chosen.config.output_dir == "a: b # c" and chosen.config.stage1.max_grad_norm is None
    assert render(choose(str(data), given, "mine", machine), machine) == text
    assert max(map(len, text.splitlines())) <= 120 or str(VLM_DIR) in max(text.splitlines(), key=len)
    reasons = [choice for choice in chosen.choices if choice.why != "as given"]
    assert text.count("#") >= len(reasons) and text.count("# as given") == len(given)


def test_every_choice_says_why(data):
    for choice in choose(str(data), [VLM], "mine", CPU).choices:
        assert choice.why.endswith(".") or choice.why == "as given", choice
        assert dataclasses.is_dataclass(choice)
