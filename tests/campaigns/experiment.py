"""The smallest runs in which every stage does something.

    :made      pretraining of policy and simulator, two layers each
    :taught    all other stages, from the bases that the package carries; corpora of files, a reranker, the
               adaptive curriculum
"""

import ml_collections

WORLD = dict(train_worlds=1, eval_worlds=1, entities=12, facts_per_entity=2, two_hop_questions=8)
SMALL = dict(num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, embed_dim=32, mlp_dim=32, rope_theta=10000.0)


def get_config(arg=None):
    kind, _, files = (arg or "made").partition("@")
    c = ml_collections.ConfigDict()
    c.name, c.tokenizer = f"campaign_{kind}", "asset:tiny_world/tokenizer"
    c.prompts = dict(policy="tiny_world", simulator="tiny_world")
    c.search = dict(num_documents=2, max_document_tokens=12, max_query_tokens=12, document_format="* {text}",
                    temperature=0.25)
    c.rollout = dict(max_turns=2, max_turn_tokens=32, max_tokens=160, max_prompt_tokens=24)
    c.data = dict(train="tiny_world:train", corpus="tiny_world:train", eval="tiny_world:eval",
                  eval_corpus="tiny_world:eval", eval_limit=6)
    c.world = WORLD
    c.optimizer = dict(learning_rate=1e-3)
    if kind == "made":
        c.stages = ("pretrain", "pretrain_simulator")
        c.policy = dict(init="random", shape=SMALL)
        c.simulator = dict(init="random", shape=SMALL)
        c.pretrain = dict(steps=4, batch_rows=2, max_tokens=144, logprob_chunk=48, checkpoint_every=1, options=dict(
            reading_steps=2, short_steps=0, max_facts=4, episodes=2, reading=1))
        c.pretrain_simulator = dict(steps=6, batch_rows=4, max_tokens=72, logprob_chunk=32, checkpoint_every=2)
        return c
    c.stages = ("warm_start", "collect", "tune_simulator", "train", "evaluate", "report")
    c.policy = dict(init="asset:tiny_world/base")
    c.simulator = dict(init="asset:tiny_world/simulator_base")
    c.data.update(corpus=f"{files}/corpus.jsonl", eval_corpus=f"{files}/eval_corpus.jsonl")
    c.search.rerank = dict(candidates=4)
    c.curriculum = dict(schedule="adaptive", start=0.1, end=0.6, target=0.3, rate=0.5)
    c.warm_start = dict(steps=4, batch_rows=4, max_tokens=160, logprob_chunk=32, checkpoint_every=2)
    c.collect = dict(episodes=16, probes=8)
    c.tune_simulator = dict(steps=4, batch_rows=4, max_tokens=84, logprob_chunk=32, checkpoint_every=2)
    c.train = dict(steps=6, questions_per_step=2, group_size=4, logprob_chunk=32, checkpoint_every=2, eval_every=3,
                   eval_questions=4, trajectories_every=2)
    c.evaluate = dict(batch_rows=6, drop_best=0.3)
    return c
