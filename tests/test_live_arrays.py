"""No loop keeps arrays of the steps that it has done: as many live before a step as before the one after it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import PARAMS, POLICY, QUESTIONS, TOKENIZER, Library, make_simulator, searching
from zsjax import supervised
from zsjax import train as loop
from zsjax.config import LoraConfig, SupervisedConfig, resolve
from zsjax.data import QuestionStream
from zsjax.evaluate import play
from zsjax.monitor.writer import Writer, read_jsonl
from zsjax.parallel.mesh import make_mesh
from zsjax.rollout import make_rollout

CANDIDATES, STEPS = 4, 6


def config_of():
    return resolve({
        "tokenizer": "asset:tiny_world/tokenizer", "prompts": {"policy": "tiny_world", "simulator": "tiny_world"},
        "search": {"num_documents": 2, "max_document_tokens": 12, "max_query_tokens": 12, "document_format": "* {text}",
                   "rerank": {"candidates": CANDIDATES}},
        "rollout": {"max_turns": 2, "max_turn_tokens": 24, "max_tokens": 160, "max_prompt_tokens": 64},
        "curriculum": {"schedule": "adaptive", "start": 0.1, "end": 0.6, "target": 0.3, "rate": 0.5},
        "optimizer": {"learning_rate": 0.01},
        "train": {"steps": STEPS, "questions_per_step": 2, "group_size": 2, "logprob_chunk": 64, "eval_every": 1,
                  "checkpoint_every": 99, "trajectories_every": 1},
    }, check=False)


def count(counts):
    """Notes how many arrays live. The list of them is dropped at once: it would keep them."""
    counts.append(len(jax.live_arrays()))


@pytest.mark.parametrize("engine", ["simulator", pytest.param("host", marks=pytest.mark.slow)])
def test_training_keeps_no_arrays_of_past_steps(tmp_path, engine):
    config, counts, make = config_of(), [], functools.partial(make_rollout, sampler=searching())

    class Stream(QuestionStream):
        def batch(self, step, number):
            count(counts)
            return super().batch(step, number)

    searched = make_simulator(num_documents=CANDIDATES) if engine == "simulator" else Library()
    evaluation = make(POLICY, Library(), TOKENIZER, config)

    def evaluate_now(params):
        records, _ = play(evaluation, params, QUESTIONS[:2], key=jax.random.key(0), batch_rows=2)
        return {"eval/em": float(np.mean([record["em"] for record in records]))}

    setup = loop.Setup(config, POLICY, jax.tree.map(jnp.copy, PARAMS), TOKENIZER, searched, Stream(QUESTIONS, 0),
                       mesh=make_mesh({}, jax.devices()[:1]), make_rollout=make)
    with Writer(tmp_path, quiet=True) as writer:
        loop.train(setup, tmp_path, writer, evaluate=evaluate_now, save_best=jax.device_get)
    assert len(counts) == STEPS and len(set(counts[2:])) == 1, counts
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert all(line["searches"] > 0 and "grad_norm" in line and "rerank/loss" in line for line in lines)


@pytest.mark.parametrize("options", [{}, {"lora": LoraConfig(rank=2), "microbatch_tokens": 64}])
def test_a_supervised_stage_keeps_no_arrays_of_past_steps(tmp_path, options):
    counts, lora = [], options.get("lora")
    options = {name: value for name, value in options.items() if name != "lora"}
    phase = SupervisedConfig(steps=30, batch_rows=2, max_tokens=16, checkpoint_every=10, **options)

    def batches(step):
        count(counts)
        rng = np.random.default_rng(step)
        return rng.integers(1, 40, (2, 16)).astype(np.int32), np.ones((2, 16), np.float32)

    with Writer(tmp_path, quiet=True) as writer:
        supervised.fit(phase, POLICY, PARAMS, batches, writer=writer, stage="tune", directory=tmp_path / "ckpt", lora=lora,
                       measure=lambda params: {"norm": float(jnp.linalg.norm(params["embed_tokens"]))})
    late = [counts[step] for step in (15, 17, 25, 27)]  # before the logged steps
    assert len(set(late)) == 1, counts
