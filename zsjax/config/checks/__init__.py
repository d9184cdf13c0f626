"""What a config may say beyond its types. Every problem is found, none is raised.

`values` checks each field alone, by what is declared beside it; the other modules check what spans several
fields, and files. Nothing here touches a device: `find_problems` runs before jax has looked for one, and
`find_device_problems` is asked once their number is known.
"""

from zsjax.config.checks.data import check_data
from zsjax.config.checks.devices import check_mesh, find_device_problems
from zsjax.config.checks.found import Found
from zsjax.config.checks.models import check_models
from zsjax.config.checks.search import check_rollout
from zsjax.config.checks.stages import check_collect_and_evaluate, check_stages
from zsjax.config.checks.training import check_algorithm, check_supervised, check_train
from zsjax.config.checks.values import check_values, with_default_numbers
from zsjax.config.fields import Config
from zsjax.errors import Problem

__all__ = ["find_device_problems", "find_problems"]


def find_problems(config: Config, *, files: bool = True) -> list[Problem]:
    """All that is wrong with a config of the right types; of a field, the first thing.

    files: whether the files and folders that it names must be there; a plan of a run needs none.
    """
    found = Found(config, files)
    check_values(found)
    # What follows reckons with numbers: those that are nonsense are the defaults there.
    config = found.config = with_default_numbers(config, {problem.field for problem in found.problems})
    for check in (check_stages, check_models, check_data, check_rollout, check_algorithm, check_train, check_supervised,
                  check_collect_and_evaluate, check_mesh):
        check(found, config)
    return found.problems
