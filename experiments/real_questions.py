r"""The whole path on real data: questions, Wikipedia paragraphs, a tokenizer and checkpoints of Qwen2.5's kind.

    python -m zsjax.launch --config experiments/real_questions.py:smoke --workdir runs/real_questions

What it shows: mechanics. 120 questions of five public data sets and 800 Wikipedia paragraphs, carried with the package
(zsjax/data/assets/real/ORIGIN.md), go through the same code as large models would: a byte-level BPE in which tags are
ordinary text, Qwen2 checkpoints written by transformers, a simulator prompted with the default template, BM25 over the
paragraphs for evaluation, GRPO, checkpoints, report.

What it does not show: quality. The simulator's weights are random and it writes random words. The policy's were random
too, until 500 steps on made-up episodes showed it the form of one: it copies a few words of the question as a query and
answers yes, no, or a title, since weights that are only random would neither search nor answer. Scores are those of
chance, and what training can find out is which word is right most often. Also, the carried questions are dev and test
rows, trained on and evaluated on alike: put your own files in before you speak of a score.

With weights of your own (folders in Hugging Face's form, or hf:OWNER/NAME; here instruct models of two sizes):

    python -m zsjax.launch --workdir runs/mine --config experiments/real_questions.py:policy=Qwen2.5-3B-Instruct,\
simulator=Qwen2.5-7B-Instruct,chat,data=questions.jsonl,corpus=paragraphs.jsonl.gz

With :policy or :simulator the limits and rates are those of models of billions of parameters (`_large`): bfloat16, learning
rate 1e-6, 4 searches of 3 documents of 80 tokens, rows of 4,096 tokens, 200 steps. They follow zerosearch_qwen25.py and were
not run on such models here. Without both, they are those of the carried toys.

    :policy=PATH         the policy
    :simulator=PATH      the simulator, which must share the tokenizer; the policy itself if left out
    :tokenizer=PATH      folder of tokenizer.json; the policy's if left out
    :data=PATH           questions, .jsonl[.gz] or .parquet, trained on and evaluated on (set data.eval apart)
    :corpus=PATH         paragraphs {id, title, text}, .jsonl[.gz], which BM25 searches in evaluations
    :algorithm=grpo      any of zsjax.rl.algorithms
    :chat                prompts go into the tokenizer's chat template: the policy's and, with :policy or :simulator, the
                         simulator's
    :steps=20 :seed=0    with :policy or :simulator, 200 steps
    :smoke               two small steps, with the toys' limits
"""

import ml_collections

from zsjax.config import parse_arg
from zsjax.data.assets import asset_path
from zsjax.rl.algorithms import preset


def get_config(arg=None):
    arg = parse_arg(arg, steps=-1, policy="", simulator="", tokenizer="", chat=False, seed=0,
                    data=str(asset_path("asset:real/questions.jsonl.gz")),
                    corpus=str(asset_path("asset:real/paragraphs.jsonl.gz")), smoke=False, algorithm="grpo")
    large = bool(arg.policy or arg.simulator) and not arg.smoke
    steps = arg.steps if arg.steps >= 0 else 200 if large else 20
    c = ml_collections.ConfigDict()
    c.name, c.seed = "real_questions", arg.seed
    c.stages = ("train", "evaluate", "report")
    c.policy = dict(init=arg.policy or "asset:real/policy")
    c.simulator = dict(init=arg.simulator or arg.policy or "asset:real/random")
    c.tokenizer = arg.tokenizer or arg.policy or "asset:real/tokenizer"

    c.data = dict(train=arg.data, eval=arg.data, corpus=arg.corpus, eval_corpus=arg.corpus)
    c.prompts = dict(policy="default", simulator="default", chat=arg.chat, simulator_chat=arg.chat and large)
    c.search = dict(engine="simulator", eval_engine="bm25", num_documents=3, max_document_tokens=48,
                    max_query_tokens=24)
    c.rollout = dict(max_turns=2, max_turn_tokens=48, max_tokens=704, max_prompt_tokens=320)
    c.curriculum = dict(schedule="zero_search", start=0.0, end=0.5)
    c.algorithm = preset(arg.algorithm, kl_coef=1e-3)
    c.optimizer = dict(learning_rate=1e-4)
    c.train = dict(steps=steps, questions_per_step=8, group_size=5, eval_every=10, eval_questions=32)
    c.evaluate = dict(batch_rows=32)
    if arg.smoke:
        c.train.update(steps=2, questions_per_step=8, group_size=4, eval_every=2, eval_questions=16)
        c.search.max_document_tokens, c.rollout.max_tokens = 32, 512
        c.data.eval_limit = 16
        c.evaluate.batch_rows = 16
    return _large(c, steps) if large else c


def _large(c, steps):
    """Limits, rates and memory for models of billions of parameters."""
    c.policy.update(dtype="bfloat16", param_dtype="float32")  # the optimizer's parameters stay float32
    c.simulator.update(dtype="bfloat16", param_dtype="bfloat16")
    c.search.update(max_document_tokens=80, max_query_tokens=64)
    c.rollout = dict(max_turns=4, max_turn_tokens=500, max_tokens=4096, max_prompt_tokens=512)
    c.optimizer = dict(learning_rate=1e-6, warmup_steps=steps // 20)
    c.train.update(steps=steps, questions_per_step=16, group_size=8, eval_every=20, eval_questions=64, microbatch_rows=8,
                   remat="layers", logprob_chunk=256)
    c.mesh = dict(data=1, fsdp=-1)
    return c
