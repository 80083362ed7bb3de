"""What was extracted comes back, and whatever is damaged is noticed by name."""

import json
import multiprocessing
import pickle
import shutil
import subprocess
import tarfile

import pytest
import safetensors.torch
import torch
import webdataset

from masp.cache import reader
from masp.cache.codec import TORCH_NAMES
from masp.cache.layout import LAYOUT, MANIFEST
from masp.cache.reader import open_cache, open_matching_cache
from masp.data.datasets import dataset_of
from masp.data.images import load_image
from masp.errors import DataError, InputError
from masp.files.typed import plain
from masp.vlm.features import ImageLayout
from masp.vlm.preprocessor import load_preprocessor
from masp.vlm.vision import load_vision_half
from tests.images import make_config
from tests.small_cache import PLACEHOLDER, make_small_cache


def test_features_are_those_of_the_encoder_and_labels_those_of_the_dataset(made, cache):
    root, vlm, folder = made
    config = make_config(root, vlm, folder)
    vision, preprocess = load_vision_half(str(vlm)), load_preprocessor(str(vlm))
    samples = {sample.key: sample for sample in dataset_of(config).samples}
    assert len(cache) == len(samples) - 3
    for row, key in enumerate(cache.index.keys):
        cached, sample = cache.read(row), samples[key]
        assert (cached.key, cached.split, cached.category) == (key, sample.split, sample.category)
        assert cached.answers == sample.answers
        image = load_image(sample.image, config.vlm.max_side)
        inputs, layout = preprocess(image)
        assert (cached.layout, cached.image_size) == (layout, image.size)
        assert cached.features.tokens.shape == (preprocess.num_tokens(*image.size), cache.hidden_size)
        (exact,) = vision.encode([inputs], [layout])
        torch.testing.assert_close(cached.features.tokens, exact.tokens, rtol=0, atol=1e-5)
        assert cached.features.deep is exact.deep is None
        assert cache.row_of(key) == row
        record = cache.read_record(row)
        assert record.category == sample.category and len(record.source_sha256) == 64
        assert tuple(cache.index.grid[row]) == layout.grid and cache.index.num_tokens[row] == layout.num_tokens
        assert cache.categories[cache.index.category[row]] == sample.category


def test_rows_and_answers_are_told_without_reading_a_shard(cache):
    assert cache.splits == ("test", "train")
    assert sorted([*cache.rows("train"), *cache.rows("test")]) == list(range(len(cache)))
    assert all(key.startswith("test/") for key in (cache.index.keys[row] for row in cache.rows("test")))
    rows = cache.rows("train")
    for aspect in ("scene", "brightness", "human_action"):
        has = cache.has_answer(rows, aspect)
        assert has.tolist() == [aspect in cache.read(row).answers for row in rows]
    with pytest.raises(InputError, match="no split 'val'; it has test, train"):
        cache.rows("val")


def test_dtype_on_read(cache):
    plain = cache.read(0)
    assert plain.features.tokens.dtype == torch.float32
    half = cache.read(0, torch.bfloat16).features.tokens
    assert half.dtype == torch.bfloat16 and torch.equal(half, plain.features.tokens.bfloat16())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_caches_of_half_precision_come_back_bit_for_bit(made, tmp_path, dtype):
    from masp.extraction.job import extract

    root, vlm, _ = made
    cache = open_cache(extract(make_config(root, vlm, tmp_path / "c", f"cache.dtype={dtype}", "cache.num_shards=1")))
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    config = make_config(root, vlm, tmp_path / "c")
    path = {s.key: s.image for s in dataset_of(config).samples}[cache.index.keys[0]]
    inputs, layout = load_preprocessor(str(vlm))(load_image(path, 1024))
    (features,) = load_vision_half(str(vlm), wanted).encode([inputs], [layout])
    assert cache.read(0).features.tokens.dtype == wanted
    torch.testing.assert_close(cache.read(0).features.tokens, features.tokens, rtol=0.02, atol=0.02)


def test_stock_webdataset_and_tar_read_the_shards(cache):
    shards = sorted(str(p) for p in (cache.directory / "shards").glob("*.tar"))
    stream = webdataset.WebDataset(shards, shardshuffle=False)
    samples = list(stream)
    assert [s["__key__"] for s in samples] == list(cache.index.keys)
    for row, sample in enumerate(samples):
        cached = cache.read(row)
        assert torch.equal(safetensors.torch.load(sample["safetensors"])["features"], cached.features.tokens)
        assert json.loads(sample["json"])["answers"] == cached.answers
    with tarfile.open(shards[0]) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o444)


def test_the_command_tar_takes_a_shard_apart(cache, tmp_path):
    shards = sorted((cache.directory / "shards").glob("*.tar"))
    for shard in shards:
        done = subprocess.run(["tar", "-xf", shard, "-C", tmp_path], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    for row, key in enumerate(cache.index.keys):
        record = json.loads((tmp_path / f"{key}.json").read_text())
        assert record == plain(cache.read_record(row)) and record["key"] == key
        features = safetensors.torch.load_file(tmp_path / f"{key}.safetensors")["features"]
        assert torch.equal(features, cache.read(row).features.tokens)
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 2 * len(cache)


@pytest.mark.parametrize("dtype", TORCH_NAMES)
def test_deep_maps_come_back(tmp_path, dtype):
    cache = open_cache(make_small_cache(tmp_path / "cache", dtype=dtype, num_deep_maps=3))
    plain = open_cache(make_small_cache(tmp_path / "plain", dtype=dtype))
    for row in range(len(cache)):
        sample, count = cache.read(row), int(cache.index.num_tokens[row])
        assert sample.features.deep.shape == (3, count, cache.hidden_size)
        assert sample.features.deep.dtype == sample.features.tokens.dtype == plain.read(row).features.tokens.dtype
        assert [t.dtype for t in cache.read(row, torch.bfloat16).features.tensors] == 2 * [torch.bfloat16]
        assert sample.layout == ImageLayout(count, (1, 2, 2 * count))
    assert (cache.manifest.num_deep_maps, plain.manifest.num_deep_maps) == (3, None)


def test_an_image_without_a_grid_and_with_separators(tmp_path):
    cache = open_cache(make_small_cache(tmp_path / "cache", separator=9))
    for row in range(len(cache)):
        count = int(cache.index.num_tokens[row])
        block = ((PLACEHOLDER, count - 1), (9, 1), (PLACEHOLDER, 1))
        assert cache.read(row).layout == ImageLayout(count, None, block)


def read_in_process(cache, row, pipe):
    pipe.send(cache.read(row).features.tokens.sum().item())


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.full)])
def test_a_cache_travels_to_other_processes(cache, method):
    expected = cache.read(3).features.tokens.sum().item()
    assert cache._files and not pickle.loads(pickle.dumps(cache))._files
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=read_in_process, args=(cache, 3, there))
    process.start()
    assert here.recv() == expected
    process.join()
    assert process.exitcode == 0


def test_few_files_stay_open(cache, monkeypatch):
    monkeypatch.setattr(reader, "MAX_OPEN_SHARDS", 2)
    fresh = pickle.loads(pickle.dumps(cache))
    for row in [*range(len(fresh)), *range(len(fresh))]:
        fresh.read(row)
        assert len(fresh._files) <= 2


def test_another_model_is_refused_by_field(made, cache):
    from masp.cache.fingerprint import model_fields

    root, vlm, folder = made
    config = make_config(root, vlm, folder)
    cache.check_model(model_fields(vlm, config.vlm, "fp32"))
    with pytest.raises(InputError, match='made with dtype = "fp32", but here it is "bf16"'):
        cache.check_model(model_fields(vlm, config.vlm, "bf16"))


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"name": "emotion6"}, 'dataset.name = "folder", but here it is "emotion6"'),
        ({"categories": ["{1}", "{0}"]}, "dataset.categories = "),
        ({"categories": ["{0}", "{1}", "hope"]}, '"hope"]; give the value of the cache or another cache.dir'),
    ],
)
def test_settings_of_another_dataset_are_refused(made, cache, settings, line):
    root, vlm, folder = made
    config = make_config(root, vlm, folder)
    config.dataset.categories = [name.upper() for name in cache.categories]
    assert open_matching_cache(config)[0].categories == cache.categories
    changed = {
        name: value if isinstance(value, str) else [each.format(*cache.categories) for each in value]
        for name, value in settings.items()
    }
    for name, value in changed.items():
        setattr(config.dataset, name, value)
    with pytest.raises(InputError) as error:
        open_matching_cache(config)
    assert line in str(error.value) and str(folder) in str(error.value)


def test_every_flipped_byte_of_a_sample_is_noticed(copied):
    folder, _ = copied
    cache = open_cache(folder)
    row = int(cache.index.num_tokens.argmin())
    name = cache.shard_name(int(cache.index.shard[row]))
    path, offset = folder / "shards" / f"{name}.tar", int(cache.index.offset[row])
    whole = path.read_bytes()
    start, length = int(cache.index.json_length[row]), int(cache.index.length[row])
    inside = [*range(start), *range(int(cache.index.features_start[row]), length, 7)]
    for position in inside:
        flipped = bytearray(whole)
        flipped[offset + position] ^= 4
        with open(path, "r+b") as file:  # in place: the reader keeps its file open
            file.write(flipped)
        with pytest.raises(DataError, match=rf"{name}.tar: sample {cache.index.keys[row]}: .*checksum.*--repair"):
            cache.read(row)


def test_a_tar_that_is_cut_or_gone_names_shard_key_and_remedy(copied):
    folder, _ = copied
    cache = open_cache(folder)
    last = int(cache.rows("test")[-1])
    path = folder / "shards" / "test-00000.tar"
    with open(path, "r+b") as file:
        file.truncate(int(cache.index.offset[last]) + 40)
    with pytest.raises(DataError, match=r"test-00000.tar: sample test/.*cut short.*verify .* --repair"):
        cache.read(last)
    path.unlink()
    with pytest.raises(DataError, match="the shard is missing"):
        open_cache(folder).read(last)


def test_a_damaged_index_or_manifest_is_an_error_with_a_remedy(copied):
    folder, _ = copied
    index = folder / "index.h5"
    data = index.read_bytes()
    index.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"index.h5 is damaged.*--repair"):
        open_cache(folder)
    index.unlink()
    with pytest.raises(DataError, match=r"index.h5 cannot be read"):
        open_cache(folder)
    index.write_bytes(data)
    manifest = folder / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"num_samples": 6', b'"num_samples": 5', 1))
    with pytest.raises(DataError, match=r"manifest.json is damaged.*--repair"):
        open_cache(folder)


def test_what_is_no_finished_cache_says_what_is_missing(copied, tmp_path):
    folder, _ = copied
    with pytest.raises(InputError, match="does not exist; make it with `masp extract`"):
        open_cache(tmp_path / "nothing")
    with pytest.raises(InputError, match="manifest.json is a file; name the directory that `masp extract` made"):
        open_cache(folder / MANIFEST)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="is not a feature cache"):
        open_cache(tmp_path / "empty")
    (folder / MANIFEST).unlink()
    with pytest.raises(InputError, match="all its shards but no manifest"):
        open_cache(folder)
    (folder / "shards" / "train-00001.json").unlink()
    with pytest.raises(InputError, match=r"1 of 4 shards are missing \(train-00001\); run `masp extract`"):
        open_cache(folder)
    shutil.rmtree(folder / "shards")
    (folder / LAYOUT).unlink()
    with pytest.raises(InputError, match="is not a feature cache"):
        open_cache(folder)
