"""An alarm from outside the package, named in a config."""

import pytest

from zsjax.config import ConfigError
from zsjax.monitor import health

NAME = f"{__name__}:searches_per_answer"


def searches_per_answer(line):
    """None where nobody answered."""
    return line["searches"] / line["share_answered"] if line["share_answered"] else None


def test_a_config_names_it_and_it_rings(checked):
    bounds = checked({"health": {"alarms": {NAME: [None, 4.0]}}}).health.alarms
    line = {"searches": 3.0, "share_answered": 0.5}
    assert health.alarms([line] * 2, bounds, 2) == {f"alarm/{NAME}": 1}
    assert health.alarms([line, line | {"searches": 1.0}], bounds, 2) == {f"alarm/{NAME}": 0}
    assert health.alarms([line | {"share_answered": 0}], bounds, 1) == {}
    told = health.stop_message({f"alarm/{NAME}": 1}, line, bounds, 2)
    assert f"{NAME} = 6.0" in told and "[None, 4.0]" in told


def test_a_function_that_is_not_there_is_an_error_of_the_config(checked):
    with pytest.raises(ConfigError, match=r"health\.alarms.*no_such"):
        checked({"health": {"alarms": {f"{__name__}:no_such": [0, 1]}}})


def test_the_message_says_what_a_registered_one_means():
    told = health.stop_message({"alarm/entropy": 1}, {"entropy": 0.0}, {"entropy": [0.1, None]}, 3)
    assert "nats per token" in told and health.ALARMS.entry("entropy").help in told
