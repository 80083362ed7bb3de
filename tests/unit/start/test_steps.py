"""Which steps a run has follows from its configuration."""

import pytest

from masp.config import load_config
from masp.start.steps import step_names


@pytest.mark.parametrize(
    ("settings", "lacks_aspects", "names"),
    [
        ([], False, "extract stage1 stage2 evaluate"),
        ([], True, "extract annotate stage1 stage2 evaluate"),
        (["annotate.aspects=[scene]"], False, "extract annotate stage1 stage2 evaluate"),
        (["annotate.aspects=[scene]", "cache.dir=null"], True, "stage1 stage2 evaluate"),
        (["aspects=[]"], True, "extract stage2 evaluate"),
        (["checkpoint.aspect=a.pth"], True, "extract stage2 evaluate"),
        (["checkpoint.aspect=none", "checkpoint.soft_prompt=none"], False, "extract evaluate"),
        (["cache.dir=null"], False, "stage1 stage2 evaluate"),
    ],
)
def test_steps(settings, lacks_aspects, names):
    config = load_config(None, ["vlm.path=m", "dataset.root=d", "cache.dir=c", *settings])
    assert [name.value for name in step_names(config, lacks_aspects)] == names.split()
