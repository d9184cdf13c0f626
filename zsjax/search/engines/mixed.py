"""A mixture of the simulator and a real engine."""

import collections
from collections.abc import Sequence

from zsjax.search import registry
from zsjax.search.engine import Document, Engine, SearchContext, as_engine, chance, check_request


class Mixed(Engine):
    """Draws one of two engines for each search, for training that moves from a simulator to real search.

    The draw is a function of (seed, query, question id, context.call) alone. share: P(the real engine); the training
    loop sets it before each step.
    """

    by_call = True

    def __init__(self, simulator: Engine, real: Engine, *, share: float = 0.0, seed: int = 0):
        self.simulator, self.real, self.share, self.seed = as_engine(simulator), as_engine(real), share, seed
        self.uses_devices = self.simulator.uses_devices or self.real.uses_devices

    @property
    def counters(self) -> collections.Counter:
        return collections.Counter(self.simulator.counters) + collections.Counter(self.real.counters)

    def obeys_noise(self, queries: Sequence[str], contexts: Sequence[SearchContext]) -> list[bool]:
        """Which searches the simulator answers."""
        return [chance(self.seed, query, context.question.id, context.call) >= self.share
                for query, context in zip(queries, contexts, strict=True)]

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        check_request(queries, contexts, k)
        simulated = self.obeys_noise(queries, contexts)
        found: list = [None] * len(queries)
        for engine, side in ((self.simulator, True), (self.real, False)):
            rows = [row for row, is_simulated in enumerate(simulated) if is_simulated == side]
            if rows:
                results = engine.search([queries[row] for row in rows], [contexts[row] for row in rows], k=k)
                for row, documents in zip(rows, results, strict=True):
                    found[row] = documents
        return found


@registry.engine("mixed", "simulator or a real engine, search by search, by a schedule (`search.mix`)", is_real=False,
                 evaluates=False, parts=lambda search: ("simulator", search.mix.real))
def _mixed(setting):
    config = setting.config
    return Mixed(setting.engine("simulator"), setting.engine(config.search.mix.real), seed=config.seed)
