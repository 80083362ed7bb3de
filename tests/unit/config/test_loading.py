"""The configuration: what is read, what is refused and in which words, and what is written back."""

import dataclasses
import os
import time
from pathlib import Path

import pytest
import yaml

from masp.config import load_config, save_config
from masp.config.fields import RENAMED, describe_settings
from masp.config.reading import NOT_GIVEN
from masp.config.schema import Config
from masp.errors import InputError

NEEDED = ["vlm.path=model", "dataset.root=images", "cache.dir=cache"]


def refused(*overrides: str, path: Path | None = None) -> str:
    with pytest.raises(InputError) as error:
        load_config(path, [*(NEEDED if path is None else []), *overrides])
    message = str(error.value)
    assert "\n" not in message
    return message


def file_refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    message = refused(path=path)
    assert str(path) in message
    return message.replace(str(path), "FILE")


def test_later_sources_win(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 1\nstage1: {num_epochs: 4, learning_rate: 0.5}\noutput_dir: a\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "mine.yaml").write_text("base: ../base.yaml\nseed: 2\nstage1:\n  num_epochs: 5\nstage2:\n")
    config = load_config(tmp_path / "sub" / "mine.yaml", [*NEEDED, "seed=3", "output_dir=b", "seed=4"])
    assert (config.seed, config.output_dir) == (4, "b")
    assert (config.stage1.num_epochs, config.stage1.learning_rate) == (5, 0.5)


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001", ".1e-4", "1e-05"])
def test_every_spelling_of_a_float(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(f"stage2:\n  learning_rate: {text}\n")
    config = load_config(tmp_path / "mine.yaml", [*NEEDED, f"stage1.learning_rate={text}"])
    assert config.stage1.learning_rate == config.stage2.learning_rate == 1e-5
    assert type(config.stage1.learning_rate) is float


def test_values_take_the_type_of_their_field():
    config = load_config(
        None, [*NEEDED, "stage1.weight_decay=1", "vlm.max_pixels=1e6", "vlm.max_side=null", "aspects=[]"]
    )
    assert type(config.stage1.weight_decay) is float
    assert config.vlm.max_pixels == 1_000_000
    assert type(config.vlm.max_pixels) is int
    assert config.vlm.max_side is None
    assert config.aspects == []


@pytest.mark.parametrize("text", ["2024", "true", "2024-01-01", "a: b", "a #b", "*x", "%x", "on", "1e-5", "a=b", "'q'"])
def test_a_string_on_the_command_line_is_taken_literally(text):
    assert load_config(None, [*NEEDED, f"output_dir={text}"]).output_dir == text.strip("'")


def test_file_names_need_not_be_utf_8(tmp_path):
    config = load_config(None, [*NEEDED, "output_dir=a\udcff"])
    assert config.output_dir == "a\udcff"
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_home_directory_is_replaced_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    config = load_config(None, [*NEEDED, "dataset.root=~/pictures", "evaluate.output_dir=~"])
    assert config.dataset.root == "/home/someone/pictures"
    assert config.evaluate.output_dir is None


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("stage1.lerning_rate=1", "unknown key 'stage1.lerning_rate': did you mean stage1.learning_rate?"),
        ("learning_rate=1", "did you mean stage1.learning_rate or stage2.learning_rate?"),
        ("stage2.targets=label", "unknown key 'stage2.targets': it is now called stage2.supervision"),
        ("stag1.num_epochs=1", "unknown key 'stag1': did you mean stage1?"),
        ("zzz=1", "unknown key 'zzz': valid keys here: seed, order_seed, output_dir"),
        ("vlm.zzz=1", "unknown key 'vlm.zzz': valid keys here: vlm.path, vlm.attention"),
        (f"seed={'9' * 400}", "must be an integer from 0 to"),
        (f"stage1.learning_rate={'9' * 400}", "stage1.learning_rate = 999"),
        ("stage1.num_epochs=abc", "stage1.num_epochs = 'abc': must be an integer from 1 to 100000"),
        ("stage1.num_epochs=2.5", "stage1.num_epochs = 2.5: must be an integer"),
        ("stage1.num_epochs=true", "stage1.num_epochs = true: must be an integer"),
        ("stage1.num_epochs=0", "stage1.num_epochs = 0: must be an integer from 1"),
        ("stage1.num_epochs=", "stage1.num_epochs = null: must be an integer"),
        ("seed=99999999999999999999", "must be an integer from 0 to 4294967295"),
        ("stage1.learning_rate=.nan", "stage1.learning_rate = nan: must be a number from 0 to 10"),
        ("stage1.learning_rate=-1", "must be a number from 0 to 10"),
        ("aspect_module.init_scale=0", "aspect_module.init_scale = 0: must be a number above 0"),
        ("extract.max_bad_fraction=1.01", "must be a number from 0 to 1"),
        ("stage2.frozen_prefix=1", "must be true or false"),
        ("vlm.attention=flash", "vlm.attention = 'flash': must be one of sdpa, eager"),
        ("vlm.path=[1]", "vlm.path = [1]: must be a non-empty string"),
        ("vlm.path=", "vlm.path = null: must be a non-empty string"),
        ("vlm.path=null", "vlm.path = null: must be a non-empty string"),
        ("vlm.path=${seed}", "references such as ${…} are not replaced"),
        (
            "aspects=[scene, scne]",
            "'scne' is not defined in configs/aspects.yaml, which has facial_expression, object, scene",
        ),
        ("aspects=[scene, scene]", "each at most once"),
        ("aspects=scene", "aspects = 'scene': must be a list"),
        ("aspects.0=scene", "must be a list"),
        ("dataset.categories=[joy, Joy]", "must name one or more different categories"),
        ("dataset.categories=[]", "must name one or more different categories"),
        ("dataset.name=emosett", "must be one of emoset, fi"),
        ("vlm.path=  ", "vlm.path = null: must be a non-empty string"),
        ("vlm.path=' '", "vlm.path = ' ': must be a non-empty string"),
        ("vlm.path=a\0b", "must not contain a null character"),
        ("aspects=[scene, 3]", "must be a list such as [scene, object], each at most once"),
        ("dataset.categories=['${x}']", "references such as ${…} are not replaced"),
        ("global_batch_size=1", "did you mean stage1.global_batch_size or stage2.global_batch_size?"),
        (f"stage1.global_batch_size={10**30}", "must be an integer of at least 1"),
        ("vlm.path.x=3", "vlm.path = {'x': 3}: must be a non-empty string"),
        ("stage1=3", "stage1 = 3: must be a section with settings such as stage1."),
        ("stage1=null", "stage1 = null: must be a section with settings"),
        ("seed", "'seed' must be key=value"),
        ("=3", "'=3' must be key=value"),
        ("seed:7", "'seed:7' must be key=value, for example seed=7, without spaces"),
        ("evaluate.batch_size", "must be key=value, for example evaluate.batch_size=…, without spaces"),
        ("runs/my.YAML", "must be key=value, for example seed=1; a configuration is given as --config runs/my.YAML"),
        ("seed=[", "not valid YAML"),
        ("base=other.yaml", "unknown key 'base'"),
        ("\udcff=1", "unknown key '\\udcff'"),
        ("vlm.\udcff=1", "unknown key 'vlm.\\udcff'"),
        ("vlm.attention=\udcff", "vlm.attention = '\\udcff': must be one of"),
        ('aspects=[scene, "\\uD800"]', "'\\ud800' is not defined in"),
        ("vlm..path=1", "unknown key 'vlm.'"),
    ],
)
def test_refused_on_the_command_line(override, expected):
    message = refused(override)
    assert message.startswith("command line: ")
    assert expected in message


def test_values_that_contradict_each_other():
    message = refused("vlm.min_pixels=100", "vlm.max_pixels=50")
    assert message == "command line: vlm.min_pixels = 100: must be at most vlm.max_pixels, which is 50"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: 1\nstage1:\n  num_epochs: 3\n  lerning_rate: 1\n", "FILE line 4: unknown key 'stage1.lerning_rate'"),
        ("seed: 1\nseed: 2\n", "FILE line 2: 'seed' is given twice, first in line 1"),
        ("stage1:\n  keep: 1\nstage1:\n  keep: 2\n", "FILE line 3: 'stage1' is given twice, first in line 1"),
        ("seed: 1\nvlm: [\n", "FILE line 3: not valid YAML"),
        ("\tseed: 1\n", "FILE line 1: not valid YAML"),
        ("- seed\n", "FILE: must hold 'key: value' lines, not ['seed']"),
        ("seed\n", "FILE: must hold 'key: value' lines, not 'seed'"),
        ("seed: 1\n---\nseed: 2\n", "FILE line 2: not valid YAML"),
        (
            "seed: !!python/object/apply:os.getcwd []\n",
            "FILE line 1: seed has the tag 'tag:yaml.org,2002:python/",
        ),
        ("!!set {seed}\n", "the document has the tag 'tag:yaml.org,2002:set'; tags are not used here"),
        ("stage1: !mine {keep: 1}\n", "FILE line 1: stage1 has the tag '!mine'; tags are not used here"),
        ("!!binary seed: 1\n", "FILE line 1: seed has the tag 'tag:yaml.org,2002:binary'; tags are not used here"),
        ("seed: !!binary aGk=\n", "tags are not used here"),
        ("seed: !!int 0x1F\n", "FILE line 1: seed = '0x1F' does not fit its tag"),
        ("seed: 0x1F\n", "seed = '0x1F': must be an integer"),
        ("seed: 1e400\n", "seed = inf: must be an integer"),
        ("seed: 12:30\n", "seed = '12:30': must be an integer"),
        ("seed: 2024-01-01\n", "seed = '2024-01-01': must be an integer"),
        ("seed:\n", "seed = null: must be an integer"),
        ("seed: |\n  1\n", "seed = '1\\n': must be an integer"),
        ("stage1:\n\tkeep: 1\n", "FILE line 2: not valid YAML"),
        ("'': 1\n", "a key must be a name"),
        ('"a\\nb": 1\n', "unknown key 'a\\nb'"),
        ("seed: !!python/name:os.getcwd x\n", "tags are not used here"),
        ("seed: &a [*a]\n", "nested too deeply"),
        ("stage1.num_epochs: 3\n", "FILE line 1: 'stage1.num_epochs' must be nested: 'stage1:', and the rest below it"),
        ("<<: {seed: 1}\n", "unknown key '<<'"),
        ("[seed]: 1\n", "a key must be a name"),
        ("vlm:\n  path: 5\n", "FILE line 2: vlm.path = 5: must be a non-empty string"),
        ("output_dir: 1e-5\n", "output_dir = 1e-05: must be a non-empty string"),
        (f"seed: {'9' * 5000}\n", "does not fit its tag"),
        ("seed: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("base: mine.yaml\n", "base leads back to this file"),
        ("base: 3\n", "FILE line 1: base = 3: must be the path of a file"),
        ("seed: 1\n", "FILE: cache.dir and dataset.root and vlm.path must be given, in the file or as cache.dir=…"),
        ("", "must be given"),
    ],
)
def test_refused_in_a_file(tmp_path, text, expected):
    assert expected in file_refused(tmp_path, text)


def test_unreadable_files(tmp_path):
    path = tmp_path / "missing.yaml"
    assert refused(path=path) == f"{path} does not exist"
    assert refused(path=tmp_path) == f"{tmp_path} cannot be read: not a regular file"
    (tmp_path / "image.yaml").write_bytes(b"\x89PNG\xff\xfe")
    assert "image.yaml: is not UTF-8 text" in refused(path=tmp_path / "image.yaml")
    (tmp_path / "null.yaml").write_bytes(b"seed: 1\0")
    assert "null.yaml: not valid YAML" in refused(path=tmp_path / "null.yaml")
    (tmp_path / "mine.yaml").write_text("base: gone.yaml\n")
    assert refused(path=tmp_path / "mine.yaml") == f"{tmp_path / 'gone.yaml'} does not exist"
    assert refused(path=tmp_path / ("n" * 300)).endswith("cannot be read: File name too long")


def test_only_regular_files_of_some_size_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "pipe.yaml cannot be read: not a regular file" in refused(path=tmp_path / "pipe.yaml")
    assert refused(path=Path("/dev/zero")) == "/dev/zero cannot be read: not a regular file"
    (tmp_path / "large.yaml").write_text("# " + "x" * (1 << 20))
    assert "large.yaml cannot be read: 1,048,578 bytes; must be at most 1,048,576" in refused(
        path=tmp_path / "large.yaml"
    )
    (tmp_path / "mine.yaml").write_text('base: "a\\0b"\n')
    assert "cannot be read: embedded null byte" in refused(path=tmp_path / "mine.yaml")


LONG = "x" * 4096


@pytest.mark.parametrize(
    "override",
    [
        LONG,
        f"{LONG}=1",
        f"stage1.{LONG}=1",
        f"{'x.' * 4096}x=1",
        f"vlm.path{'.x' * 4096}=1",
        f"stage1{'.keep' * 4096}=1",
        f"vlm.attention={LONG}",
        f"vlm.path=[{LONG}]",
        f"seed={LONG}",
        f"seed=[&{LONG}",
        f"seed=*{LONG}",
        f"seed=!{LONG} 1",
        f"{LONG}=[",
        f"stage1={{{LONG}: &a [*a]}}",
        f"aspects=[{', '.join(['scene'] * 1000)}]",
        f"stage1={LONG}",
    ],
)
def test_a_message_repeats_the_beginning_of_what_is_long(override):
    assert len(refused(override)) < 700


@pytest.mark.parametrize(
    "text", [f"{LONG}.0", f"{LONG}: 1", f'"a\\nb": !x {LONG}', f"seed: !!int {LONG}", f"? {LONG} : {{? [1] : 2}}"]
)
def test_a_message_about_a_file_repeats_the_beginning_of_what_is_long(tmp_path, text):
    assert len(file_refused(tmp_path, text)) < 700


def test_an_alias_bomb_ends_at_once(tmp_path):
    levels = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    started = time.monotonic()
    assert "more than 20000 values" in file_refused(tmp_path, "\n".join(["a0: &a0 [x]", *levels]))
    assert time.monotonic() - started < 10


def test_the_first_of_several_errors_is_the_one_named(tmp_path):
    assert "FILE line 2: stage2.keep = 0" in file_refused(tmp_path, "stage2:\n  keep: 0\nzzz: 1\nseed: -1\n")


def test_an_error_in_a_base_names_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: -1\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\nseed: 1\n")
    assert refused(path=tmp_path / "mine.yaml").startswith(f"{tmp_path / 'base.yaml'} line 1: seed = -1")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    config = load_config(None, NEEDED)
    save_config(config, tmp_path / "config.yaml")
    before = (tmp_path / "config.yaml").read_text()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        save_config(dataclasses.replace(config, seed=1), tmp_path / "config.yaml")
    assert (tmp_path / "config.yaml").read_text() == before


def test_plain_yaml_readers_understand_the_resolved_file(tmp_path):
    config = load_config(None, [*NEEDED, "dataset.categories=[joy, fear]"])
    save_config(config, tmp_path / "config.yaml")
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == dataclasses.asdict(config)


@pytest.mark.parametrize(
    ("given", "name"), [("Emotion6", "emotion6"), ("EMOSET", "emoset"), (" FI ", "fi"), ("Folder", "folder")]
)
def test_the_name_of_a_dataset_is_taken_in_any_case(given, name):
    assert load_config(None, [*NEEDED, f"dataset.name={given}"]).dataset.name == name


def test_what_a_command_does_not_use_need_not_be_given():
    with pytest.raises(InputError, match="cache.dir and dataset.root must be given"):
        load_config(None, ["vlm.path=a"])
    config = load_config(None, ["vlm.path=a"], unused=["cache.dir", "dataset.root"])
    assert (config.vlm.path, config.cache.dir, config.dataset.root) == ("a", NOT_GIVEN, NOT_GIVEN)
    assert load_config(None, NEEDED, unused=["cache.dir"]).cache.dir == load_config(None, NEEDED).cache.dir
    with pytest.raises(InputError, match="vlm.path must be given"):
        load_config(None, [], unused=["cache.dir", "dataset.root"])


def test_what_was_renamed_is_a_setting_by_its_new_name_alone():
    known = describe_settings(Config)
    assert RENAMED and all(new in known and old not in known for old, new in RENAMED.items())


def test_a_file_with_the_old_name_of_a_setting_is_read(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("stage2:\n  targets: distribution\n")
    assert load_config(path, NEEDED).stage2.supervision == "distribution"
    path.write_text("stage2:\n  targets: votes\n")
    with pytest.raises(InputError, match="c.yaml line 2: stage2.supervision = 'votes': must be "):
        load_config(path, NEEDED)
    path.write_text("stage2:\n  targets: label\n  supervision: label\n")
    with pytest.raises(InputError, match="c.yaml line 2: stage2.targets is now called stage2.supervision, which"):
        load_config(path, NEEDED)
