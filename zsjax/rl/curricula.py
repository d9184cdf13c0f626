"""Curricula by name: (options, steps) -> schedule, count -> float32, of a run of `steps` steps.

options: `zsjax.config.CurriculumConfig`. `curriculum.schedule = "package.module:function"` names one of another package.
"""

from zsjax import schedules
from zsjax.config.named import Registry

CURRICULA = Registry("curriculum")


@CURRICULA("zero_search", help="from start to end, slowly first (base above 1) or last (base below 1)")
def zero_search(options, steps):
    return schedules.zero_search(options.start, options.end, steps, options.base)


@CURRICULA("constant", help="end")
def constant(options, steps):
    return schedules.constant(options.end)


@CURRICULA("linear", help="from start to end at an even pace")
def linear(options, steps):
    return schedules.linear(options.start, options.end, steps)


@CURRICULA("cosine", help="from start to end, slowly first and last")
def cosine(options, steps):
    return schedules.cosine(options.start, options.end, steps)


@CURRICULA("step", help="values, changing at boundaries")
def step(options, steps):
    return schedules.step(options.values, options.boundaries)
