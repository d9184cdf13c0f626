"""What a config may say beyond its types: ranges, names, combinations, files. Every problem is found, none is raised.

Nothing here touches a device: `find_problems` runs before jax has looked for one, and `find_device_problems` is asked
once their number is known.
"""

from zsjax.config.checks.data import check_data
from zsjax.config.checks.devices import check_mesh, find_device_problems
from zsjax.config.checks.found import Found
from zsjax.config.checks.models import check_models
from zsjax.config.checks.names import *  # noqa: F401, F403 (all that a config may name)
from zsjax.config.checks.search import check_rollout
from zsjax.config.checks.stages import check_collect_and_evaluate, check_stages
from zsjax.config.checks.training import check_algorithm, check_supervised, check_train
from zsjax.config.fields import Config
from zsjax.errors import Problem

__all__ = ["find_device_problems", "find_problems"]


def find_problems(config: Config, *, files: bool = True) -> list[Problem]:
    """All that is wrong with a config of the right types, in the order of its fields.

    files: whether the files and folders that it names must be there; a plan of a run needs none.
    """
    found = Found(config, files)
    check_stages(found, config)
    check_models(found, config)
    check_data(found, config)
    check_rollout(found, config)
    check_algorithm(found, config)
    check_train(found, config)
    check_supervised(found, config)
    check_collect_and_evaluate(found, config)
    check_mesh(found, config)
    return found.problems
