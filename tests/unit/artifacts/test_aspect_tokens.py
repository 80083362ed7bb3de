"""The second-level cache: kept tokens are those of the aspect modules, and a damaged file is one line."""

import dataclasses
import random
import subprocess
import sys
from subprocess import PIPE

import h5py
import pytest
import torch

from masp.artifacts.aspect_tokens import AspectTokens, _header, build_aspect_tokens, open_aspect_tokens
from masp.artifacts.store import Lineage, load_aspects, save_aspects
from masp.cache.reader import open_cache
from masp.config import load_config
from masp.config.schema import CheckpointConfig
from masp.errors import DataError, InputError
from masp.extraction.job import extract
from masp.models.sequence import pad_features
from masp.models.trainable import AspectModules
from tests.runs import make_run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Configuration, cache, digest of the aspect modules, and the file of their tokens."""
    directory = tmp_path_factory.mktemp("run")
    path = make_run(directory, 5, 1)
    aspect = directory / "aspect.pth"
    config = load_config(path, [f"checkpoint.aspect={aspect}"])
    extract(config)
    cache = open_cache(config.cache.dir)
    torch.manual_seed(0)
    modules = AspectModules(config.aspects, cache.hidden_size, config.aspect_module.num_queries)
    save_aspects(modules, directory, Lineage("aspect", "trained"))
    _, lineage = load_aspects(str(aspect), config.aspects, cache.hidden_size)
    return config, cache, lineage.digest, build_aspect_tokens(config)


def test_kept_tokens_are_those_of_the_modules(made):
    config, cache, digest, _ = made
    modules, _ = load_aspects(config.checkpoint.aspect, config.aspects, cache.hidden_size)
    tokens = AspectTokens(cache, config.aspects, digest)
    assert tokens.num_queries == modules.num_queries
    for row in range(len(cache)):
        features, mask = pad_features([cache.read(row).features.tokens.float()])
        with torch.no_grad():
            assert torch.allclose(tokens.read(row), modules(features, mask)[0], atol=1e-6)
    tokens.close()


def test_tokens_of_other_modules_are_not_found(made):
    config, cache, _, _ = made
    config.cache.aspect_tokens = True
    with pytest.raises(InputError, match="cache.aspect_tokens = true: .* holds no tokens of aspect modules 0123"):
        open_aspect_tokens(config, cache, "0123")
    assert open_aspect_tokens(config, cache, None) is None


def test_a_file_that_another_process_has_open_is_read(made):
    config, cache, digest, path = made
    program = f"import h5py\nwith h5py.File({str(path)!r}, 'a'):\n    print('open', flush=True)\n    input()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=PIPE, stdout=PIPE) as other:
        assert other.stdout.readline() == b"open\n"
        tokens = AspectTokens(cache, config.aspects, digest)
        assert tokens.read(0).isfinite().all()
        tokens.close()
        other.stdin.write(b"\n")


def test_a_file_of_an_earlier_version_is_read(made):
    config, cache, digest, path = made
    whole = path.read_bytes()
    header = _header(cache, config.aspects, digest)
    try:
        with h5py.File(path, "r") as file:
            columns = {name: file[name][()] for name in ("tokens", "crc32")}
        for text, fits in ((header.text(), True), (header.text().replace("scene", "sceme"), False)):
            with h5py.File(path, "w") as file:
                file.attrs["made_of"] = text  # of variable length
                for name, values in columns.items():
                    file[name] = values
            if fits:
                assert AspectTokens(cache, config.aspects, digest).read(1).isfinite().all()
            else:
                with pytest.raises(DataError, match="it is not what its name says"):
                    AspectTokens(cache, config.aspects, digest)
    finally:
        path.write_bytes(whole)


def test_tokens_that_are_not_finite_name_their_image(made, tmp_path):
    config, cache, *_ = made
    modules, _ = load_aspects(config.checkpoint.aspect, config.aspects, cache.hidden_size)
    with torch.no_grad():
        modules.by_aspect["object"].in_proj_weight.fill_(1e30)  # finite, and its products are not
    save_aspects(modules, tmp_path, Lineage("aspect", "trained"))
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(aspect=str(tmp_path / "aspect.pth")))
    before = sorted(path.name for path in (cache.directory / "aspect-tokens").iterdir())
    with pytest.raises(InputError) as error:
        build_aspect_tokens(config)
    assert f"sample {cache.index.keys[0]!r} for aspect 'object' are not finite" in str(error.value)
    assert sorted(path.name for path in (cache.directory / "aspect-tokens").iterdir()) == before


def renamed(file: h5py.File, path) -> None:
    file.move("tokens", "token")


def external(file: h5py.File, path) -> None:
    shape = file["crc32"].shape
    del file["crc32"]
    file.create_dataset("crc32", shape, dtype="u4", external=[(str(path), 0, h5py.h5f.UNLIMITED)])


def claims_much(file: h5py.File, path) -> None:
    tokens = file["tokens"].shape
    del file["tokens"]
    file.create_dataset("tokens", (*tokens[:2], 10**9, tokens[3]), dtype="f4", chunks=(1, 1, 64, 32))


def doubled(file: h5py.File, path) -> None:
    tokens = file["tokens"][:].astype("f8")
    del file["tokens"]
    file["tokens"] = tokens


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file, path: file.attrs.__delitem__("made_of"), "it is not what its name says"),
        (lambda file, path: file.attrs.__setitem__("made_of", [1, 2]), "it is not what its name says"),
        (lambda file, path: file.__delitem__("crc32"), "it holds no crc32"),
        (renamed, "it holds no tokens"),
        (doubled, "tokens is float64; must be float32"),
        (external, "the values of crc32 are in another file"),
        (claims_much, "tokens claims .* bytes; the file holds 0 of them"),
    ],
)
def test_a_file_of_another_shape_is_one_line(made, change, message):
    config, cache, digest, path = made
    whole = path.read_bytes()
    try:
        with h5py.File(path, "a") as file:
            change(file, path)
        with pytest.raises(DataError, match=message) as error:
            AspectTokens(cache, config.aspects, digest).read(0)
        assert str(error.value).startswith(f"{path} is damaged: ") and "masp cache aspects" in str(error.value)
        assert "\n" not in str(error.value)
    finally:
        path.write_bytes(whole)


def test_no_changed_byte_is_used_or_brings_a_traceback(made):
    config, cache, digest, path = made
    draw, whole = random.Random(0), path.read_bytes()
    undamaged = AspectTokens(cache, config.aspects, digest)
    expected = [undamaged.read(row) for row in range(len(cache))]
    undamaged.close()
    num_refused = 0
    try:
        for number in range(60):
            data = bytearray(whole)
            if number % 3:
                data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            else:
                del data[draw.randrange(len(data)) :]
            path.write_bytes(data)
            try:
                tokens = AspectTokens(cache, config.aspects, digest)
                try:
                    assert all(torch.equal(tokens.read(row), expected[row]) for row in range(len(cache)))
                finally:
                    tokens.close()
            except DataError as error:
                assert str(error).startswith(f"{path} is damaged: ")
                num_refused += 1
    finally:
        path.write_bytes(whole)
    assert num_refused > 20
