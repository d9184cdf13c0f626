"""The simulator: a language model that plays the search engine inside the compiled rollout."""

from zsjax.search.simulator.simulator import Simulator

__all__ = ["Simulator"]
