"""A released file that would take more memory than it has bytes is refused before anything is read."""

import zipfile

import pytest
import torch

from masp.artifacts.released_format import MAX_PICKLE_BYTES, read_released_soft_prompt
from masp.errors import InputError


def archive(path, pickle: bytes, compression: int = zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("a/data.pkl", pickle)
        file.writestr("a/byteorder", "little")
        file.writestr("a/version", "3\n")
    return str(path)


@pytest.mark.parametrize("name", [b"builtins\nbytearray", b"__builtin__\nset", b"_codecs\nencode"])
def test_a_pickle_that_claims_any_memory(tmp_path, name):
    pickle = b"\x80\x02c" + name + b"\n\x8a\x05\x00\x00\x00\x00\x20\x85R."  # of 2**37 bytes
    with pytest.raises(InputError, match="is refused: it names "):
        read_released_soft_prompt(archive(tmp_path / "a.pt", pickle), 8)


def test_compressed_and_long_members(tmp_path):
    with pytest.raises(InputError, match="is compressed"):
        read_released_soft_prompt(archive(tmp_path / "a.pt", bytes(9), zipfile.ZIP_DEFLATED), 8)
    with pytest.raises(InputError, match="must be at most 8,388,608"):
        read_released_soft_prompt(archive(tmp_path / "b.pt", bytes(MAX_PICKLE_BYTES + 1)), 8)


def test_members_that_share_bytes(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data/0", bytes(100_000))
        file.infolist()[0].file_size, big = 100_000, file.infolist()[0]
        file.filelist.extend([big] * 50)
    with pytest.raises(InputError, match="its members claim 5,100,000"):
        read_released_soft_prompt(str(path), 8)


@pytest.mark.parametrize("value", [1e300, float("nan")])
def test_numbers_that_fp32_cannot_hold(tmp_path, value):
    path = str(tmp_path / "a.pt")
    torch.save({"<|reserved_special_token_0|>": torch.full((8,), value, dtype=torch.float64)}, path)
    with pytest.raises(InputError, match="not finite in fp32"):
        read_released_soft_prompt(path, 8)
