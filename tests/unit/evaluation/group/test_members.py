"""Which evaluations share a prefix (`masp.evaluation.group.members`)."""

import pytest

from masp.config import load_config
from masp.evaluation.group.members import group_key, groups_of, why_alone
from tests.runs import make_run

ALIKE = [
    "seed=7",
    "order_seed=3",
    "output_dir=elsewhere",
    "evaluate.output_dir=there",
    "stage2.learning_rate=0.5",
    "logging.trackers=[]",
]
APART = [
    "evaluate.split=val",
    "aspects=[scene]",
    "checkpoint.aspect=none",
    "evaluate.batch_size=3",
    "engine.precision=bf16",
    "vlm.quantization=int8",
    "evaluate.category_map=[joy=awe]",
    "stage2.vision_features=false",
]
ALONE = {
    "evaluate.stage=stage1": "each aspect has a prompt of its own",
    "evaluate.scoring=generate": "answers are written",
    "evaluate.without=[scene]": "parts are left out",
    "evaluate.source=live": "features are computed live (evaluate.source=live)",
    "cache.dir=null": "features are computed live (cache.dir=null)",
    "checkpoint.soft_prompt=gone.safetensors": "gone.safetensors",
    "stage2.layout=released": "its soft prompt comes before the image (layout released)",
}


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    path = make_run(tmp_path_factory.mktemp("members"), 2, 1)
    given = ["checkpoint.soft_prompt=none", "checkpoint.aspect=aspect.safetensors"]
    return lambda *more: load_config(path, [*given, *more])


def test_what_comes_after_the_image_may_differ(load):
    assert {group_key(load(setting)) for setting in ALIKE} == {group_key(load())}
    keys = [group_key(load(setting)) for setting in APART]
    assert len({group_key(load()), *keys}) == 1 + len(APART)


def test_what_cannot_share_a_prefix_says_why(load):
    assert why_alone(load()) is None
    for setting, why in ALONE.items():
        assert why in (why_alone(load(setting)) or ""), setting


def test_groups_are_in_the_order_of_their_first_members(load):
    asked = [
        "seed=1",
        "evaluate.split=val",
        "evaluate.scoring=generate",
        "seed=2",
        "evaluate.scoring=generate",
        "seed=3",
    ]
    assert groups_of([load(setting) for setting in asked]) == [[0, 3, 5], [1], [2], [4]]
