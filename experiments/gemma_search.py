r"""A real language model learns to search on real questions: Gemma 3 270M, six question sets, Wikipedia paragraphs.

    bash launch/gemma.sh                                             everything, the weights included
    python -m zsjax.launch --config experiments/gemma_search.py:model=runs/gemma3-270m --workdir runs/gemma_search

The steps: a warm start on episodes that BM25 makes of three quarters of the training questions; tuning of the simulator, the
same model, on searches for them; reinforcement on the other questions against the simulator under the curriculum;
evaluation with BM25 on the held-out questions, beside prompted baselines of the untrained model and the warm start without
documents.

The measure, fixed before the run: F1 on "open answers", questions whose answer is neither yes or no nor named in them, with
a paired bootstrap (evaluation/comparison.json, `zsjax.launch compare`). Reach says whether searching improved, F1 reading.

Questions and paragraphs are carried (experiments/data/search_qa/ORIGIN.md). They are dev and test rows of public data sets,
split by a hash of the id: scores compare the arms here, they are not scores of those data sets.

    :model=NAME          a folder or hf:OWNER/NAME, which plays policy and simulator; hf:google/gemma-3-270m by default
    :engine=simulator    what answers searches in reinforcement; bm25 is Search-R1's way
    :simulator=tuned     untuned: the model with the tuned one's prompt; prompted: with a demonstration in the prompt
    :noise=0.5           P(noisy) at the end of the curriculum
    :algorithm=rloo      any of zsjax.rl.algorithms; with rloo and grpo's kin, groups of equal reward are dropped
    :start=DIR           another run of this experiment, whose warm start is taken, and its simulator where it has one
    :questions=own       of reinforcement; unsupported: those that no paragraph supports, which only a simulator can answer
    :steps=60            of reinforcement, each 16 questions by 4 episodes
    :packed=true         rows of an update are packed by length: saves time on a CPU, costs programs to compile elsewhere
    :dtype=bfloat16      of both models; float32 is faster on a CPU without products in bfloat16, with larger activations
    :baselines=true :seed=0
    :smoke               a small random model of Gemma 3's family, few steps, the sample that comes with the package

The baselines cost more than the rest of an evaluation. As a run of their own, with the untrained model alone in memory, on
fewer questions and rows (`search_agent` has a cache of 56 MB a row in float32):

    python -m zsjax.launch --workdir runs/gemma_baselines --config experiments/gemma_search.py:model=runs/gemma3-270m \
--config.stages=evaluate,report --config.evaluate.batch_rows=31 --config.data.eval_limit=186

Arms that share a start:

    python -m zsjax.launch --workdir runs/gemma_bm25 --config experiments/gemma_search.py:\
model=runs/gemma3-270m,engine=bm25,start=runs/gemma_search

With seed=1 they are second seeds, which a comparison averages: `zsjax.launch compare runs/gemma_bm25 --workdir
runs/gemma_search --seeds runs/gemma_search_1 --other-seeds runs/gemma_bm25_1`. A side may be a file: with --workdir
runs/gemma_search/evaluation/before-*.jsonl and runs/gemma_search as the other, it is the gain over the warm start.
"""

import pathlib

import ml_collections

from zsjax.config import parse_arg
from zsjax.errors import UserError
from zsjax.rl.algorithms import preset

DATA = pathlib.Path(__file__).parent / "data" / "search_qa"


def get_config(arg=None):
    arg = parse_arg(arg, model="hf:google/gemma-3-270m", engine="simulator", simulator="tuned", noise=0.5,
                    algorithm="rloo", start="", questions="own", steps=60, packed=True, dtype="bfloat16", baselines=True,
                    seed=0, smoke=False)
    for name, known in (("engine", ("simulator", "bm25")), ("simulator", ("tuned", "untuned", "prompted")),
                        ("questions", ("own", "unsupported"))):
        if arg[name] not in known:
            raise UserError(f"config argument {name}={arg[name]!r} is unknown; use {' or '.join(known)}")
    c = ml_collections.ConfigDict()
    c.name, c.seed = "gemma_search", arg.seed
    tuned, start = arg.engine == "simulator" and arg.simulator == "tuned", pathlib.Path(arg.start)
    taken = bool(arg.start) and tuned and (start / "models" / "simulator").is_dir()
    c.stages = (*([] if arg.start else ["warm_start"]), *(["collect", "tune_simulator"] if tuned and not taken else []),
                "train", "evaluate", "report")
    c.tokenizer = arg.model
    c.policy = dict(init=str(start / "models" / "warm_start") if arg.start else arg.model, dtype=arg.dtype)
    c.simulator = dict(init=str(start / "models" / "simulator") if taken else arg.model, dtype=arg.dtype)

    questions, paragraphs = str(DATA / "questions.jsonl.gz"), str(DATA / "paragraphs.jsonl.gz")
    c.data = dict(train=f"{questions}#train", eval=f"{questions}#eval", corpus=paragraphs, eval_corpus=paragraphs)
    # A policy answers questions of its warm start from memory, and questions of "leave_out" without reading.
    c.data.update(supervised_share=0.75, leave_out=("yes_no", "named"))
    if arg.questions == "unsupported":
        if not taken:
            raise UserError("config argument questions=unsupported needs start=DIR, of a run that tuned its simulator: warm "
                            "start and simulator learn from questions with evidence")
        c.data.update(train=str(DATA / "unsupported.jsonl.gz"), supervised_share=0.0)
    c.prompts = dict(policy="plain", simulator="prompted" if arg.simulator == "prompted" else "mode_last",
                     baseline_examples=True)
    # A document is its title and 56 words. A quarter of them have more than 96 tokens; the cut loses the answer in 2 of 371.
    # The simulator repeats what its prompt shows, so that noisy replies must not be shown the answers; low temperature keeps
    # it with what it was asked for. One noise draw for the episodes of a question: luck does not enter their advantages.
    c.search = dict(engine=arg.engine, eval_engine="bm25", num_documents=3, max_document_tokens=96, max_query_tokens=48,
                    passage_words=56, reveal_gold="useful", temperature=0.3, noise_per="question")
    # The agent by prompt has 240 tokens. Equal queries of a question's episodes are one request: of 64 episodes some 20 wait
    # at a time, and each further slot of the simulator costs 7 ms of a core a step.
    c.rollout = dict(max_turns=2, max_turn_tokens=64, max_prompt_tokens=256, max_tokens=832, simulator_slots=32)
    # Each part of an update reads the vocabulary once, more than a second on a core: few and large parts.
    update = dict(microbatch_tokens=2048) if arg.packed else {}
    # For 45 minutes on two cores with products in bfloat16. Two documents of each search are shown: 249 tokens an episode on
    # average, and 98 % of those of two searches have at most 480. Each episode is seen twice: seen once, EM was 0.232.
    c.warm_start = dict(steps=190, batch_rows=8, max_tokens=480, checkpoint_every=38, every_hop=True, episode_documents=2,
                        microbatch_tokens=1024 if arg.packed else 0,
                        optimizer=dict(learning_rate=3e-5, schedule="linear", warmup_steps=10))
    c.warm_start.update(bridges=True, named_share=0.1)
    if (start / "episodes.jsonl").is_file() and arg.start:
        c.warm_start.episodes = str(start / "episodes.jsonl")
    # The policy would ask the question itself in nearly all episodes, so none is played. A quarter of the examples asks
    # beside the point and shows what BM25 finds: else the simulator tells the answer to any query.
    c.collect = dict(episodes=0, queries=("question", "episodes"), off_target=0.25, shuffle=True, label="contains",
                     pairs=True, hold_out=0.15)
    c.gates = dict(useful=0.5, noisy=0.15, leak=0.15)
    c.tune_simulator = dict(steps=240, batch_rows=8, max_tokens=512, checkpoint_every=60, **update,
                            optimizer=dict(learning_rate=3e-5, schedule="linear", warmup_steps=10))
    c.curriculum = dict(schedule="zero_search", start=0.0, end=arg.noise)
    # A fifth to two fifths of the groups had a signal on a GPU (LOG.md). So: many questions, and others in place of groups
    # without one. The KL was 0.02 to 0.06 nats, of which 1e-3 is nothing, and the reference costs a pass and 1 GB.
    c.algorithm = preset(arg.algorithm, kl_coef=0.0, track_kl=False)
    if c.algorithm["advantage"] in ("rloo", "grpo"):
        c.algorithm = {"refill_rounds": 1} | dict(c.algorithm, drop_equal_groups=True)
    c.optimizer = dict(learning_rate=1e-5, schedule="linear", warmup_steps=5)
    c.train = dict(steps=arg.steps, questions_per_step=16, group_size=4, eval_every=20, eval_questions=93,
                   checkpoint_every=20, trajectories_every=20, **update)
    if not arg.packed:
        c.train.microbatch_rows = 16
    baselines = ("direct", "chain_of_thought", "rag", "search_agent", "no_search") if arg.baselines and not arg.start else ()
    # 465 held-out questions are 5 batches.
    c.evaluate = dict(batch_rows=93, baselines=baselines, baseline_model="base", baseline_turn_tokens=192)
    return _smoke(c) if arg.smoke else c


def _smoke(c):
    """Every stage in seconds: a random model, which the warm start teaches the form of an episode and nothing else."""
    sample = "asset:real"
    from zsjax.data.assets import asset_path

    model = dict(init="random", shape=dict(
        embed_dim=64, num_layers=2, num_heads=4, num_kv_heads=1, head_dim=16, mlp_dim=128, qkv_bias=False, qk_norm=True,
        norm_offset=1.0, post_norms=True, activation="gelu_tanh", embed_scale=8.0, sliding_window=64, sliding_layers=(0,),
        rope_theta=1e6, sliding_rope_theta=1e4, model_type="gemma3_text"))
    c.tokenizer = f"{sample}/tokenizer"
    c.policy, c.simulator = dict(model), dict(model)
    questions, paragraphs = (str(asset_path(f"{sample}/{name}.jsonl.gz")) for name in ("questions", "paragraphs"))
    c.data.update(train=questions, eval=questions, corpus=paragraphs, eval_corpus=paragraphs, eval_limit=16)
    c.search.update(num_documents=2, max_document_tokens=24, passage_words=12)
    c.rollout.update(max_prompt_tokens=96, max_turn_tokens=40, max_tokens=192)  # two widths of a batch: see packing.widths
    c.warm_start.update(steps=60, batch_rows=8, max_tokens=192, microbatch_tokens=0, checkpoint_every=60)
    c.warm_start.optimizer.learning_rate = 1e-2
    c.collect.update(hold_out=0.0, label="ranking")
    c.tune_simulator.update(steps=2, max_tokens=320, checkpoint_every=2, microbatch_tokens=0)
    c.train.update(steps=2, questions_per_step=4, group_size=4, eval_every=2, eval_questions=16, microbatch_tokens=0)
    # So small a model answers nothing rightly. Without a difference in rewards all groups are dropped: no update.
    c.reward = dict(terms=dict(f1=1.0, searches=0.1))
    c.evaluate.update(batch_rows=16, baselines=c.evaluate.baselines[:1])
    return c
