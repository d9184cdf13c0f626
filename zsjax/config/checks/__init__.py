"""Checks of a config beyond its types. Every problem is found, none is raised.

`zsjax.config.allowed` checks each field by its declaration; the modules here check files and what spans several
fields. None touches a device: `find_problems` runs before jax looks for one, and `find_device_problems` takes their number.
"""

from zsjax.config.allowed import check_values, with_default_numbers
from zsjax.config.checks.data import check_data
from zsjax.config.checks.devices import check_mesh, find_device_problems
from zsjax.config.checks.findings import Findings
from zsjax.config.checks.models import check_models
from zsjax.config.checks.search import check_rollout
from zsjax.config.checks.stages import check_collect_and_evaluate, check_stages
from zsjax.config.checks.training import check_algorithm, check_supervised, check_train
from zsjax.config.fields import Config
from zsjax.errors import Problem

__all__ = ["find_device_problems", "find_problems"]


def find_problems(config: Config, *, files: bool = True, unread: tuple[str, ...] = ()) -> list[Problem]:
    """The first problem of every field of a config, whose types are right.

    files: whether the files and folders that it names must exist; a plan of a run needs none. unread: fields and sections
    that are excepted.
    """
    found = Findings(config, files, unread)
    check_values(found)
    # The other checks compute with numbers: a number out of its range is replaced by its default.
    config = found.config = with_default_numbers(config, {problem.field for problem in found.problems})
    for check in (check_stages, check_models, check_data, check_rollout, check_algorithm, check_train, check_supervised,
                  check_collect_and_evaluate, check_mesh):
        check(found, config)
    return found.problems
