"""zsjax: train language models to search without searching, in JAX.

The rooms load when they are first named (`zsjax.rl.losses.ppo_clip`, `zsjax.schedules.zero_search`), so that importing
the package touches no device and pulls in nothing that is not used.
"""

import importlib
import importlib.abc
import importlib.util
import sys

__version__ = "0.2.0"

_ROOMS = ("config", "data", "errors", "evaluate", "evaluation", "models", "monitor", "parallel", "plan", "report", "rewards",
          "rl", "rollout", "run", "sampling", "schedules", "search", "supervised", "tiny_world", "train", "tuning", "types")
__all__ = ["__version__", *_ROOMS]

# Modules of version 0.1 -> where they are now. The old paths work until version 0.3.
_MOVED = {
    "accounting": "monitor.usage", "ask": "run.ask", "baselines": "evaluation.baselines", "build": "run.build",
    "chart": "report.charts", "checkpoint": "parallel.checkpoint", "compare": "evaluation.compare",
    "config_fields": "config.fields", "costs": "monitor.costs", "data.tiny_world": "tiny_world.world",
    "data.tiny_world_rows": "tiny_world.rows", "episode_metrics": "monitor.episodes", "experience": "rollout.experience",
    "export": "run.export", "files": "parallel.files", "health": "monitor.health", "hosts": "parallel.hosts",
    "metrics": "monitor.writer", "models.hf": "models.checkpoints.hf", "models.hf_config": "models.families",
    "models.hub": "models.checkpoints.hub",
    "models.induction": "tiny_world.induction", "models.init": "tiny_world.positional", "models.presets": "models.families",
    "models.tensor_files": "models.checkpoints.tensor_files", "pipeline": "run.pipeline",
    "pretrain": "tiny_world.pretrain_policy", "pretrain_simulator": "tiny_world.pretrain_simulator",
    "reading": "tiny_world.reading", "registry": "config.named", "reward_terms": "rewards.terms",
    "rl.accumulate": "rl.step_programs", "rl.compiled": "rl.executable", "rl.update": "rl.steps",
    "rl.value": "rl.value_steps", "rollout.continuous": "rollout.compiled",
    "rollout.engine": "rollout.state", "rollout.prompts": "rollout.policy_prompt", "rollout.requests": "rollout.dedup",
    "search.account": "search.paid_searches", "stages.run": "run.stages.context",
    "search.bm25": "search.engines.bm25", "search.dense": "search.engines.dense", "search.http": "search.engines.http",
    "search.openai_chat": "search.engines.chat", "search.prompts": "search.simulator.prompt",
    "search.requests": "search.simulator.requests", "search.serpapi": "search.engines.serpapi",
    "search.writing": "search.simulator.writing", "run.stages.gates": "run.stages.gate_checks",
    "run.stages.simulator": "run.stages.simulator_tuning", "sharding": "parallel.mesh", "simulation": "tuning",
    "stages": "run.stages", "tables": "evaluation.tables",
    "tuning.gates": "tuning.simulator_gates", "validation": "config.checks",
}
# Names of a module of version 0.1 that are in another module than the rest of it.
_MOVED_NAMES = {"data.tiny_world_rows": {"tiny_world.imitation": ("Behaviour", "FactTable", "episode_rows")},
                "metrics": {"monitor.phases": ("Timer",)}}


class _OldPaths(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module at its new path under the old name as well; both names are one module."""

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_loader(name, self) if _new_path(name) else None

    def create_module(self, spec):
        module = importlib.import_module(_new_path(spec.name))
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        old, module.__spec__ = module.__spec__.name, module.__spec__.loader_state  # the import system has put the old one's
        for room, names in _MOVED_NAMES.get(old.removeprefix(f"{__name__}."), {}).items():
            vars(module).update({name: getattr(importlib.import_module(f"{__name__}.{room}"), name) for name in names})


def _new_path(name):
    """"zsjax.stages.policy" -> "zsjax.run.stages.policy"; None where nothing moved."""
    package, _, rest = name.partition(".")
    if package != __name__:
        return None
    room = next((old for old in (rest, rest.partition(".")[0]) if old in _MOVED), None)
    return room and f"{__name__}.{_MOVED[room]}{rest[len(room):]}"


sys.meta_path.insert(0, _OldPaths())


def __getattr__(name):
    if name in _ROOMS or name in _MOVED:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
