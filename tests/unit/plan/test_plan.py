"""What a plan predicts, against what extraction and training then do."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as resize

from masp.cache.layout import tar_path
from masp.cache.reader import open_cache
from masp.cli.main import main
from masp.config import load_config
from masp.errors import InputError
from masp.extraction.job import extract
from masp.plan.plan import Range, make_plan
from masp.plan.render import render
from masp.plan.tokens import TokenStatistics
from tests.unit.plan.photographs import photographs
from tests.vlm_sizes import save_config_only


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
def test_every_tar_has_exactly_the_predicted_size(config, dtype, tmp_path):
    config.cache.dtype, config.cache.dir = dtype, str(tmp_path / dtype)
    # a name that no tar header holds: it takes two more blocks per member
    long = tmp_path / "data" / "train" / "joy" / f"{'long' * 40}.png"
    Image.fromarray(np.zeros((60, 90, 3), dtype=np.uint8)).save(long)
    predicted = make_plan(config)
    cache = open_cache(extract(config))
    assert predicted.tokens.total == int(cache.index.num_tokens.sum())
    assert predicted.images.num_images == len(cache) and predicted.images.num_broken == 0
    sizes = [tar_path(cache.directory, shard.name).stat().st_size for shard in cache.manifest.shards]
    assert predicted.cache.bytes == sum(sizes)
    assert predicted.cache.shard_bytes == Range(min(sizes), max(sizes))
    assert predicted.cache.num_shards == len(sizes)
    found = make_plan(config).actual
    assert found.extract.images_per_s.actual > 0
    after = found.cache
    assert after.complete and after.dtype == dtype
    for number in (after.bytes, after.num_tokens, after.num_images, after.num_shards):
        assert number.predicted == number.actual > 0
    others = (
        sum(f.stat().st_size for f in cache.directory.rglob("*.json")) + (cache.directory / "index.h5").stat().st_size
    )
    assert predicted.cache.index_bytes == pytest.approx(others, rel=0.6)  # a small cache has its fixed parts


def test_an_image_that_the_processor_refuses_is_listed_and_goes_to_quarantine(config, tmp_path, monkeypatch):
    def smart_resize(height, width, *limits, **named):
        if (width, height) == (211, 70):
            raise ValueError("211 is too wide")
        return resize(height, width, *limits, **named)

    for module in ("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl", "masp.vlm.preprocessor"):
        monkeypatch.setattr(f"{module}.smart_resize", smart_resize)
    Image.new("RGB", (211, 70)).save(tmp_path / "data" / "train" / "joy" / "strip.png")
    predicted = make_plan(config)
    reason = "refused by the VLM's processor: 211 is too wide"
    (entry,) = predicted.images.broken
    assert entry.path.endswith("strip.png") and entry.reason == reason and predicted.images.num_broken == 1
    cache = open_cache(extract(config))
    quarantine = [json.loads(line) for line in (cache.directory / "quarantine.jsonl").read_text().splitlines()]
    assert [entry["reason"] for entry in quarantine] == [reason]
    assert predicted.tokens.total == int(cache.index.num_tokens.sum())


def test_a_directory_with_two_json_files_is_enough(tmp_path):
    root = photographs(tmp_path / "data", [(1024, 768)] * 5 + [(2048, 1536)])
    vlm = save_config_only(tmp_path / "vlm", "Qwen2-VL-7B")
    config = load_config(None, [f"vlm.path={vlm}", f"dataset.root={root}", f"cache.dir={tmp_path}/c", "aspects=[]"])
    result = make_plan(config)
    # the larger one is brought to 1024 first
    assert result.tokens == TokenStatistics(min=999, median=999, mean=999.0, p95=999, max=999, total=5994)
    assert result.cache.bytes == pytest.approx(6 * 999 * 3584 * 2, rel=0.01)
    assert result.extract.flops_per_image == pytest.approx(7.75e12, rel=0.01)
    assert not result.text_tokens_counted
    assert result.stages["stage1"].num_images == 0
    stage2 = result.stages["stage2"]
    assert stage2.flops_per_image == pytest.approx(14.9e12, rel=0.01)
    assert stage2.hours == pytest.approx(stage2.flops / (989e12 * 0.4) / 3600)
    assert {lever.setting for lever in result.levers} == {f"vlm.max_pixels={n * 28 * 28}" for n in (512, 256, 128)}
    for lever in result.levers:
        limit = int(lever.setting.split("=")[1]) // 28**2
        assert lever.mean_tokens <= limit and lever.bytes == pytest.approx(6 * lever.mean_tokens * 7168, rel=0.02)


KEYS = {
    "": "dataset vlm images tokens cache space extract stages evaluate annotate flops_estimated text_tokens_counted "
    "without_cache levers actual",
    "dataset": "name root notes findings holdings obstacles target",
    "dataset.holdings": "categories aspects",
    "images": "num_images num_broken max_bad_fraction broken splits",
    "images.splits.train": "num_images num_broken tokens",
    "tokens": "min median mean p95 max total",
    "cache": "dir dtype hidden_size bytes index_bytes bytes_by_precision num_shards shard_bytes",
    "cache.bytes_by_precision": "fp32 bf16 fp16 int8 fp8",
    "cache.shard_bytes": "min max",
    "space": "folder free_bytes needed_bytes present_bytes fits verdict",
    "extract": "flops_per_image flops hours images_per_s rate",
    "extract.rate": "per_second unit source includes_encoder",
    "stages": "stage1 stage2",
    "stages.stage1": "num_images num_sequences num_epochs tokens_per_image flops_per_image flops hours images_per_s "
    "reads_bytes_per_s rate encoder_flops encoder_hours num_restarts state_bytes",
    "evaluate": "stage split scoring num_images num_validation_images num_wordings num_explained num_sequences "
    "tokens_per_image flops_per_image flops hours images_per_s reads_bytes_per_s rate",
    "without_cache": "per_aspect_and_epoch per_image_and_epoch",
    "without_cache.per_image_and_epoch": "encoder_flops encoder_hours pays_after_epochs",
    "actual": "cache extract stages",
}


def test_json_has_the_documented_keys_in_order(config):
    found = json.loads(json.dumps(make_plan(config).to_dict()))
    for place, keys in KEYS.items():
        value = found
        for part in filter(None, place.split(".")):
            value = value[part]
        assert list(value) == keys.split(), place
    assert found["images"]["splits"]["train"]["num_images"] == 18
    assert found["cache"]["bytes_by_precision"]["fp32"] == found["cache"]["bytes"]
    assert found["space"]["fits"] is True and found["space"]["verdict"].startswith("fits: needs ")
    assert found["actual"] == {"cache": None, "extract": None, "stages": {}}


def test_broken_headers_are_counted_and_ten_are_named(config, tmp_path):
    for i in range(14):
        (tmp_path / "data" / "test" / "joy" / f"broken{i:02d}.jpg").write_bytes(b"no picture")
    config.extract.max_bad_fraction = 0.01
    result = make_plan(config)
    assert result.images.num_broken == 14 and len(result.images.broken) == 10
    assert result.images.splits["test"].num_broken == 14
    text = render(result)
    assert "broken00.jpg: no image" in text and "… and 4 more" in text and "extraction will fail" in text


def test_no_readable_image_is_an_error(config, tmp_path):
    for path in (tmp_path / "data").rglob("*.*g"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no image that can be read.*empty file"):
        make_plan(config)


def test_command_line(config, repository, tmp_path, capsys):
    command = [
        *(sys.executable, "-m", "masp.cli", "plan", "--json", "--tflops", "10", "--utilization", "0.5"),
        *(f"vlm.path={config.vlm.path}", f"dataset.root={config.dataset.root}", f"cache.dir={tmp_path / 'c'}"),
    ]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["extract"]["rate"]["per_second"] == 5e12
    assert not (tmp_path / "c").exists()
    assert main([*command[3:], "--utilisation", "2"]) == 2
    assert "--utilization 2" in capsys.readouterr().err


def test_another_target_changes_stage_2_and_its_evaluation_alone(config):
    config.aspects = ["scene", "object"]
    plain = make_plan(config)
    config.target.name, config.target.questions = "two", ["Which of {categories}?"]
    config.target.categories = ["joy", "anger"]
    plan = make_plan(config)
    assert plan.dataset.target == "two" and "target: two" in render(plan) and "target:" not in render(plain)
    assert plan.dataset.holdings.categories == {
        split: {name: count for name, count in counts.items() if name != "awe"}
        for split, counts in plain.dataset.holdings.categories.items()
    }
    assert any("8 of 24 images are left out" in note for note in plan.dataset.notes)
    for name in ("cache", "tokens", "images", "extract"):
        assert getattr(plan, name) == getattr(plain, name), name
    assert plan.stages["stage1"] == plain.stages["stage1"]
    assert (plain.stages["stage2"].num_images, plan.stages["stage2"].num_images) == (18, 12)
    assert (plain.evaluate.num_images, plan.evaluate.num_images) == (6, 4)
    config.evaluate.stage = "stage1"
    scored = make_plan(config).evaluate
    config.target.categories = None
    assert scored == make_plan(config).evaluate and scored.num_images == 4  # the annotated ones of 6
    config.target.labels = "weather"
    with pytest.raises(InputError, match="target.labels = 'weather': not an aspect that images in dataset.root: "):
        make_plan(config)


def test_a_subset_makes_training_cheaper_and_nothing_else(config):
    plain = make_plan(config)
    config.dataset.shots = 2
    plan = make_plan(config)
    assert (plain.stages["stage2"].num_images, plan.stages["stage2"].num_images) == (18, 6)
    assert plan.stages["stage1"].num_images < plain.stages["stage1"].num_images
    for name in ("cache", "tokens", "images", "extract", "evaluate"):
        assert getattr(plan, name) == getattr(plain, name), name
    said = "training takes 6 of 18 training images, 2 or more per category (dataset.shots = 2)"
    assert said in plan.dataset.notes and said in render(plan) and said not in render(plain)
