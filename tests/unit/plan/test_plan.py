"""`masp plan`: what it predicts against what extraction and training then do."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from masp.cache.codec import encode_features, store
from masp.cache.layout import tar_path
from masp.cache.reader import open_cache
from masp.config import load_config
from masp.errors import InputError
from masp.extraction.job import extract
from masp.models.sequence import IGNORED, build_sequence
from masp.plan.actual import Comparison
from masp.plan.disk import PRECISIONS, Space, check_space, features_bytes
from masp.plan.headers import read_sizes
from masp.plan.plan import Range, make_plan
from masp.plan.rates import Rate, rates_of_run, stated_rates
from masp.plan.render import render
from masp.plan.text_tokens import Words
from masp.plan.vision_tokens import PlannedImage, TokenStatistics, token_statistics
from masp.plan.work import stage1_lengths, stage2_lengths, without_cache
from masp.vlm.families import load_config as load_vlm_config
from masp.vlm.flops import encoder_flops, shapes
from masp.vlm.prompt import load_prompt
from tests.pictures import make_config, make_dataset
from tests.tiny import make_vlm
from tests.vlm_sizes import save_config_only


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_vlm(tmp_path_factory.mktemp("plan") / "vlm")


@pytest.fixture
def config(vlm, tmp_path):
    root = make_dataset(tmp_path / "data")
    return make_config(root, vlm, tmp_path / "cache", f"output_dir={tmp_path / 'run'}")


def photographs(root, sizes, split="train"):
    """Images of one color and of given sizes, in one category."""
    folder = root / split / "joy"
    folder.mkdir(parents=True)
    for i, size in enumerate(sizes):
        Image.new("RGB", size, (i % 256, 90, 160)).save(folder / f"{i:04d}.jpg", quality=5)
    return root


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
    sizes = [tar_path(cache.folder, shard["name"]).stat().st_size for shard in cache.manifest["shards"]]
    assert predicted.cache.bytes == sum(sizes)
    assert predicted.cache.shard_bytes == Range(min(sizes), max(sizes))
    assert predicted.cache.num_shards == len(sizes)
    found = make_plan(config).actual
    assert found.extract.images_per_s.actual > 0
    after = found.cache
    assert after.complete and after.dtype == dtype
    for number in (after.bytes, after.num_tokens, after.num_images, after.num_shards):
        assert number.predicted == number.actual > 0
    others = sum(f.stat().st_size for f in cache.folder.rglob("*.json")) + (cache.folder / "index.h5").stat().st_size
    assert predicted.cache.index_bytes == pytest.approx(others, rel=0.6)  # a small cache has its fixed parts


def test_images_that_are_damaged_behind_their_headers_are_the_only_difference(config, tmp_path):
    broken = sorted((tmp_path / "data" / "train").rglob("*.jpg"))[0]
    broken.write_bytes(broken.read_bytes()[:900])
    extract(config)
    actual = make_plan(config).actual.cache
    assert actual.num_images == Comparison(24, 23)
    assert actual.bytes.actual < actual.bytes.predicted


def test_an_unfinished_cache_is_compared_shard_by_shard(config, tmp_path):
    extract(config)
    (tmp_path / "cache" / "manifest.json").unlink()
    (tmp_path / "cache" / "shards" / "train-00001.json").unlink()
    actual = make_plan(config).actual.cache
    assert not actual.complete and actual.num_shards == Comparison(4, 3)
    assert actual.bytes.predicted == actual.bytes.actual > 0
    assert actual.num_images.predicted is None


def test_features_file_has_the_predicted_size():
    for tokens, hidden in ((1, 8), (4, 1536), (999, 36), (10, 3584)):
        for precision in PRECISIONS:
            data = encode_features(store(torch.randn(tokens, hidden), precision))
            assert features_bytes(tokens, hidden, precision) == len(data), precision
    assert features_bytes(999, 3584, "bf16") == pytest.approx(7.16e6, rel=0.001)
    assert features_bytes(300, 1536, "int8") < 0.52 * features_bytes(300, 1536, "bf16")


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
    "": "dataset vlm images tokens cache space extract stages text_tokens_counted without_cache levers actual",
    "dataset": "name root notes",
    "images": "num_images num_broken max_bad_fraction broken splits",
    "images.splits.train": "num_images num_broken tokens",
    "tokens": "min median mean p95 max total",
    "cache": "dir dtype hidden_size bytes index_bytes bytes_by_precision num_shards shard_bytes",
    "cache.bytes_by_precision": "fp32 bf16 fp16 int8 fp8",
    "cache.shard_bytes": "min max",
    "space": "folder free_bytes needed_bytes present_bytes fits verdict",
    "extract": "flops_per_image flops hours images_per_s rate",
    "extract.rate": "per_second unit source",
    "stages": "stage1 stage2",
    "stages.stage1": "num_images num_sequences num_epochs tokens_per_image flops_per_image flops hours images_per_s "
    "reads_bytes_per_s rate",
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


def test_text(config):
    text = render(make_plan(config))
    for words in ("train", "stage1", "stage2", "fits", "paid for itself", "8 bits", "989 TFLOP/s at 40% utilization"):
        assert words in text
    assert "so far" not in text


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


def test_processes_read_the_same_as_one(tmp_path, monkeypatch):
    monkeypatch.setattr("masp.plan.headers._ALONE", 0)
    root = photographs(tmp_path, [(40 + i, 50) for i in range(9)])
    paths = [*sorted(root.rglob("*.jpg")), root / "none.jpg"]
    alone = read_sizes(paths, 44, num_processes=1)
    assert alone == read_sizes(paths, 44, num_processes=2)
    assert alone[0][0] == (35, 44)
    assert alone[0][-1] is None and alone[1] == [(root / "none.jpg", "file not found")]


def test_quantiles():
    images = [PlannedImage(None, (1, 1), (1, 2, 2 * n), n) for n in range(1, 101)]
    assert token_statistics(images) == TokenStatistics(min=1, median=50, mean=50.5, p95=95, max=100, total=5050)


@pytest.mark.parametrize("layout", ["after_image", "released"])
def test_lengths_are_those_of_the_sequences_that_training_builds(vlm, tmp_path, layout):
    config = load_config(
        None,
        [f"vlm.path={vlm}", "dataset.root=x", "cache.dir=x", f"stage1.layout={layout}", f"stage2.layout={layout}",
         "aspects=[scene,object]"],
    )  # fmt: skip
    prompt, question, answer = load_prompt(str(vlm)), "Which emotion?", "awe"
    num_answer = len(prompt.ids(answer))
    words = Words(
        len(prompt.opening), len(prompt.image_start), len(prompt.image_end), len(prompt.closing),
        {"scene": len(prompt.ids(question))}, {"scene": num_answer}, len(prompt.ids(question)), num_answer, True,
    )  # fmt: skip
    for stage, lengths, tokens, grid, soft in (
        ("stage1", stage1_lengths(config, words, "scene"), 5, None, 0),
        ("stage2", stage2_lengths(config, words, 6), 10, (1, 4, 6), 32),
    ):
        sequence = build_sequence(
            prompt, question, answer, num_aspect_tokens=tokens, grid=grid, num_soft_tokens=soft, layout=layout
        )
        assert (lengths.prefix, lengths.total) == (sequence.split, len(sequence)), stage
        assert lengths.num_logits == int((sequence.labels != IGNORED).sum()), stage
        assert lengths.shared == (stage == "stage1" or layout == "released")


def test_when_the_cache_has_paid_for_itself(config):
    vision, _ = shapes(load_vlm_config(config.vlm.path))

    class Annotated:
        answers = {"scene": "sea", "object": "dog"}  # noqa: RUF012 - a stand-in

    train = [PlannedImage(Annotated, (56, 56), (1, 4, 4), 4)] * 3
    one = encoder_flops(vision, (1, 4, 4))
    config.stage1.num_epochs, config.stage2.num_epochs = 3, 1
    rate = Rate(one, "FLOP", "")
    published = without_cache(config, vision, train, 4 * one, rate, per_aspect=True)
    assert published.encoder_flops == pytest.approx((3 * 6 + 3) * one)
    assert published.encoder_hours == pytest.approx((3 * 6 + 3) / 3600)
    assert published.pays_after_epochs == pytest.approx(4 / 6)
    once = without_cache(config, vision, train, 4 * one, rate, per_aspect=False)
    assert once.encoder_flops == pytest.approx(4 * 3 * one) and once.pays_after_epochs == pytest.approx(4 / 3)
    assert without_cache(config, vision, train, 13 * one, rate, per_aspect=False).pays_after_epochs is None


def test_rates(tmp_path):
    rates = stated_rates(100, 0.5)
    assert rates.extract.hours(50e12 * 3600, 0) == pytest.approx(1)
    for tflops, utilization in ((0, 0.5), (float("nan"), 0.5), (float("inf"), 0.5), (100, 0), (100, 1.5)):
        with pytest.raises(InputError, match="--tflops|--utilization"):
            stated_rates(tflops, utilization)
    with pytest.raises(InputError, match="--rate-from"):
        rates_of_run(tmp_path, rates)
    (tmp_path / "stage2").mkdir()
    lines = [{"samples_per_second": 1.0, "tokens_per_second": t} for t in (1.0, 900.0, 1000.0, 1100.0)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"samples_per'
    (tmp_path / "stage2" / "metrics.jsonl").write_text(text)
    found = rates_of_run(tmp_path, rates)
    assert found.stage1 == rates.stage1
    assert (found.stage2.unit, found.stage2.per_second) == ("tokens", 1000.0)
    assert found.stage2.hours(flops=0, tokens=3.6e6) == pytest.approx(1)
    assert Rate(2.0, "FLOP", "").hours(7200, 0) == pytest.approx(1)


def test_logs_of_a_run_are_shown_beside_the_prediction(config, tmp_path):
    (tmp_path / "run" / "stage1").mkdir(parents=True)
    line = json.dumps({"samples_per_second": 3.0, "tokens_per_second": 150.0})
    (tmp_path / "run" / "stage1" / "metrics.jsonl").write_text(f"{line}\n{line}\n")
    result = make_plan(config)
    assert list(result.actual.stages) == ["stage1"]
    stage = result.actual.stages["stage1"]
    assert stage.images_per_s.actual == 3.0 and stage.tokens_per_image.actual == 50.0
    assert stage.tokens_per_image.predicted == result.stages["stage1"].tokens_per_image > 0
    assert "stage1: tokens/image" in render(result)


def test_measured_rates(config):
    result = make_plan(config, measure=3)
    for work in (result.extract, *result.stages.values()):
        assert "measured here on" in work.rate.source and work.rate.per_second > 0
    with pytest.raises(InputError, match="--measure 0"):
        make_plan(config, measure=0)


def test_measuring_needs_weights(config, tmp_path):
    config.vlm.path = str(save_config_only(tmp_path / "bare", "Qwen2-VL-2B"))
    with pytest.raises(InputError, match="weights"):
        make_plan(config, measure=1)


def test_space(tmp_path):
    (tmp_path / "cache" / "shards").mkdir(parents=True)
    (tmp_path / "cache" / "shards" / "train-00000.tar").write_bytes(bytes(1000))
    space = check_space(tmp_path / "cache", 5000)
    assert (space.needed_bytes, space.present_bytes, space.fits) == (4000, 1000, True)
    assert check_space(tmp_path / "not" / "yet", 10).folder == str(tmp_path)
    assert not check_space(tmp_path / "cache", 1 << 62).fits
    assert (
        "DOES NOT FIT: needs 3.00 GB, 1.00 GB are free at /x: 2.00 GB too few"
        in Space("/x", 10**9, 3 * 10**9, 0).verdict
    )


def test_command_line(config, repository, tmp_path):
    command = [
        *(sys.executable, "-m", "masp.cli", "plan", "--json", "--tflops", "10", "--utilization", "0.5"),
        *(f"vlm.path={config.vlm.path}", f"dataset.root={config.dataset.root}", f"cache.dir={tmp_path / 'c'}"),
    ]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["extract"]["rate"]["per_second"] == 5e12
    assert not (tmp_path / "c").exists()
    bad = subprocess.run([*command, "--utilisation", "2"], cwd=repository, capture_output=True, text=True, timeout=120)
    assert bad.returncode == 2 and "--utilization 2" in bad.stderr
