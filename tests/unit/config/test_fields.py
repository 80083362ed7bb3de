"""What a setting may be: no setting takes a value of another type."""

import pytest

from launch.job.config import ClusterConfig
from masp.config import Config, load_settings
from masp.config.fields import describe_settings
from masp.errors import InputError


@pytest.mark.parametrize("root", [Config, ClusterConfig], ids=lambda root: root.__name__)
def test_no_setting_takes_a_value_of_another_type(root):
    """pydantic's own conversions, such as of the string "5" to a number, are for none of them."""
    for name, setting in describe_settings(root).items():
        wrong = ["[{}]", "{a: [1]}"]
        if "number" in setting.valid:
            wrong += ["true", "'1'", ".inf", ".nan"]
        if setting.valid == "true or false":
            wrong += ["1", "'true'", "yes"]
        for value in wrong:
            with pytest.raises(InputError) as error:
                load_settings(root, None, [f"{name}={value}"])
            assert f"{name} = " in str(error.value) and f"must be {setting.valid}" in str(error.value)
