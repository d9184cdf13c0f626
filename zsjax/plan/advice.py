"""Advice: the changes of a config that make it fit a target."""

from collections.abc import Callable

from zsjax import config as configuration
from zsjax.config import Config
from zsjax.config.checks import find_device_problems, find_problems
from zsjax.errors import UserError
from zsjax.plan.estimate import Plan, estimate_plan
from zsjax.plan.targets import PlanTarget

# Changes that make a step smaller, the cheapest first: (field, (config, setup) -> value).
_CHANGES: list[tuple[str, Callable]] = [
    ("train.remat", lambda config, setup: "layers"),
    ("train.microbatch_rows", lambda config, setup: setup.shards),
    ("train.microbatch_tokens",  # a row of each shard; where rows are not packed by tokens, nothing
     lambda config, setup: config.train.microbatch_tokens and setup.shards * config.rollout.max_tokens),
    ("mesh.fsdp", lambda config, setup: -1 if config.mesh.data != -1 else setup.target.devices // setup.tensor),
    ("simulator.param_dtype", lambda config, setup: "bfloat16"),
    ("policy.dtype", lambda config, setup: "bfloat16"),
    ("train.logprob_chunk", lambda config, setup: min(config.train.logprob_chunk, 128)),
    ("rollout.rows", lambda config, setup: max(setup.schedule.sizes(setup.rollout_rows)[0] // 2, 8)),
    ("mesh.tensor", lambda config, setup: 2 * setup.tensor),
    ("simulator.quantize", lambda config, setup: "int8"),
    ("policy.cache_dtype", lambda config, setup: "int8"),
    ("simulator.cache_dtype", lambda config, setup: "int8"),
]
# The last resorts: another training, not only another use of the machine. The text says so beside the advice.
_LAST_CHANGES: list[tuple[str, Callable]] = [
    ("train.group_size", lambda config, setup: max(config.train.group_size // 2, 2)),
    ("policy.lora.rank", lambda config, setup: config.policy.lora.rank or 16),
]
OTHER_TRAINING = {"train.group_size": "smaller groups are another training",
                   "policy.lora.rank": "adapters are trained instead of the whole policy, which is another training"}


class _Search:
    """Plans of a config with fields changed; each is estimated once.

    Attributes:
      made: (field, text) of the changes that were taken; of equal fields the last counts.
      plan: the estimate with them.
    """

    def __init__(self, config: Config, target: PlanTarget):
        self._config, self._target, self.made = config, target, ()
        self.plan = estimate_plan(config, target, times=False)
        self._plans = [self.plan]

    def take(self, field: str, value_of: Callable):
        """Takes a change, again and again as long as the peak falls and is too high."""
        while not self.plan.fits:
            candidate = *self.made, (field, str(value_of(self.plan.setup.config, self.plan.setup)))
            smaller = self._changed(candidate)
            if smaller is None or smaller.peak >= self.plan.peak:
                return
            self.made, self.plan = candidate, smaller

    def drop_what_is_not_needed(self):
        """Takes changes back, the last first, where the run fits without them."""
        for change in reversed(self.made):
            rest = tuple(other for other in self.made if other is not change)
            without = self._changed(rest)
            if without is not None and without.fits:
                self.made, self.plan = rest, without

    def _changed(self, changes) -> Plan | None:
        """None where such a config cannot run."""
        try:
            config = configuration.resolve(self._config, dict(changes), check=False)
            found = next((plan for plan in self._plans if plan.setup.config == config), None)
            if found is None:
                if find_problems(config, files=False) or find_device_problems(config, self._target.devices):
                    return None
                found = estimate_plan(config, self._target, times=False)
                self._plans.append(found)
            return found
        except UserError:
            return None


def find_advice(config: Config, target: PlanTarget) -> tuple[str, ...]:
    """Flags that together make the estimate fit, none of which can be left out; () if no changes do."""
    search, known = _Search(config, target), []
    for changes in (_CHANGES, *([change] for change in _LAST_CHANGES)):
        known, before = [*known, *changes], None
        while search.made != before and not search.plan.fits:
            before = search.made
            for field, value_of in changes:
                search.take(field, value_of)
            changes = known  # another phase may be the peak now, so that earlier changes count again
    if not search.plan.fits:
        return ()
    search.drop_what_is_not_needed()
    return tuple(f"--config.{field}={text}" for field, text in dict(search.made).items())
