"""Finding the images of a run's samples again: files that keys name, or rows of the dataset."""

import io

import yaml
from PIL import Image

from masp.data.keys import sample_key
from masp.report.images import Images, shown_name
from masp.report.run_config import RunConfig, find_config


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def run_with(tmp_path, **dataset):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"dataset": dataset}))
    return find_config(tmp_path)


def test_a_name_that_no_file_system_takes_is_no_image(tmp_path):
    key = "test/" + "x" * 5000
    assert Images(RunConfig(dataset_root=tmp_path)).find(key) == (key, None)
    assert Images(RunConfig(dataset_root=tmp_path)).find("no key") == ("no key", None)


def test_images_in_folders_of_any_form(tmp_path):
    for place in ("test/joy/a.png", "joy/b.png", "images/test/joy/c.png"):
        (tmp_path / "data" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / place).write_bytes(png((1, 2, 3)))
    images = Images(run_with(tmp_path, root=str(tmp_path / "data")))
    assert images.find(sample_key("test", "joy/a.png")) == ("test/joy/a.png", tmp_path / "data/test/joy/a.png")
    assert images.find(sample_key("val", "joy/b.png"))[1] == tmp_path / "data/joy/b.png"
    deep = Images(run_with(tmp_path, root=str(tmp_path / "data/images")))
    assert deep.find(sample_key("test", "joy/c.png"))[1] == tmp_path / "data/images/test/joy/c.png"


def test_rows_are_found_by_listing_the_dataset(tmp_path):
    (tmp_path / "data/pictures").mkdir(parents=True)
    (tmp_path / "data/pictures/a.png").write_bytes(png((1, 2, 3)))
    (tmp_path / "data/x.csv").write_text("image,label,split,nr\npictures/a.png,joy,test,7\n")
    run = run_with(tmp_path, root=str(tmp_path / "data"), columns={"id": "nr"})
    assert Images(run).find("test/7") == ("test/7", f"{tmp_path / 'data'}/pictures/a.png")
    assert Images(run).find("test/8") == ("test/8", None)
    (tmp_path / "data/x.csv").unlink()
    assert Images(run).find("test/7") == ("test/7", None)


def test_a_configuration_that_is_not_valid_finds_nothing(tmp_path):
    assert Images(run_with(tmp_path, root=3)).find("test/7") == ("test/7", None)
    assert run_with(tmp_path, root="x", format="other").dataset is None
    assert shown_name("a%20b/c%2Epng") == "a b/c.png"


def test_lists_and_columns_decide_before_names_do(tmp_path):
    for name, color in (("a.png", (9, 0, 0)), ("b.png", (0, 9, 0))):
        (tmp_path / name).write_bytes(png(color))
    (tmp_path / "x.csv").write_text("image,label,split,nr\na.png,joy,test,b.png\nb.png,joy,test,a.png\n")
    images = Images(run_with(tmp_path, root=f"{tmp_path}/x*", columns={"id": "nr"}))
    assert images.find("test/b%2Epng")[1] == f"{tmp_path}/a.png"
