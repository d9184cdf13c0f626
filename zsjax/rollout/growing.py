"""The compiled rollout with a policy cache that is allocated small and grows.

On accelerators attention reads every slot that is allocated, so rows pay for the longest that could be. Here rows begin
short; when one could outgrow its slots the loop stops, the host pads the cache, and the next program goes on from the same
carry. One program is compiled for each size. Draws do not depend on it; matmuls over other shapes differ in the last bits.
"""

import functools

import jax

from zsjax.models.cache import grow
from zsjax.parallel.constrain import over_rows
from zsjax.rollout import compiled
from zsjax.rollout.compiled import Inputs, Static
from zsjax.rollout.played import Played


def capacities(count: int, smallest: int, largest: int) -> list[int]:
    """At most `count` sizes up to `largest`, each half of the next, but none below `smallest`; rising."""
    return sorted({max(-(-largest // 2**i), min(smallest, largest)) for i in range(count)})


class GrowingRollout:
    """Call with (Inputs, questions), as `zsjax.rollout.compiled.compiled_program`: returns Played."""

    def __init__(self, static: Static, mesh, count: int):
        """count: of sizes. mesh: None, or the mesh over whose rows episodes are spread. Each part of it stops where its own
        rows could outgrow their cache, and all parts grow together."""
        self.env, self.count = static.env, count

        def further(inputs, questions, prompts, loop):
            loop = compiled.proceed(static, inputs, questions, prompts, loop)
            return loop, compiled.unfinished(loop)[None], compiled.work_of(loop)

        def first(capacity, inputs, questions):
            prompts, loop = compiled.begin(static, inputs, questions, capacity)
            return prompts, *further(inputs, questions, prompts, loop)

        by_rows = lambda function, *rows: over_rows(function, mesh, rows=rows)
        self.first = functools.cache(lambda capacity: jax.jit(by_rows(functools.partial(first, capacity), "questions")))
        # Not donated: nothing of another shape can be written into it. It goes when the loop lets go of it.
        self.grow = functools.cache(lambda capacity: jax.jit(by_rows(lambda cache: grow(cache, capacity), "cache")))
        self.further = jax.jit(by_rows(further, "questions", "prompts", "loop"), donate_argnums=3)  # the loop

    def __call__(self, inputs: Inputs, questions: dict) -> Played:
        sizes = capacities(self.count, questions["prompts"].shape[1] + 1, self.env.max_tokens)
        prompts, loop, left, work = self.first(sizes[0])(inputs, questions)
        for capacity in sizes[1:]:
            if not jax.device_get(left).any():
                break
            loop = loop.replace(state=loop.state.replace(cache=self.grow(capacity)(loop.state.cache)))
            loop, left, work = self.further(inputs, questions, prompts, loop)
        return Played(loop.episodes, work)
