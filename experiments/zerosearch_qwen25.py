r"""The paper's setting: Qwen2.5-3B or 7B learns to search in a simulator of 3B, 7B or 14B (ZeroSearch, arXiv 2505.04588).

    python -m zsjax.launch plan --config experiments/zerosearch_qwen25.py:policy=7b,simulator=14b,target=a100-80gb:8
    bash launch/gpu_node.sh --config experiments/zerosearch_qwen25.py:policy=3b,simulator=14b,weights=/models,\
data=nq_hotpotqa.jsonl,eval_data=questions.jsonl,corpus=wiki.jsonl.gz --workdir runs/qwen25_3b

64 questions x 5 episodes of up to 4,096 tokens, 5 searches of 5 documents, 203 steps, learning rate 1e-6 after a warm-up,
KL 0.001, P(noisy) along base 4 (the paper's appendix and the scripts of its repository). Mesh, microbatches and remat are
chosen so that the plan fits the target. A 14b simulator is cut over two devices, so that it needs two or more.

What it shows: that the setting is expressed, planned and validated. It has not been run: there are no such weights or
accelerators where it was written. The simulator here is prompted, with a demonstration and in its chat template, not tuned;
tune it first (`tune-simulator`) with a real engine's documents.

    :policy=3b           3b or 7b
    :simulator=14b       3b, 7b or 14b
    :instruct            the instruct models as policy (the simulator always is one), with their chat template
    :target=a100-80gb:8  the machine that mesh, microbatches and rollout.rows are chosen for, one of TARGETS; "" is the
                         same as a100-80gb:8, but plan then needs its --target
    :algorithm=grpo      any of zsjax.rl.algorithms
    :weights=FOLDER      holds Qwen2.5-3B, Qwen2.5-14B-Instruct, ...; without it they come from the hub, by name
    :data=PATH :eval_data=PATH :corpus=PATH   questions and paragraphs; the carried few, with which nothing can be learned
    :steps=203 :seed=0
    :smoke               two steps on the toy models that are carried with the package
"""

import ml_collections

from zsjax.config import ConfigError, Problem, parse_arg
from zsjax.data.assets import asset_path
from zsjax.rl.algorithms import preset

POLICIES = {"3b": "Qwen2.5-3B", "7b": "Qwen2.5-7B"}
SIMULATORS = {"3b": "Qwen2.5-3B-Instruct", "7b": "Qwen2.5-7B-Instruct", "14b": "Qwen2.5-14B-Instruct"}

# Episodes, requests and documents at a time that leave memory on chips of 16 and 32 GB.
_FEW_ROWS = {"rollout.rows": 16, "rollout.simulator_slots": 4, "rollout.prefill_batch": 4}
_PAIRS = [(policy, simulator) for policy in POLICIES for simulator in SIMULATORS]
# Target -> (policy, simulator) -> settings that differ from those below. A pair that is not there does not fit.
TARGETS = {
    **{target: dict.fromkeys(_PAIRS, {}) for target in ("a100-80gb:8", "h100:8")},
    # A TPU's loops of a rollout keep copies of the caches in other layouts: 110 GB of 80 rows.
    "v5p:8": dict.fromkeys(_PAIRS, {"rollout.rows": 32, "rollout.simulator_slots": 32}),
    "v5e:16": {("3b", "3b"): {"mesh.tensor": 2, **_FEW_ROWS}},
    "v6e:16": {(policy, simulator): {"mesh.tensor": 4, "train.microbatch_rows": 4, **_FEW_ROWS} if simulator == "14b" else
               {"mesh.tensor": 2, **_FEW_ROWS} for policy, simulator in _PAIRS},
}


def get_config(arg=None):
    arg = parse_arg(arg, policy="3b", simulator="14b", target="", algorithm="grpo", instruct=False, weights="", steps=203,
                    seed=0, data=str(asset_path("asset:real/questions.jsonl.gz")), eval_data="",
                    corpus=str(asset_path("asset:real/paragraphs.jsonl.gz")), smoke=False)
    settings = _settings(arg)

    def find(name):
        return f"{arg.weights.rstrip('/')}/{name}" if arg.weights else f"hf:Qwen/{name}"

    c = ml_collections.ConfigDict()
    c.name, c.seed = "zerosearch_qwen25", arg.seed
    c.stages = ("train", "evaluate", "report")
    policy = find(POLICIES[arg.policy] + ("-Instruct" if arg.instruct else ""))
    # The optimizer's parameters are float32, products bfloat16; the simulator is never trained.
    c.policy = dict(init=policy, dtype="bfloat16", param_dtype="float32")
    c.simulator = dict(init=find(SIMULATORS[arg.simulator]), dtype="bfloat16", param_dtype="bfloat16")
    c.tokenizer = policy

    c.data = dict(train=arg.data, eval=arg.eval_data or arg.data, corpus=arg.corpus, eval_corpus=arg.corpus, eval_limit=500)
    c.prompts = dict(policy="default", simulator="prompted", chat=arg.instruct, simulator_chat=True)
    c.search = dict(engine="simulator", eval_engine="bm25", num_documents=5, max_document_tokens=80, max_query_tokens=64,
                    temperature=0.8)
    c.rollout = dict(max_turns=5, max_turn_tokens=500, max_tokens=4096, max_prompt_tokens=512)
    c.curriculum = dict(schedule="zero_search", start=0.0, end=0.5)
    c.algorithm = preset(arg.algorithm, kl_coef=1e-3)
    c.optimizer = dict(learning_rate=1e-6, warmup_steps=int(0.285 * arg.steps), clip_norm=1.0)
    c.train = dict(steps=arg.steps, questions_per_step=64, group_size=5, microbatch_rows=8, remat="layers",
                   logprob_chunk=256, eval_every=50, eval_questions=128)
    c.evaluate = dict(batch_rows=64)
    # One row a device at a time; a 14B simulator is cut over two devices, which with 8 makes 4 shards of rows.
    c.mesh = dict(data=1, fsdp=-1, tensor=2 if arg.simulator == "14b" else 1, target=arg.target)
    for field, value in settings.items():
        section, _, name = field.partition(".")
        c[section][name] = value
    if arg.smoke:
        c.policy, c.simulator = dict(init="asset:real/policy"), dict(init="asset:real/random")
        c.tokenizer, c.prompts.chat, c.prompts.simulator_chat = "asset:real/tokenizer", False, False
        c.search.update(max_document_tokens=24, max_query_tokens=24)
        c.rollout.update(max_turns=2, max_turn_tokens=48, max_tokens=512, max_prompt_tokens=320)
        c.optimizer.learning_rate = 1e-4
        c.train.update(steps=2, questions_per_step=4, group_size=4, eval_every=2, eval_questions=16)
        c.data.eval_limit = 16
        c.evaluate.batch_rows = 16
        c.mesh = dict(data=1, fsdp=-1)
    return c


def _settings(arg):
    """The target's settings for these models. Raises ConfigError for names that are unknown or do not go together."""
    def refuse(name, what, known):
        raise ConfigError([Problem(f"config argument {name!r}", arg[name], what, f"give one of {', '.join(known)}")])

    for name, known in (("policy", POLICIES), ("simulator", SIMULATORS), ("target", {"": {}} | TARGETS)):
        if arg[name] not in known:
            refuse(name, "unknown", filter(None, known))
    pair = arg.policy, arg.simulator
    if arg.target and pair not in TARGETS[arg.target]:
        refuse("target", f"too small for policy={arg.policy}, simulator={arg.simulator}",
               (target for target, pairs in TARGETS.items() if pair in pairs))
    return TARGETS[arg.target][pair] if arg.target else {}
