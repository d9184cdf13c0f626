"""FLOPs of a step and the least time that they and the memory traffic take at the target's published peaks.

Every row is as long as the config allows: `max_turns` searches with all documents, and a context that the policy fills.
Products count two FLOPs a multiplication, attention the pairs of the causal mask. Only products and the reading of weights
and caches are counted, no communication: no run can be faster, and real ones take a multiple.
"""

import dataclasses

from zsjax.models.flops import forward_flops
from zsjax.models.quant import num_bytes
from zsjax.plan.memory import cache_bytes, decoding_shapes, decoding_shardings, frozen_simulator, local_bytes, whole_policy
from zsjax.plan.setup import PlanSetup
from zsjax.rl.algorithms import needs_reference


@dataclasses.dataclass(frozen=True)
class Work:
    """One part of a step on one device: FLOPs, bytes read from memory, and the least seconds for both.

    program, calls: the compiled program that does it and nothing else, and how often a step calls it; "" and 0: none.
    """

    name: str
    flops: float
    bytes: float
    seconds: float
    program: str = ""
    calls: int = 0


def step_work(setup: PlanSetup) -> list[Work]:
    """The parts of a step, one after the other."""
    config, rows = setup.config, setup.rollout_rows
    at_once, slots = setup.schedule.sizes(rows)
    T, P = config.rollout.max_tokens, config.rollout.max_prompt_tokens
    searches = min(config.rollout.max_turns, (T - P) // (setup.document_tokens + 1))  # as many as the context holds
    documents = searches * setup.document_tokens
    spoken = min(T - P - documents, (searches + 1) * config.rollout.max_turn_tokens)
    used = P + documents + spoken
    parts = [
        _reading(setup, "read prompts", setup.policy, setup.questions, 0, P),
        _times(rows / at_once, _decoding(setup, "policy writes", setup.policy, whole_policy(setup), at_once, spoken,
                                         (P + used) / 2)),
        _reading(setup, "policy reads documents", setup.policy, rows, (P + used) / 2, documents),
    ]
    if setup.simulator is not None:
        prompt, steps = setup.engine.prompt_size, setup.reply_steps
        shared = len(setup.engine.shared_prefix)  # is read once a rollout, which is next to nothing
        copies = setup.simulator_rows // slots
        read = _reading(setup, "simulator reads prompts", setup.simulator, copies * rows, shared, prompt - shared)
        write = _decoding(setup, "simulator writes", setup.simulator, frozen_simulator(setup), setup.simulator_rows, steps,
                          prompt + steps / 2)
        parts += [_times(searches, read), _times(searches * rows / slots, write)]

    return parts + _training(setup, used)


def _training(setup: PlanSetup, used: float) -> list[Work]:
    """Scores and updates, on rows of `used` tokens."""
    config, train, algorithm = setup.config, setup.config.train, setup.config.algorithm
    forward = forward_flops(setup.policy, used, used**2 / 2, used) / setup.tensor  # of a row
    value_forward = forward_flops(setup.policy, used, used**2 / 2, 0) / setup.tensor
    scores = 2 if needs_reference(algorithm) else 1
    whole = not train.microbatch_tokens  # else a program is of a part, and a step has any number of these
    updates = whole * train.epochs * train.minibatches
    parts = [_compute(setup, "old and reference log-probs" if scores == 2 else "old log-probs",
                      scores * setup.scored_rows * forward, program="score", calls=whole * scores)]
    # A forward pass and twice its products backward: for the weights, which adapters' frozen kernels are spared, and for
    # the activations. Remat "layers" goes forward twice; the other kinds compute little or nothing of the products again.
    remat, updated = train.remat == "layers", train.epochs * train.minibatches * setup.update_rows
    passes = (2 if config.policy.lora.rank else 3) + remat
    parts.append(_compute(setup, "update" + (" with remat" if remat else ""), passes * updated * forward,
                          program="update", calls=updates))
    if algorithm.value_model:
        parts.append(_compute(setup, "old values", setup.scored_rows * value_forward, program="value score",
                              calls=int(whole)))
        name = "value update" + (" with remat" if remat else "")
        parts.append(_compute(setup, name, (3 + remat) * updated * value_forward, program="value update", calls=updates))
    return parts


def _compute(setup, name, flops, traffic=0.0, **of):
    return Work(name, flops, traffic, max(flops / setup.target.chip.flops, traffic / setup.target.chip.bandwidth), **of)


def _times(count, work):
    return Work(work.name, count * work.flops, count * work.bytes, count * work.seconds)


def _reading(setup, name, model, rows, before, tokens):
    """Many tokens at once behind `before` others; bound by FLOPs."""
    flops = rows * forward_flops(model, tokens, tokens * (before + tokens / 2), 0) / setup.tensor
    return _compute(setup, name, flops)


def _decoding(setup, name, model, shapes, rows, steps, context):
    """`steps` tokens a row, one at a time, behind `context` others on average: weights and caches are read each time."""
    flops = rows * forward_flops(model, 1, context, 1) / setup.tensor
    shapes = decoding_shapes(shapes, model)
    weights = local_bytes(shapes, decoding_shardings(shapes, model, setup.mesh))
    if not model.tie_embeddings:  # of the embedding a step reads a few rows
        weights -= num_bytes(shapes["embed_tokens"]) // setup.tensor
    cache = cache_bytes(setup, model, rows, int(context))
    return _times(steps, _compute(setup, name, flops, weights + cache))
