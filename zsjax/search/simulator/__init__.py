"""The simulator: a language model that plays the search engine inside the compiled rollout."""

from zsjax.search import registry
from zsjax.search.simulator.simulator import Simulator

__all__ = ["Simulator"]


@registry.engine("simulator", "the language model in the compiled program; `search.reveal_gold` says when it sees the "
                 "gold answers", needs=("simulator", "prompt"), is_real=False)
def _simulator(setting):
    return setting.simulator()
