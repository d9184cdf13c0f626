"""The compiled rollout with a policy cache that is allocated small and grows.

On accelerators attention reads every allocated slot of the cache. Here the cache begins small. When a row could
outgrow it, the loop stops, the host pads the cache, and the next program continues from the same carry. One program is
compiled for each size. Draws do not depend on the size; matmuls over other shapes differ in the last bits.
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
    """Call with (Inputs, questions) -> Played, as `zsjax.rollout.compiled.compiled_program`."""

    def __init__(self, static: Static, mesh, count: int):
        """count: of sizes. mesh: None, or the mesh over which episodes are sharded. Each part stops when its own rows
        could outgrow their cache, and all parts grow together."""
        self.env, self.count = static.env, count

        def further(inputs, questions, prompts, loop):
            loop = compiled.proceed(static, inputs, questions, prompts, loop)
            return loop, compiled.unfinished(loop)[None], compiled.work_of(loop)

        def first(capacity, inputs, questions):
            prompts, loop = compiled.begin(static, inputs, questions, capacity)
            return prompts, *further(inputs, questions, prompts, loop)

        self.first = functools.cache(lambda capacity: jax.jit(
            over_rows(functools.partial(first, capacity), mesh, rows=("questions",))))
        # The old cache is not donated: an output of another shape cannot be written into it.
        self.grow = functools.cache(lambda capacity: jax.jit(
            over_rows(lambda cache: grow(cache, capacity), mesh, rows=("cache",))))
        self.further = jax.jit(over_rows(further, mesh, rows=("questions", "prompts", "loop")), donate_argnums=3)  # the loop

    def __call__(self, inputs: Inputs, questions: dict) -> Played:
        sizes = capacities(self.count, questions["prompts"].shape[1] + 1, self.env.max_tokens)
        prompts, loop, left, work = self.first(sizes[0])(inputs, questions)
        for capacity in sizes[1:]:
            if not jax.device_get(left).any():
                break
            loop = loop.replace(state=loop.state.replace(cache=self.grow(capacity)(loop.state.cache)))
            loop, left, work = self.further(inputs, questions, prompts, loop)
        return Played(loop.episodes, work)
