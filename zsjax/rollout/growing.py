"""The compiled rollout with a policy cache that is allocated small and grows.

On accelerators attention reads every slot that is allocated, so rows pay for the longest that could be. Here rows begin
short; when one could outgrow its slots the loop stops, the host pads the cache, and the next program goes on from the same
carry. One program is compiled for each size. Draws do not depend on it; matmuls over other shapes differ in the last bits.
"""

import functools

import jax

from zsjax.models.cache import grow
from zsjax.parallel import constrain
from zsjax.rollout import compiled
from zsjax.rollout.played import Played


def capacities(count: int, smallest: int, largest: int) -> list[int]:
    """At most `count` sizes up to `largest`, each half of the next, but none below `smallest`; rising."""
    return sorted({max(-(-largest // 2**i), min(smallest, largest)) for i in range(count)})


class GrowingRollout:
    """Call with the arguments of `zsjax.rollout.compiled_program`'s program: returns Played."""

    def __init__(self, env, schedule, simulator, mesh, count: int):
        """count: of sizes. mesh: None, or the mesh over whose rows episodes are spread: each part of it stops where its own
        rows could outgrow their cache, and all grow together."""
        self.env, self.count = env, count

        def further(policy_params, simulator_params, tables, simulator_tables, *rest):
            loop = compiled.go_on(policy_params, simulator_params, env, schedule, tables, simulator, simulator_tables,
                                    *rest)
            return loop, compiled.unfinished(loop)[None], compiled.work_of(loop)

        def first(capacity, policy_params, simulator_params, tables, simulator_tables, inputs, *rest):
            prompts, loop = compiled.begin(policy_params, simulator_params, env, schedule, simulator, inputs, capacity)
            return prompts, *further(policy_params, simulator_params, tables, simulator_tables, inputs, *rest, prompts, loop)

        in_rows = (False, False, False, False, True, False, False, False, False)
        over_rows = lambda function, *in_rows: constrain.over_rows(function, mesh, in_rows)
        self.first = functools.cache(lambda capacity: jax.jit(over_rows(functools.partial(first, capacity), *in_rows)))
        # Not donated: nothing of another shape can be written into it. It goes when the loop lets go of it.
        self.grow = functools.cache(lambda capacity: jax.jit(over_rows(lambda cache: grow(cache, capacity), True)))
        self.further = jax.jit(over_rows(further, *in_rows, True, True), donate_argnums=len(in_rows) + 1)  # the loop

    def __call__(self, policy_params, simulator_params, tables, simulator_tables, inputs, *rest):
        arguments = (policy_params, simulator_params, tables, simulator_tables, inputs, *rest)
        sizes = capacities(self.count, inputs["prompts"].shape[1] + 1, self.env.max_tokens)
        prompts, loop, left, work = self.first(sizes[0])(*arguments)
        for capacity in sizes[1:]:
            if not jax.device_get(left).any():
                break
            loop = loop.replace(state=loop.state.replace(cache=self.grow(capacity)(loop.state.cache)))
            loop, left, work = self.further(*arguments, prompts, loop)
        return Played(loop.episodes, work)
