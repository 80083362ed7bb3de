"""Images inside larger files: as good as files of their own."""

import io
import os
import pickle

import pytest
from PIL import Image

from masp.data.image_files.stored import Section, digest_image, image_status, open_image
from masp.data.images import UnreadableImage, image_size, load_image, read_image_file


@pytest.fixture
def section(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (30, 20), (9, 8, 7)).save(file, "PNG")
    data = file.getvalue()
    (tmp_path / "box").write_bytes(b"before" + data + b"after")
    (tmp_path / "alone.png").write_bytes(data)
    return Section(str(tmp_path / "box"), "a.png", 6, len(data)), tmp_path / "alone.png"


def test_a_section_is_read_as_a_file_of_its_own(section):
    inside, alone = section
    assert read_image_file(inside) == alone.read_bytes() == inside.read()
    assert image_size(inside) == image_size(alone) == (30, 20)
    assert load_image(inside).tobytes() == load_image(alone).tobytes()
    assert digest_image(inside) == digest_image(alone)
    assert image_status(inside).num_bytes == image_status(alone).num_bytes
    assert pickle.loads(pickle.dumps(inside)) == inside
    assert str(inside) == f"{inside.container}: a.png"


def test_reading_stays_inside(section):
    inside, _ = section
    with open_image(inside) as file:
        size = file.seek(0, io.SEEK_END)
        assert size == inside.size and file.read() == b""
        file.seek(-4, io.SEEK_CUR)
        assert len(file.read(100)) == 4
        file.seek(0)
        assert file.read(4) == b"\x89PNG"


def test_what_is_no_image_any_more(section, tmp_path):
    inside, _ = section
    os.truncate(inside.container, 20)
    with pytest.raises(OSError, match="shorter than when it was listed"):
        inside.read()
    os.unlink(inside.container)
    with pytest.raises(UnreadableImage, match="file not found"):
        image_size(inside)
    (tmp_path / "box").write_bytes(b"x" * 100)
    with pytest.raises(UnreadableImage, match="empty file"):
        read_image_file(Section(str(tmp_path / "box"), "a", 3, 0))
    with pytest.raises(UnreadableImage, match="must be at most"):
        read_image_file(Section(str(tmp_path / "box"), "a", 0, 2 << 30))
