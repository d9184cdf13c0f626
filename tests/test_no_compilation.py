"""After its first step a run compiles nothing: prompts, episodes and micro-batches of all lengths find their programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import PARAMS, POLICY, TOKENIZER, Library, searching
from zsjax import train as loop
from zsjax.config import resolve
from zsjax.data import QuestionStream
from zsjax.evaluate import play
from zsjax.monitor import usage
from zsjax.monitor.writer import Writer, read_jsonl
from zsjax.parallel.mesh import make_mesh
from zsjax.rl.algorithms import preset
from zsjax.rollout import make_rollout
from zsjax.types import Question

MAX_TOKENS = 256  # three widths, of which prompts of 10 to 150 tokens need several
QUESTIONS = [Question(str(i), "What is the mother of Kara " + "Lonor " * (i * 7 % 60) + "?", ("Kara",)) for i in range(40)]


def make_config(steps, every, **train):
    return resolve({
        "tokenizer": "asset:tiny_world/tokenizer", "prompts": {"policy": "tiny_world", "simulator": "tiny_world"},
        "search": {"num_documents": 2, "max_document_tokens": 12, "max_query_tokens": 12, "document_format": "* {text}"},
        "rollout": {"max_turns": 2, "max_turn_tokens": 16, "max_tokens": MAX_TOKENS, "max_prompt_tokens": 160, "rows": 2,
                    "prefill_batch": 1},
        "optimizer": {"learning_rate": 0.01}, "algorithm": preset("grpo"),
        "train": {"steps": steps, "questions_per_step": 2, "group_size": 2, "logprob_chunk": 64,
                  "checkpoint_every": every[1], "eval_every": every[0], "trajectories_every": 3, **train},
    }, check=False)


@pytest.mark.parametrize("steps,every", [(5, (1, 1)), pytest.param(50, (7, 5), marks=pytest.mark.slow)])
@pytest.mark.parametrize("engine,train", [("simulator", {}), ("host", {"microbatch_tokens": 512})])
def test_nothing_compiles_after_the_first_step(tmp_path, simulator, engine, train, steps, every):
    make = functools.partial(make_rollout, sampler=searching(draws=lambda episode: 2 + 5 * (episode % 3)))
    mesh = make_mesh({}, jax.devices()[:1])
    config, compiles, counts, lengths = make_config(steps, every, **train), usage.CompileCount(), [], []

    def tell():
        taken = compiles.take()
        counts.append(taken["compile/step"] + taken["compile/cached"])

    class Stream(QuestionStream):
        def batch(self, step, count):
            tell()  # what was compiled since the step before began, its evaluation and checkpoint included
            asked = super().batch(step, count)
            lengths.append(max(len(question.question) for question in asked))
            return asked

    evaluation = make(POLICY, Library(), TOKENIZER, config)

    def evaluate_now(params):
        records, _ = play(evaluation, params, QUESTIONS[:3], key=jax.random.key(0), batch_rows=2)
        return {"eval/em": float(np.mean([record["em"] for record in records]))}

    with Writer(tmp_path, tensorboard=False, quiet=True) as writer:
        setup = loop.Setup(config, POLICY, jax.tree.map(jnp.copy, PARAMS), TOKENIZER,
                           simulator if engine == "simulator" else Library(), Stream(QUESTIONS, 0), mesh=mesh,
                           make_rollout=make)
        loop.train(setup, tmp_path, writer, evaluate=evaluate_now, save_best=jax.device_get)
    tell()
    allowed = {0, every[0] - 1, every[1] - 1}  # and the first evaluation, and the first checkpoint
    assert counts[1] > 0 and not any(n for step, n in enumerate(counts[1:]) if step not in allowed), counts
    assert len(counts) == steps + 1
    lines = read_jsonl(tmp_path / "metrics.jsonl")
    assert lines[-1]["compile/step"] == 0 < lines[0]["compile/step"] + lines[0]["compile/cached"]
    assert all(line["searches"] > 0 for line in lines) and len(set(lengths)) > 1
    assert len({line["length"] for line in lines}) > 1
