"""What an evaluation's figures depend on beside the policy: the settings and files under which it is kept."""

import dataclasses
import functools
import hashlib
import json
import pathlib

from zsjax.config import Config
from zsjax.config.declare import leaves
from zsjax.evaluation import kept_evaluations
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.run import build
from zsjax.run.stages.context import Run
from zsjax.search import registry

# Fields of config.rollout and config.search that evaluation does not read.
TRAINING = ("rollout.temperature", "search.engine", "search.noise_per")


def settings_of(run: Run, questions) -> dict:
    """{dotted name: value} of everything but the policy that changes an evaluation's figures."""
    config = run.config
    asked = [(question.id, question.question, question.golden_answers, question.metadata) for question in questions]
    found = {
        "seed": config.seed, "questions": _hash(asked), "tokenizer": _files(build.local_path(config.tokenizer)),
        "prompts.policy": _hash(dataclasses.asdict(PolicyTemplate.load(config.prompts.policy))),
        "prompts.chat": config.prompts.chat, "data.eval_corpus": source_of(config, config.data.eval_corpus),
        **{f"policy.{name}": getattr(config.policy, name) for name in ("dtype", "param_dtype", "cache_dtype")},
        **_fields(config)}
    # What an engine of one's own reads: the files that its options name.
    files = {name: value for name, value in config.search.options.items() if isinstance(value, (str, pathlib.Path))}
    found |= {f"search.options.{name}, its file": kept_evaluations.fingerprint(path) for name, path in files.items()
              if pathlib.Path(path).is_file()}
    needs = registry.needs(config.search.eval_engine, config.search)
    if "simulator" in needs:
        path = next((path for path in map(run.path, ("models/simulator", "models/simulator_base"))
                     if build.checkpoint_exists(path)), None)
        found["simulator"] = (kept_evaluations.fingerprint(path) if path
                              else model_fingerprint(config.simulator, config.seed + 1))
        found |= {f"simulator.{name}": getattr(config.simulator, name)
                  for name in ("dtype", "param_dtype", "cache_dtype", "quantize")}
    if "prompt" in needs:
        found |= {f"prompts.{name}": getattr(config.prompts, name) for name in ("simulator", "simulator_chat")}
    return json.loads(json.dumps(found, default=str))


def _fields(config) -> dict:
    """The fields of config.rollout and config.search that change figures, by their declared effect."""
    found = {}
    for name, leaf in leaves(Config).items():
        read = not leaf.spec.engines or config.search.eval_engine in leaf.spec.engines
        if name.startswith(("rollout.", "search.")) and name not in TRAINING and leaf.spec.effect != "how" and read:
            found[name] = functools.reduce(getattr, name.split("."), config)
    return found


def model_fingerprint(config, seed) -> str:
    """The fingerprint of config.init's checkpoint, or of the settings that random parameters are drawn from."""
    if config.init == "random":
        return _hash(["random", seed, dict(config.shape), config.positional_bias_init])
    return kept_evaluations.fingerprint(build.local_path(config.init, weights=True))


def source_of(config: Config, source: str):
    """A corpus or questions, by its name and a hash of its file."""
    if source.startswith(build.TINY_WORLD):
        return [source, dict(config.world)]
    path = pathlib.Path(source)
    return [path.name, kept_evaluations.fingerprint(path)] if path.is_file() else [source]


def _files(path) -> str:
    """A hash of the small files of a tokenizer's folder."""
    path = pathlib.Path(path)
    files = [path] if path.is_file() else sorted(
        file for file in path.glob("*") if file.suffix in (".json", ".model", ".txt", ".jinja"))
    return _hash([(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files])


def _hash(value) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
