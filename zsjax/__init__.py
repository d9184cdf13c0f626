"""zsjax: train language models to search without searching, in JAX.

The rooms load when they are first named (`zsjax.rl.losses.ppo_clip`, `zsjax.schedules.zero_search`), so that importing
the package touches no device and pulls in nothing that is not used.
"""

import importlib

__version__ = "0.1.0"

_ROOMS = ("build", "checkpoint", "config", "data", "evaluate", "metrics", "models", "pipeline", "report", "rewards",
          "rl", "rollout", "sampling", "schedules", "search", "sharding", "simulation", "supervised", "train", "types")
__all__ = ["__version__", *_ROOMS]


def __getattr__(name):
    if name in _ROOMS:
        return importlib.import_module(f"zsjax.{name}")
    raise AttributeError(f"module 'zsjax' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
