r"""The whole method on invented worlds, from scratch, on a CPU.

    python -m zsjax.launch --config experiments/tiny_world.py --workdir runs/tiny_world

A base model that can read but searches badly (carried with the package, made by `:pretrain`) plays with BM25; the
simulator, which remembers the training worlds, is tuned on what was found; the policy learns against the simulator under
the noise curriculum; base and trained policy are evaluated on unseen worlds with BM25. experiments/README.md has the
figures of three seeds.

    :pretrain            make base and simulator base anew instead of using the carried ones
    :engine=bm25         learn with the real engine (Search-R1's way) instead of the simulator
    :engine=empty        ablation: documents without content
    :simulator=untuned   the simulator as it was pretrained, which does not know the words useful and noisy; or
                         "prompted", the same with a demonstration of both in its prompt
    :noise=0.0           P(noisy) at the end of the curriculum, which starts at 0; 0.5 by default, by measurement
    :algorithm=ppo       any of zsjax.rl.algorithms: reinforce, reinforce_plus_plus, rloo, grpo, dr_grpo, dapo, gspo, ppo
    :rerank=6            of 6 documents a search, a scorer that learns from rewards shows 3
    :rerank_rate=0.01    the scorer's learning rate; 0: it never learns
    :steps=60 :seed=0
    :invert_mask         ablation: train on everything but the policy's tokens
    :smoke               every stage at toy length
"""

import ml_collections

from zsjax.config import parse_arg
from zsjax.rl.algorithms import preset

MODEL = dict(num_layers=3, num_heads=8, num_kv_heads=2, head_dim=16, rope_theta=10000.0)


def get_config(arg=None):
    arg = parse_arg(arg, engine="simulator", simulator="tuned", noise=0.5, steps=60, seed=0, invert_mask=False,
                    pretrain=False, smoke=False, algorithm="grpo", rerank=0, rerank_rate=0.01)
    if arg.simulator not in ("tuned", "untuned", "prompted"):
        raise ValueError(f"simulator={arg.simulator!r}: one of tuned, untuned, prompted")
    written = arg.rerank or 3  # documents of a simulator's reply, of which 3 are shown; a line has 12 tokens at most
    c = ml_collections.ConfigDict()
    c.name, c.seed = "tiny_world", arg.seed
    c.stages = ("collect", "tune_simulator", "train", "evaluate", "report")
    c.tokenizer = "asset:tiny_world/tokenizer"
    c.policy = dict(init="asset:tiny_world/base")
    c.simulator = dict(init="asset:tiny_world/simulator_base")
    if arg.simulator != "tuned":
        c.stages = ("train", "evaluate", "report")
    if arg.pretrain:
        c.stages = ("pretrain", "pretrain_simulator", *c.stages)
        c.policy = dict(init="random", shape=dict(MODEL, embed_dim=64, mlp_dim=128), positional_bias_init=True)
        c.simulator = dict(init="random", shape=dict(MODEL, embed_dim=128, mlp_dim=512), positional_bias_init=True)
        c.pretrain = dict(steps=1400, batch_rows=30, max_tokens=144, logprob_chunk=48, optimizer=dict(
            learning_rate=7e-3, schedule="cosine", warmup_steps=50, b2=0.98, weight_decay=0.01))
        c.pretrain_simulator = dict(steps=1000, batch_rows=48, max_tokens=36 + 12 * written, logprob_chunk=32,
                                    options=dict(emphasis=True), optimizer=dict(
            learning_rate=4e-3, schedule="cosine", warmup_steps=30, b2=0.98))

    c.data = dict(train="tiny_world:train", corpus="tiny_world:train", eval="tiny_world:eval",
                  eval_corpus="tiny_world:eval", eval_limit=400)
    c.prompts = dict(policy="tiny_world",
                     simulator="tiny_world_prompted" if arg.simulator == "prompted" else "tiny_world")
    c.search = dict(engine=arg.engine, eval_engine="bm25", num_documents=3, max_document_tokens=12, max_query_tokens=12,
                    temperature=0.25, shuffle_documents=True, document_format="* {text}",
                    rerank=dict(candidates=arg.rerank, learning_rate=arg.rerank_rate))
    c.rollout = dict(max_turns=3, max_turn_tokens=40, max_tokens=256, max_prompt_tokens=24, rows=16,
                     simulator_slots=4, prefill_batch=4, decode_threshold=0.85)
    c.curriculum = dict(schedule="zero_search", start=0.0, end=arg.noise)
    c.algorithm = preset(arg.algorithm, invert_mask=arg.invert_mask)
    c.optimizer = dict(learning_rate=1e-3, schedule="linear", warmup_steps=3, b2=0.98, clip_norm=1.0)
    c.value = dict(optimizer=dict(learning_rate=1e-3, b2=0.98))
    c.train = dict(steps=arg.steps, questions_per_step=12, group_size=8, logprob_chunk=32, checkpoint_every=10,
                   eval_every=20, eval_questions=64)
    c.collect = dict(episodes=960, probes=480)
    c.tune_simulator = dict(steps=640, batch_rows=48, max_tokens=36 + 12 * written, logprob_chunk=32,
                            options=dict(emphasis=True),
                            optimizer=dict(learning_rate=4e-3, schedule="cosine", warmup_steps=20, b2=0.98))
    c.gates = dict(reading=0.95, useful=0.9, noisy=0.1, leak=0.05)
    c.evaluate = dict(batch_rows=96, drop_best=0.3)
    if arg.smoke:
        c.train.update(steps=2, questions_per_step=4, group_size=4, eval_every=2, eval_questions=16)
        c.collect.update(episodes=48, probes=16)
        c.tune_simulator.steps = 4
        c.data.eval_limit = 16
        c.evaluate = dict(batch_rows=16)
        c.gates = dict(questions=8)
        if arg.pretrain:
            c.pretrain.update(steps=4, options=dict(reading_steps=2))
            c.pretrain_simulator.steps = 2
    return c
