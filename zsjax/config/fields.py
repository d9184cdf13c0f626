"""The config's fields. What is said of one stands beside its default; see `zsjax.config.declare`."""

import dataclasses
import functools

from zsjax.config.declare import field, group

# What `Config.stages` may name, in the order in which they run.
STAGES = ("pretrain", "pretrain_simulator", "warm_start", "collect", "tune_simulator", "train", "evaluate", "report")
_DTYPES = ("float32", "bfloat16", "float16")
_REMAT = ("none", "zsjax.models.decoder:REMAT")
_CURRICULA = "zsjax.rl.curricula:CURRICULA"
# See `zsjax.config.declare.EFFECTS`; "fast": where the last bits of results may differ as well.
_free, _later, _limit = (functools.partial(field, effect=effect) for effect in ("how", "later", "limit"))
_fast = functools.partial(field, effect="how", last_bits=True)
_COUNT, _TOKENS, _SHARE = "[1, 1e9]", "[1, 1e7]", "[0, 1]"


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters instead of the model (zsjax.models.lora); merged where the model is saved."""

    rank: int = field(0, "0 trains the model itself", "[0, 65536]")
    alpha: float = field(16.0, "adapters are scaled by alpha / rank", "(0, 1e6]")
    targets: tuple[str, ...] = field(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
                                     "projections that get an adapter", choices=("zsjax.models.lora:TARGETS",))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder and where its weights come from."""

    init: str = field("random", '"asset:NAME" (carried with the package), a folder in Hugging Face\'s form, '
                      '"hf:OWNER/NAME" (the hub, where there is a network), or "random"', names="path")
    shape: dict = field({}, 'fields of DecoderConfig, for init="random"; else the checkpoint has them')
    positional_bias_init: bool = field(
        False, 'whether random layer-0 heads start as "attend n tokens back" (zsjax.tiny_world.positional)')
    dtype: str = field("float32", "dtype of the activations", choices=_DTYPES)
    param_dtype: str = field("float32", "dtype in which parameters are kept", choices=_DTYPES)
    attention: str = _fast("auto", '"auto" takes the platform\'s kernel (zsjax.models.attention), "xla" none',
                           choices=("auto", "xla", "cudnn", "splash"))
    check_finite: bool = _free(False, "refuse a checkpoint with NaN or infinite weights")
    quantize: str = field("none", '"int8" stores the frozen simulator\'s weights in half of bfloat16\'s bytes',
                          choices=("none", "int8"))
    cache_dtype: str = field("model", 'of the keys and values that a rollout keeps: "model" is that of the activations',
                             choices=("model", "int8"))
    lora: LoraConfig = group(LoraConfig)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Questions and the corpus that real engines search.

    Questions: a .jsonl[.gz] or .parquet path, "tfds:NAME", or "tiny_world:train" / "tiny_world:eval". "#SPLIT" behind a
    file or TFDS name takes that split only. A corpus: a path of {id, title, text}, or the tiny world's.
    """

    train: str = field("tiny_world:train", "questions that are trained on", names="path")
    eval: str = _later("tiny_world:eval", "questions of evaluations", names="path")
    corpus: str = field("tiny_world:train", "what real engines search in training", names="path")
    eval_corpus: str = _later("tiny_world:eval", "what they search in evaluations", names="path")
    eval_limit: int | None = _later(None, "questions per evaluation (of each benchmark), a sample that is the same in every "
                                   "run; None is all", _COUNT, unit="questions")
    benchmarks: dict = _later({}, 'name -> source: the evaluation goes over each of these instead of eval, as '
                             '{"nq": "nq.jsonl"}')
    overlong: str = field("error", "what happens to questions with a longer prompt than rollout.max_prompt_tokens or without a "
                          "gold answer", choices=("error", "drop"))


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """Prompt templates: names of carried ones, or paths of files. Instruct models want the chat template."""

    policy: str = field("default", "the policy's prompt", names="path")
    simulator: str = field("default", "the simulator's prompt", names="path")
    chat: bool = field(False, "put the policy's prompt into the tokenizer's chat template")
    simulator_chat: bool = field(False, "put the simulator's prompt into the tokenizer's chat template")


@dataclasses.dataclass(frozen=True)
class RemoteConfig:
    """Engines behind a network. Keys come from environment variables, which are named here, and are never written."""

    url: str = _free("", 'of the /retrieve server ("http") or the OpenAI-style chat server ("chat")', names="url")
    model: str = field("", "the chat server's name of its model", engines=("chat",))
    key_env: str = _free("", 'environment variable with the key; "" is SERPAPI_API_KEY of "serpapi", none of "chat"',
                         names="variable")
    web_engine: str = field("google", 'which web search SerpApi asks: "google", "bing", ...', engines=("serpapi",))
    cache_dir: str = _free("web_search", "SerpApi's results and account, relative to the run's folder; absolute to share "
                           "it between runs", names="folder")
    budget: float | None = _free(None, "what web search may cost in all, over restarts; the run stops before it spends "
                                 "more; None: no limit", "[0, 1e9]", unit="dollars")
    timeout: float = _free(30.0, "of one attempt", "(0, 86400]", unit="seconds")
    retries: int = _free(3, "further attempts", "[0, 1000]")
    concurrency: int = _free(8, "requests under way at a time", "[1, 10000]")
    max_bytes: int = _free(8 << 20, "of a reply", "[1, 1e12]", unit="bytes")
    max_tokens: int | None = field(None, "of a chat reply, thoughts included; None: 100 a document", _COUNT, unit="tokens",
                                   engines=("chat",))
    extra_body: dict = field({}, 'further fields of a chat request, such as {"chat_template_kwargs": {"enable_thinking": '
                             'False}}; a field that is None here is not sent', engines=("chat",))


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """engine = "mixed": each search asks the simulator or a real engine; P(real) follows a schedule over training."""

    real: str = field("bm25", "the real engine", choices=("zsjax.search.registry:real_names",), names="function")
    schedule: str = field("linear", "as the curriculum's", names="function", choices=(_CURRICULA,))
    start: float = field(0.0, "P(real) at first", _SHARE)
    end: float = field(0.5, "P(real) at the end", _SHARE)
    base: float = field(4.0, "as the curriculum's", "(0, 1e9]")


@dataclasses.dataclass(frozen=True)
class RerankConfig:
    """More documents are written or found in training than are shown, and a scorer, learned from the rewards of the episodes
    that saw a document, chooses: the best, or for noise the most misleading (zsjax.search.rerank). A simulator is tuned to
    write all candidates. Evaluations show what the engine ranks first.
    """

    candidates: int = field(0, "documents per search to choose from, search.num_documents to 20; 0: off", "[0, 1000]")
    learning_rate: float = field(0.01, "of the scorer's Adam, one update a step; 0 never learns and shows the first: an "
                                 "ablation", "[0, 100]")
    buckets: int = field(1024, "the scorer's weights of hashed tokens, twice", "[1, 1e8]")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How documents are found or made."""

    engine: str = field(
        "simulator", 'of training: a name in README\'s table, or "package.module:factory" (zsjax.search.registry)',
        choices=("zsjax.search.registry:training_names",), names="function")
    eval_engine: str = _later("bm25", "the engine of evaluations", choices=("zsjax.search.registry:evaluation_names",),
                              names="function")
    options: dict = field({}, "options of an engine of your own, by the fields of its dataclass (zsjax.search.registry)")
    num_documents: int = field(5, "documents shown per search", "[1, 20]")
    max_document_tokens: int = field(64, "a shown document is cut to these", _TOKENS, unit="tokens")
    max_query_tokens: int = field(64, "a longer query is cut", _TOKENS, unit="tokens")
    temperature: float = field(0.8, "of the simulator's sampling", "[0, 10]")
    top_p: float = field(1.0, "of the simulator's sampling", "(0, 1]")
    shuffle_documents: bool = field(False, "a simulator's documents are shown in random order")
    document_format: str = field("Doc {i}: {title}. {text}", "one line per document")
    passage_words: int = field(0, "real engines show the window of so many words of a document that matches the query best "
                               "(zsjax.search.passages); 0 shows its beginning", "[0, 1e6]", unit="words")
    noise_per: str = field("search", 'what one noise draw is for; "document" is twice the simulator\'s work: a useful and a '
                           'noisy reply are written and mixed', choices=("search", "document"))
    remote: RemoteConfig = group(RemoteConfig)
    mix: MixConfig = group(MixConfig, engines=("mixed",))
    embedder: str = field("", 'of "dense": a checkpoint (pooled at the last token, as Qwen3-Embedding) or '
                          '"package.module:function", list of texts -> float32[N, D]', names="path", engines=("dense",))
    index_dir: str = _free("indexes", 'built indexes of corpus files, relative to the run\'s folder; "" builds in memory '
                           'each time', names="folder")
    reveal_gold: str = field(
        "always", 'whether the simulator is shown the gold answers; "on_target": for queries of which at least half of the '
        'tokens stand in the question', choices=("always", "on_target", "never"))
    rerank: RerankConfig = group(RerankConfig)

    @property
    def num_candidates(self) -> int:
        """Documents that are written or found for a search in training: what is shown is chosen from them."""
        return self.rerank.candidates or self.num_documents


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Turns and budgets, in tokens."""

    max_turns: int = field(4, "searches plus invalid actions; after them one last generation may only answer", "[1, 1000]")
    max_turn_tokens: int = field(128, "budget of one generation", _TOKENS, unit="tokens")
    max_tokens: int = _limit(2048, "T, the whole row: prompt, policy, documents", _TOKENS, unit="tokens")
    max_prompt_tokens: int = _limit(512, "a longer prompt is an error, never cut", _TOKENS, unit="tokens")
    # At temperature 0 every episode of a group is the same one and the advantages vanish.
    temperature: float = field(1.0, "of the policy's sampling in training", "(0, 10]")
    rows: int = _fast(0, "episodes played at a time on each device; a row that ends takes the next; 0: all", "[0, 1e7]",
                      unit="rows")
    simulator_slots: int = _fast(0, "requests that the simulator writes at a time; 0: a quarter of the rows", "[0, 1e7]",
                                 unit="requests")
    busy: float = _fast(0.0, "the policy decodes while more than this share of its rows has a token to draw; otherwise what "
                        "it waits for comes first", _SHARE)
    lanes: int = _fast(0, "rows whose prompts and documents are read at a time; 0: all", "[0, 1e7]", unit="rows")
    visit_every: int = _fast(
        16, "decode steps between two looks at searches outside of the compiled rollout (real engines, "
        "mesh.simulator_devices)", "[1, 1e7]", unit="steps")
    search_batches: int = _fast(1, "such batches of searches under way at a time; more than 1 asks a real engine from "
                                "several threads", "[1, 1000]")
    capacities: int = _fast(1, "sizes in which a compiled rollout allocates the policy's cache: max_tokens last, each half "
                            "of the next; a program is compiled for each; 1: max_tokens at once", "[1, 20]")


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """P(noisy) over training. The schedule's length is the steps that really run."""

    schedule: str = field(
        "zero_search", 'a name in zsjax.rl.curricula: from start to end; "constant": end; "step": values, changing at '
        'boundaries; "adaptive": from start, up to end while the recent reward is above target, down while it is below '
        '(zsjax.schedules.follow_reward)', names="function", choices=(_CURRICULA, "adaptive"))
    start: float = field(0.0, "P(noisy) at first", _SHARE)
    end: float = field(0.5, "P(noisy) at the end", _SHARE)
    base: float = field(4.0, 'of "zero_search": above 1 rises late, below early', "(0, 1e9]")
    values: tuple[float, ...] = field((), 'of "step"', _SHARE)
    boundaries: tuple[int, ...] = field((), 'of "step"', "[0, 1e9]", unit="steps")
    reverse: bool = field(False, "the schedule runs backwards: hard first")
    target: float = field(0.7, 'of "adaptive": the reward to hold', "[-1e6, 1e6]")
    rate: float = field(0.05, 'of "adaptive": change of the noise per step and unit of reward', "[0, 1e6]")
    decay: float = field(0.9, 'of "adaptive": how slowly the mean reward forgets', "[0, 1)")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optax chain: clip by global norm, AdamW, learning-rate schedule."""

    learning_rate: float = field(1e-6, "its peak", "(0, 1000]")
    schedule: str = field("constant", "after warmup_steps", choices=("constant", "linear", "cosine"))
    warmup_steps: int = field(0, "the rate rises linearly over these", "[0, 1e9]", unit="steps")
    final_fraction: float = field(0.1, "of the rate, left at the end", _SHARE)
    b1: float = field(0.9, "AdamW's", "[0, 1)")
    b2: float = field(0.999, "AdamW's", "[0, 1)")
    weight_decay: float = field(0.0, "AdamW's, of matrices only", "[0, 1000]")
    clip_norm: float = field(1.0, "of the whole gradient; 0: no clip", "[0, 1e9]")
    chain: tuple[dict, ...] = field(
        (), 'any optax chain in place of clip and AdamW: dicts of a transformation\'s name in optax and its arguments, as '
        '[dict(name="clip_by_global_norm", max_norm=1.0), dict(name="lion", learning_rate="schedule")]; "schedule" stands '
        'for the learning-rate schedule; b1, b2, weight_decay and clip_norm are then not read')
    master_weights: bool = field(
        True, "parameters narrower than float32 are updated in float32 copies, which the optimizer keeps")


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """How rewards become a loss."""

    advantage: str = field("grpo", "how a reward becomes an advantage", names="function",
                           choices=("zsjax.rl.credit:ADVANTAGES",))
    loss: str = field("ppo_clip", "the policy's loss", names="function", choices=("zsjax.rl.objective:LOSSES",))
    terms: dict = field({}, "further terms of what is minimised, name -> coefficient: functions (batch, logprobs, *, "
                        'loss_mask, entropy) -> float[B, T], as "package.module:function" (zsjax.rl.objective.Term)')
    scorers: dict = field({}, 'what else scores tokens, name -> "package.module:function": a function (config, mesh) -> '
                          "scorer(batch) -> float32[B, T], which lies in batch.extra[name] for terms, losses, advantages")
    normalize: bool = field(True, "GRPO divides by the group's deviation")
    kl_coef: float = field(0.0, "weight of the KL to the reference", "[0, 1e6]")
    kl_kind: str = field("k3", "its estimator: k2 or k3 as a loss; in the reward k1, as k2 and k3 hold back little there "
                         "(zsjax.rl.credit.kl_rewards)", choices=("k1", "k2", "k3"))
    track_kl: bool = field(True, "log the KL even when kl_coef is 0, at the cost of a reference copy and one more forward "
                           "pass a step")
    clip_low: float = field(0.2, "the ratio is clipped below 1 - this", "[0, 1e6]")
    clip_high: float = field(0.2, "the ratio is clipped above 1 + this", "[0, 1e6]")
    entropy_coef: float = field(0.0, "> 0 rewards entropy", "[0, 1e6]")
    reduction: str = field("token_mean", '"fixed_length" divides by rollout.max_tokens',
                           choices=("token_mean", "sequence_mean", "fixed_length"))
    invert_mask: bool = field(False, "an ablation that trains on everything but the policy's tokens")
    kl_in: str = field("loss", "where the KL counts: in the loss, or as a cost of tokens", choices=("loss", "reward"))
    kl_target: float = field(0.0, "what an adaptive kl_coef holds; 0: fixed", "[0, 1e6]", unit="nats per token")
    kl_horizon: int = field(10_000, "it changes by about 20 % in these", _COUNT, unit="episodes")
    gamma: float = field(1.0, 'of "gae" and "reinforce_plus_plus", per policy token', _SHARE)
    lam: float = field(1.0, 'of "gae", per policy token', _SHARE)
    value_model: bool = field(False, 'train a value model beside the policy (config.value), which "gae" needs')
    whiten: bool = field(False, "advantages get mean 0 and deviation 1 over the batch's policy tokens")
    dual_clip: float = field(0.0, "> 1 bounds the loss of a token with a negative advantage (zsjax.rl.losses.ppo_clip); "
                             "0: off", "[0, 1e6]")
    sampler_clip: float = field(0.0, "> 0 weighs tokens by min(trainer's / sampler's probability, this); 0: off", "[0, 1e6]")
    drop_equal_groups: bool = field(False, "groups whose rewards are all equal leave the loss")
    refill_rounds: int = field(0, "up to so many times further questions are played to replace them", "[0, 1000]")
    mask: tuple[str, ...] = field((), 'episodes that leave the loss: "truncated" (the context was full), "overlong" '
                                  '(reward.overlong_to)', choices=("truncated", "overlong"))


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """An episode's reward: the sum of weight * term, see zsjax.rewards.terms."""

    terms: dict = field({"f1": 1.0}, 'term -> weight: names in zsjax.rewards.terms.TERMS or "package.module:function"; '
                        'penalties get negative weights')
    overlong_from: int = field(0, 'policy tokens from which the term "overlong" rises from 0', "[0, 1e7]", unit="tokens")
    overlong_to: int = field(0, "policy tokens at which it is 1; 0: it stays 0", "[0, 1e7]", unit="tokens")


@dataclasses.dataclass(frozen=True)
class ValueConfig:
    """The value model of algorithm.value_model: the starting policy's trunk and a scalar head."""

    optimizer: OptimizerConfig = group(OptimizerConfig, learning_rate=1e-5)
    clip: float = field(0.2, "a prediction moves at most so far from the old one before it stops to be trained; 0: no clip",
                        "[0, 1e6]", unit="reward")
    warmup_steps: int = field(0, "the first so many steps train it alone", "[0, 1e9]", unit="steps")


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    """Signs of collapse, see zsjax.monitor.health."""

    alarms: dict = _free({
        "entropy": [1e-4, None], "response_tokens": [2.0, None], "repetition": [None, 0.8],
        "share_answered": [0.05, None], "searches": [0.02, None], "sampler_gap_mean": [None, 0.1],
        "grad_norm": [None, 100.0]},
        "metric -> [low, high], either may be None; a metric of a step line that is outside raises its alarm")
    patience: int = _free(3, "steps in a row outside before it does", _COUNT, unit="steps")
    stop: bool = _free(False, "an alarm stops the run, after a checkpoint")
    keep_best: bool = _free(True, "the policy with the best best_metric so far is kept in models/best")
    best_metric: str = _free("eval/em", "of the evaluations in training")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The RL loop. One step: questions_per_step x group_size episodes, cut into `minibatches` updates, `epochs` times."""

    steps: int = field(200, "of the whole run", _COUNT, unit="steps")
    questions_per_step: int = field(64, "drawn for a step", "[1, 1e7]", unit="questions")
    group_size: int = field(5, "episodes of a question", "[1, 1e6]", unit="episodes")
    minibatches: int = field(1, "updates that a step's rows are cut into", "[1, 1e6]")
    epochs: int = field(1, "times that a step's rows are gone over", "[1, 1000]")
    microbatch_rows: int = _fast(0, "rows whose activations exist at a time; 0: a minibatch at once", "[0, 1e7]",
                                 unit="rows")
    microbatch_tokens: int = _fast(0, "> 0 cuts by tokens instead: rows are sorted by length into few shapes of about so "
                                   "many", "[0, 1e9]", unit="tokens")
    logprob_chunk: int = _fast(256, "positions whose logits exist at a time", _TOKENS, unit="tokens")
    remat: str = _fast("none", "what the backward pass computes again instead of keeping", choices=_REMAT)
    keep: str = field("all", 'episodes that are updated on: "reward_spread": groups whose rewards differ most; '
                      '"search_depth": those that searched most', choices=("all", "reward_spread", "search_depth"))
    keep_fraction: float = field(1.0, "the share of them", "(0, 1]")
    checkpoint_every: int = _free(20, "steps between two", _COUNT, unit="steps")
    keep_checkpoints: int = _free(2, "the last so many", "[1, 1e6]")
    trajectories_every: int = _free(10, "steps between two files of trajectories", _COUNT, unit="steps")
    eval_every: int = _later(20, "steps between two evaluations; the last step is always followed by one", _COUNT,
                            unit="steps")
    eval_questions: int = _later(64, "of such an evaluation", _COUNT, unit="questions")


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """One phase of supervised training: pretraining of the policy or the simulator, simulator tuning."""

    steps: int = field(0, "of the phase", "[0, 1e9]", unit="steps")
    batch_rows: int = field(32, "of a step", "[1, 1e7]", unit="rows")
    max_tokens: int = _limit(128, "of a row; a longer one is an error, never cut", _TOKENS, unit="tokens")
    microbatch_tokens: int = _fast(0, "of a part of a step, for which rows are sorted by length and packed; 0: the batch as "
                                   "it is", "[0, 1e9]", unit="tokens")
    remat: str = _fast("none", "as of TrainConfig", choices=_REMAT)
    logprob_chunk: int = _fast(256, "as of TrainConfig", _TOKENS, unit="tokens")
    checkpoint_every: int = _free(100, "steps between two", _COUNT, unit="steps")
    optimizer: OptimizerConfig = group(OptimizerConfig)
    options: dict = field({}, "what this phase alone knows, see the function that runs it")


@dataclasses.dataclass(frozen=True)
class WarmStartConfig(SupervisedConfig):
    """Supervised training of the policy on episodes, loss on its own tokens; what training starts from then."""

    episodes: str = field("", "a .jsonl[.gz] file of episodes (zsjax.tuning.demonstrations has its form); \"\" writes them "
                          "from data.train and the real engine", names="path")


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The model of collect.label = "judge": a decoder, or a server. It says yes or no to (question, answers, document)."""

    init: str = field("", "a checkpoint as of ModelConfig", names="path")
    tokenizer: str = field("", 'its own; "" is the one in init\'s folder', names="path")
    dtype: str = field("float32", "of activations and parameters", choices=_DTYPES)
    chat: bool = field(False, "the prompt is put into the tokenizer's chat template")
    max_tokens: int = _limit(1024, "of a prompt", _TOKENS, unit="tokens")
    batch_rows: int = _fast(32, "prompts a pass", "[1, 1e7]", unit="rows")
    url: str = _free("", "a server with the OpenAI chat interface instead; search.remote's limits hold for it, too",
                     names="url")
    model: str = field("", "the server's name of its model")
    key_env: str = _free("", "as of RemoteConfig", names="variable")
    template: str = field("default", '"default" or a file with {question}, {answers}, {document}', names="path")
    extra_body: dict = field({}, 'as of RemoteConfig, of the judge\'s requests; "max_tokens" among them is 1024 where it is '
                             "not named")


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Searches with the real engine, from which the simulator's examples are made."""

    episodes: int = field(512, "played by the policy, whose searches are kept", _COUNT, unit="episodes")
    probes: int = field(
        0, "questions of each number of hops whose right queries, and wrong ones beside them, are searched for as well: a "
        "small policy asks few different things; they must know their right queries", "[0, 1e9]", unit="questions")
    balance: bool = field(True, "as many noisy as useful examples")
    label: str = field(
        "ranking", 'how replies are labelled useful or noisy: "answer" by the final answer (the paper\'s first version), '
        '"contains" or "judge" by document (its second): a gold answer stands in it, or a model says so '
        '(zsjax.tuning.dataset)', choices=("ranking", "answer", "contains", "judge"))
    hold_out: float = field(0.0, "share of the questions whose searches are not tuned on: of them it is reported how often "
                            "useful and noisy replies hold a gold answer, before and after; 0 reports nothing", "[0, 0.5]")
    judge: JudgeConfig = group(JudgeConfig)


@dataclasses.dataclass(frozen=True)
class GatesConfig:
    """What must hold before the next stage; a gate that fails stops the run. None: the gate is only printed."""

    reading: float | None = _free(None, "exact answers with the right documents given, at least", _SHARE)
    useful: float | None = _free(None, "gold in useful documents for the right last query, at least", _SHARE)
    noisy: float | None = _free(None, "gold in noisy documents, at most", _SHARE)
    leak: float | None = _free(None, "gold in useful documents for off-path queries above the real engine's rate, at most",
                               _SHARE)


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation with `search.eval_engine` of the starting and the trained policy."""

    temperature: float = _later(0.0, "0 is greedy", "[0, 10]")
    samples: int = _later(1, "episodes of each question, each with a seed of its own; needs a temperature above 0",
                         "[1, 1e6]", unit="episodes")
    batch_rows: int = _fast(64, "questions played at a time", "[1, 1e7]", unit="rows")
    drop_best: float = _later(0.0, "> 0 also evaluates with a real engine that loses its best document so often", _SHARE)
    misinformation: float = _later(0.0, "> 0 also evaluates, in the tiny world, with a real engine whose best document "
                                   "tells another object so often (zsjax.tiny_world.misinformation)", _SHARE)
    baselines: tuple[str, ...] = _later((), "played by the run's policy (trained where there is one) on the same questions",
                                       choices=("zsjax.evaluation.baselines:METHODS",))
    baseline_model: str = _later("policy", 'who plays the baselines: "policy", the run\'s (trained where there is one), or '
                                 '"base", what the run began with', choices=("policy", "base"))
    baseline_samples: int = _later(8, 'episodes a question of "best_of_n" and "tree_search", at rollout.temperature',
                                  "[2, 1e6]", unit="episodes")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what is left."""

    data: int = _fast(-1, "cuts rows", "[-1, 1e7]", unit="devices")
    fsdp: int = _fast(1, "cuts rows, and weights and optimizer", "[-1, 1e7]", unit="devices")
    tensor: int = _fast(1, "cuts heads", "[-1, 1e7]", unit="devices")
    simulator_devices: int = _fast(
        0, "so many devices, each host's last, hold the simulator and nothing else, which then writes while the policy "
        "decodes on the others; data, fsdp and tensor are of the others; 0: both share all devices", "[0, 1e7]",
        unit="devices")
    simulator_tensor: int = _fast(1, "one copy of that simulator's heads is cut over these", "[1, 1e7]", unit="devices")


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """Prices; the report says what a run cost by them."""

    search: float = _later(586.70 / 64_000, "one search at a web search API, by ZeroSearch's account of SerpApi", "[0, 1e6]",
                          unit="dollars")
    accelerator_hour: float = _later(
        70.80 / (4 * 12), "one device for an hour; an A100 at AWS, if the 70.80 dollars that the same account gives for 4 "
        "of them were 12 hours", "[0, 1e6]", unit="dollars")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = _free("run", "what the report calls it")
    seed: int = field(0, "of every draw", "[0, 2147483647]")
    stages: tuple[str, ...] = field(("train", "evaluate", "report"), "in order", choices=STAGES, effect="stages")
    tokenizer: str = field("asset:tiny_world/tokenizer", "a folder of tokenizer.json, or a tokenizer.model", names="path")
    world: dict = field({}, "options of the tiny world, when it is used")
    policy: ModelConfig = group(ModelConfig)
    simulator: ModelConfig = group(ModelConfig, engines=("simulator",))
    data: DataConfig = group(DataConfig)
    prompts: PromptsConfig = group(PromptsConfig)
    search: SearchConfig = group(SearchConfig)
    rollout: RolloutConfig = group(RolloutConfig)
    curriculum: CurriculumConfig = group(CurriculumConfig)
    algorithm: AlgorithmConfig = group(AlgorithmConfig)
    reward: RewardConfig = group(RewardConfig)
    value: ValueConfig = group(ValueConfig)
    health: HealthConfig = group(HealthConfig)
    optimizer: OptimizerConfig = group(OptimizerConfig)
    train: TrainConfig = group(TrainConfig)
    pretrain: SupervisedConfig = group(SupervisedConfig)
    pretrain_simulator: SupervisedConfig = group(SupervisedConfig)
    warm_start: WarmStartConfig = group(WarmStartConfig)
    tune_simulator: SupervisedConfig = group(SupervisedConfig)
    trajectory_sft: SupervisedConfig = group(SupervisedConfig, "a baseline", effect="later")
    collect: CollectConfig = group(CollectConfig)
    gates: GatesConfig = group(GatesConfig)
    evaluate: EvaluateConfig = group(EvaluateConfig)
    mesh: MeshConfig = group(MeshConfig)
    cost: CostConfig = group(CostConfig)
