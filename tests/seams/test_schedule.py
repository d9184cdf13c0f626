"""A curriculum from outside the package, named in a config."""

import pytest

from zsjax.config import ConfigError, CurriculumConfig
from zsjax.rl.curricula import CURRICULA
from zsjax.rl.steering import curriculum, real_share


def square(options, steps):
    """Rises with the square of the step."""
    if not options.end > options.start:
        raise ValueError("square rises: set curriculum.end above curriculum.start")
    return lambda count: options.start + (options.end - options.start) * (count / steps) ** 2


NAME = f"{__name__}:square"


def test_a_config_names_it_and_it_may_run_backwards(checked):
    config = checked({"curriculum": {"schedule": NAME, "start": 0.0, "end": 0.8}, "train": {"steps": 10}})
    assert curriculum(config.curriculum, 10)(5) == pytest.approx(0.2)
    backwards = CurriculumConfig(schedule=NAME, start=0.0, end=0.8, reverse=True)
    assert float(curriculum(backwards, 10)(0)) == pytest.approx(0.8)


def test_the_share_of_a_real_engine_takes_it_too(checked):
    mix = checked({"search": {"mix": {"schedule": NAME, "end": 1.0}}}).search.mix
    assert real_share(mix, 10)(5) == pytest.approx(0.25)
    with pytest.raises(ConfigError, match=r"search\.mix\.schedule"):
        checked({"search": {"mix": {"schedule": "step"}}})  # it has no values


def test_what_it_refuses_is_an_error_of_the_config(checked):
    with pytest.raises(ConfigError, match="square rises"):
        checked({"curriculum": {"schedule": NAME, "start": 0.5, "end": 0.1}})
    with pytest.raises(ConfigError, match="zero_search, constant, linear, cosine, step, adaptive"):
        checked({"curriculum": {"schedule": "cubic"}})
    assert all(CURRICULA.entry(name).help for name in CURRICULA)
