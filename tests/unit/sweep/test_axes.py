"""What a sweep varies, told from what all of its members have in common."""

import json

import pytest

from masp.errors import InputError
from masp.sweep.axes import asked_members, member_config, members_of, read_axes, read_members

GIVEN = ("cache.dir=cache", "dataset.root=images", "vlm.path=vlm")


def members(*overrides, num=None, random=False):
    return members_of(read_axes(None, overrides), num, 1, random)


def test_a_list_is_an_axis_unless_the_setting_is_one():
    asked = read_axes(None, ["stage2.learning_rate=[1e-3,0.01]", "aspects=[scene,object]", "seed=[1,2]", "vlm.path=x"])
    assert dict(asked.axes) == {"stage2.learning_rate": (0.001, 0.01), "seed": (1, 2)}
    assert asked.fixed == ("aspects=[scene,object]", "vlm.path=x")
    assert read_axes(None, ["aspects=[]"]).fixed == ("aspects=[]",)
    assert read_axes(None, ["aspects=[[scene],[scene,object]]"]).axes == {"aspects": (["scene"], ["scene", "object"])}


def test_every_combination_is_a_member_with_a_name_that_says_it():
    found = members("stage2.learning_rate=[1e-3,0.01]", "seed=[1,2]")
    assert [member.name for member in found] == [
        "seed=1,learning_rate=0.001",
        "seed=2,learning_rate=0.001",
        "seed=1,learning_rate=0.01",
        "seed=2,learning_rate=0.01",
    ]
    assert found[3].overrides == ["stage2.learning_rate=0.01", "seed=2"]


def test_an_empty_list_is_a_value_where_a_setting_is_a_list():
    (found,) = members("aspects=[]")
    assert found.values == {}
    assert [member.values["aspects"] for member in members("aspects=[[],[scene]]")] == [[], ["scene"]]


def test_draws_cover_a_range_and_the_first_stay_when_more_are_asked_for():
    few, many = (members("stage2.learning_rate=log(1e-4,1e-1)", num=num) for num in (4, 16))
    assert [member.name for member in many[:4]] == [member.name for member in few]
    decades = [int(-1e-9 + member.values["stage2.learning_rate"] >= edge) for member in many for edge in (1e-3, 1e-2)]
    assert 9 <= sum(decades) <= 17 and len({member.name for member in many}) == 16
    assert all(1e-4 <= member.values["stage2.learning_rate"] < 1e-1 for member in many)
    counts = members("stage2.num_soft_prompt_tokens=int(1,4)", num=32)
    assert sorted(member.values["stage2.num_soft_prompt_tokens"] for member in counts) == [1, 2, 3, 4]
    assert len(members("stage2.weight_decay=uniform(0,1)", "seed=[1,2]", num=3)) == 6
    again = [members("stage2.weight_decay=uniform(0,1)", num=3, random=True) for _ in range(2)]
    assert [m.name for m in again[0]] == [m.name for m in again[1]]


@pytest.mark.parametrize(
    ("overrides", "num", "problem"),
    [
        (["stage2.learning_rate=log(0,1)"], 2, "must be above 0"),
        (["stage2.learning_rate=log(1,1)"], 2, "the first end must be below the second"),
        (["stage2.learning_rate=uniform(a,1)"], 2, "must be numbers"),
        (["stage2.num_epochs=int(1,2.5)"], 2, "whole numbers"),
        (["stage2.learning_rate=log(1e-4,1)"], None, "stage2.learning_rate: is drawn from a range; give --num"),
        (["seed=[1,2]"], 3, "nothing is drawn"),
        (["seed=[1,1]"], None, "names a value twice"),
        (["seed=[]"], None, "needs a value"),
        (["seed=[1,2]", "seed=int(1,3)"], 2, "seed: is given 2 times"),
        (["seed=[1,2]", "seed=[3,4]"], None, "seed: is given 2 times"),
        (["seed=[1,2]", "seed=7"], None, "seed: is given 2 times"),
        (["seed=7", "seed=8", "seed=[1,2]"], None, "seed: is given 3 times"),
        (["vlm.max_pixels=[12544,6272]"], None, "vlm.max_pixels: cannot be varied in a sweep"),
        (["engine.zero_stage=[0,1]"], None, "cannot be varied in a sweep"),
        (["dataset.split_seed=[0,1]"], None, "cannot be varied in a sweep"),
        (["evaluate.output_dir=x", "seed=[1,2]"], None, "in its own directory; leave it out"),
        (["stage2.learning_rate=log(1e-4,1)"], 5000, "at most 4,096"),
    ],
)
def test_what_is_wrong_is_named(overrides, num, problem):
    with pytest.raises(InputError, match=problem):
        members(*overrides, num=num)


def test_members_from_a_file(tmp_path):
    path = tmp_path / "members.txt"
    path.write_text("# two\nseed=1 stage2.learning_rate=0.1\n\nseed=2   # last\n")
    assert [member.name for member in read_members(str(path))] == ["seed=1,learning_rate=0.1", "seed=2"]
    path.write_text("seed=1\nsead=2\n")
    with pytest.raises(InputError, match="line 2: 'sead=2' is no setting"):
        read_members(str(path))
    path.write_text("stage1.learning_rate=0.1\nstage2.learning_rate=0.1\n")
    assert len(read_members(str(path))) == 2
    path.write_text("order_seed=9\n")
    with pytest.raises(InputError, match="line 1: order_seed: cannot be varied"):
        read_members(str(path))
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match="names no member"):
        read_members(str(path))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"seed=1 seed=2", "line 1: seed is given twice"),
        (b"seed=1\n\nseed=1 # again", "line 3: is the same member as line 1"),
        (b"seed=3 stage2.weight_decay=0\nstage2.weight_decay=0 seed=3", "line 2: is the same member as line 1"),
        ("questions=caf\u00e9.yaml".encode("latin-1"), "is not UTF-8 text"),
        (b"seed=[1", r"^--members .* line 1: seed"),
    ],
)
def test_a_file_of_members_that_is_wrong(tmp_path, content, problem):
    (tmp_path / "members.txt").write_bytes(content)
    with pytest.raises(InputError, match=problem):
        read_members(str(tmp_path / "members.txt"))


def test_settings_with_the_same_last_part_and_words_like_numbers_stay_apart(tmp_path):
    path = tmp_path / "members.txt"
    lines = ["stage2.layout=released", "checkpoint.layout=released", "target.name=TRUE", "checkpoint.aspect=007"]
    path.write_text("\n".join(lines))
    found = read_members(str(path))
    assert [member.name for member in found[:2]] == lines[:2]
    assert [next(iter(member.values.items())) for member in found] == [tuple(line.split("=")) for line in lines]
    asked, members = asked_members(None, GIVEN, str(path), None, False)
    assert member_config(None, asked, members[3], tmp_path, 1).checkpoint.aspect == "007"


def test_rules_about_several_settings_name_the_line_too(tmp_path):
    (tmp_path / "config.yaml").write_text("cache: {dir: cache}\ndataset: {root: images}\nvlm: {path: vlm}\n")
    (tmp_path / "members.txt").write_text("seed=1\naspects=[nope]\n")
    asked, members = asked_members(str(tmp_path / "config.yaml"), [], str(tmp_path / "members.txt"), None, False)
    with pytest.raises(InputError, match=r"^--members .*members.txt line 2: .*aspects"):
        member_config(str(tmp_path / "config.yaml"), asked, members[1], tmp_path, 1)


def test_a_file_of_members_may_have_a_mark_windows_line_ends_and_hashes_in_values(tmp_path):
    path = tmp_path / "members.txt"
    path.write_bytes(b"\xef\xbb\xbfseed=1\r\nquestions=a#b.yaml # a comment\r\n")
    assert [member.values for member in read_members(str(path))] == [{"seed": 1}, {"questions": "a#b.yaml"}]


@pytest.mark.parametrize("value", ["nan", "", "[1,2]"])
def test_a_value_that_is_wrong_is_named_with_its_line(tmp_path, value):
    path = tmp_path / "members.txt"
    path.write_text(f"seed=1\nstage2.learning_rate={value}\n")
    asked, (_, wrong) = asked_members(None, GIVEN, str(path), None, False)
    with pytest.raises(InputError, match=r"^--members .*members.txt line 2: stage2.learning_rate"):
        member_config(None, asked, wrong, tmp_path, 1)


@pytest.mark.parametrize(("num", "random"), [(3, False), (None, True)])
def test_nothing_is_drawn_beside_a_file_or_without_a_range(tmp_path, num, random):
    (tmp_path / "members.txt").write_text("seed=1\n")
    with pytest.raises(InputError, match=r"--members: names the members; leave out --(num|random)"):
        asked_members(None, GIVEN, str(tmp_path / "members.txt"), num, random)
    with pytest.raises(InputError, match="nothing is drawn"):
        asked_members(None, [*GIVEN, "seed=[1,2]"], None, num, random)


def test_words_of_lists_stay_what_they_are(tmp_path):
    wordings = [["Name the emotion, please.", "Say it."], ["What: joy or fear?"], ["1", "yes: no"]]
    asked = read_axes(None, [*GIVEN, f"target.questions={json.dumps(wordings)}"])
    found = [member_config(None, asked, each, tmp_path, 1) for each in members_of(asked, None, 1)]
    assert [config.target.questions for config in found] == wordings


def test_names_of_lists_have_their_items():
    found = members("aspects=[[scene],[scene,object]]", "seed=[1]")
    assert [member.name for member in found] == ["aspects=scene,seed=1", "aspects=scene+object,seed=1"]


def test_numbers_that_are_nearly_equal_are_different_members():
    assert len(members("stage2.learning_rate=[0.00123456789,0.00123456712]")) == 2


def test_names_are_safe_and_different(tmp_path):
    asked = read_axes(None, ["questions=[a/b.yaml,a b.yaml,../c.yaml]"])
    names = [member.name for member in members_of(asked, None, 1)]
    assert len(set(names)) == 3 and not any("/" in name or " " in name for name in names)
