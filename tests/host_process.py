"""A host of tests/test_hosts.py: `python -m tests.host_process HOSTS FOLDER` prints what it sees, as a line of JSON."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np

from zsjax import supervised
from zsjax.config import Config, OptimizerConfig, SupervisedConfig
from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.errors import BudgetSpent, NonFiniteUpdate
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.monitor.writer import Writer
from zsjax.parallel import hosts
from zsjax.parallel.mesh import make_mesh
from zsjax.rollout import Rollout
from zsjax.search import Document, Engine, Failed, SearchContext
from zsjax.search.engine import AskedByLead
from zsjax.tuning.collect import RecordingEngine
from zsjax.types import Question

MODEL = DecoderConfig(vocab_size=40, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
PHASE = SupervisedConfig(batch_rows=8, max_tokens=12, checkpoint_every=2, optimizer=OptimizerConfig(learning_rate=1e-2))
QUESTIONS = [Question("q", "Who?", ("Emma",))]


class Library(Engine):
    """Finds a document that names the host, except for "nothing" and "lost"."""

    def search(self, queries, contexts, *, k):
        found = {"nothing": [], "lost": Failed("timeout")}
        return [found.get(query, [Document(query, f"host {jax.process_index()}", 0.1)]) for query in queries]


def main(where, folder):
    hosts.initialize(where)
    me, context = jax.process_index(), SearchContext(QUESTIONS[0])
    recorder = RecordingEngine(Library(), 1)
    recorder.search([f"of {me}", "both", "nothing"], [context] * 3, k=1)
    recorder.exchange()
    asked = AskedByLead(Library()).search(["x", "nothing", "lost"], [context] * 3, k=1)
    print(json.dumps({
        "share": hosts.share({"me": me, "long": "x" * 100 * me}), "agree": hosts.agree(me == 1),
        "lead": hosts.from_lead(lambda: ["made by", me]), "added": hosts.add_up({"both": 1, f"only {me}": 0}),
        "kept": hosts.together(lambda: me),
        "budget": raised(lambda: fail(BudgetSpent, 1)), "user": raised(lambda: fail(NonFiniteUpdate, 0)),
        "bug": raised(lambda: fail(KeyError, 1)), "lead fails": raised(lambda: hosts.from_lead(lambda: int("x"))),
        "no JSON": raised(lambda: hosts.from_lead(set)),
        "rollout": raised(play), "found": sorted([*name, *map(text, found)] for name, found in recorder.found.items()),
        "asked": [getattr(found, "kind", [*map(text, found)]) for found in asked],
        "weights": trained(pathlib.Path(folder))}))


def text(document):
    return f"{document.title}: {document.text} {document.score}"


def fail(kind, host):
    def call():
        if jax.process_index() == host:
            raise kind(f"of host {host}")

    return hosts.together(call)


def raised(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error), getattr(error, "exit_code", None)]


def play():
    """A rollout whose engine fails on the second host."""
    def player(*arguments):
        if jax.process_index() == 1:
            raise BudgetSpent("the money of host 1")

    tokenizer = load_tokenizer(asset_path("asset:tiny_world/tokenizer"))
    rollout = Rollout(MODEL, tokenizer, Config(), player, make_mesh({"data": -1}))
    return rollout.play(init_params(MODEL, jax.random.key(0)), QUESTIONS, key=jax.random.key(0))


def trained(folder) -> list:
    """Weights after two steps, and a third one that begins at their checkpoint."""
    def batches(step):
        rng = np.random.default_rng(step)
        return rng.integers(1, 40, (8, 12)).astype(np.int32), (rng.random((8, 12)) < 0.5).astype(np.float32)

    for steps in (2, 3):
        seen = []
        with Writer(folder if hosts.is_lead() else None, quiet=True, tensorboard=False) as writer:
            params = supervised.fit(
                dataclasses.replace(PHASE, steps=steps), MODEL, init_params(MODEL, jax.random.key(0)),
                lambda step, seen=seen: seen.append(step) or batches(step), writer=writer, stage="tune",
                directory=folder / "checkpoints", mesh=make_mesh({"data": 2, "fsdp": -1}))
    assert seen == [2]
    return hosts.fetch(params["embed_tokens"]).tolist()


if __name__ == "__main__":
    main(*sys.argv[1:])
