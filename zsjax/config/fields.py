"""The config's fields: names, types, defaults and meaning. `zsjax.config` reads and checks them."""

import dataclasses

# What `Config.stages` may name, in the order in which they run.
STAGES = ("pretrain", "pretrain_simulator", "warm_start", "collect", "tune_simulator", "train", "evaluate", "report")

# Fields that may differ when a run is resumed: they decide when something is written or whether the run goes on, never
# what is computed. A name that ends in "." stands for all fields below it.
MAY_CHANGE = ("name", "train.checkpoint_every", "train.keep_checkpoints", "train.trajectories_every",
              "pretrain.checkpoint_every", "pretrain_simulator.checkpoint_every", "tune_simulator.checkpoint_every",
              "trajectory_sft.checkpoint_every", "warm_start.checkpoint_every",
              "gates.", "health.", "cost.", "search.remote.budget")


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters instead of the model (zsjax.models.lora); merged where the model is saved.

    rank: 0 trains the model itself.
    alpha: adapters are scaled by alpha / rank.
    targets: projections that get one: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder and where its weights come from.

    init: "asset:NAME" (carried with the package), a folder in Hugging Face's form, a run's checkpoint folder,
      "hf:OWNER/NAME" (the Hugging Face hub, where there is a network), or "random".
    shape: fields of DecoderConfig, for `init="random"`; otherwise read from the checkpoint.
    positional_bias_init: whether random layer-0 heads start as "attend n tokens back" (zsjax.tiny_world.positional).
    dtype: dtype of the activations; parameters are kept in `param_dtype`.
    attention: "auto" takes the platform's kernel (zsjax.models.attention); "xla", "cudnn" or "splash" that one or none.
    check_finite: refuse a checkpoint with NaN or infinite weights.
    quantize: "int8" stores the weights of the frozen simulator in half of bfloat16's bytes; "none".
    cache_dtype: of the keys and values that a rollout keeps: "model", the dtype of the activations, or "int8".
    """

    init: str = "random"
    shape: dict = dataclasses.field(default_factory=dict)
    positional_bias_init: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    attention: str = "auto"
    check_finite: bool = False
    quantize: str = "none"
    cache_dtype: str = "model"
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Questions and the corpus that real engines search.

    train, eval: a .jsonl[.gz] or .parquet path, "tfds:NAME", or "tiny_world:train" / "tiny_world:eval". "#SPLIT" behind a
      file or TFDS name takes that split only.
    benchmarks: {name: source}; the evaluation then goes over each of these instead of `eval`, e.g. {"nq": "nq.jsonl"}.
    corpus, eval_corpus: a .jsonl[.gz] path of {id, title, text}, or "tiny_world:train" / "tiny_world:eval".
    eval_limit: questions per evaluation (of each benchmark); None is all.
    """

    train: str = "tiny_world:train"
    eval: str = "tiny_world:eval"
    corpus: str = "tiny_world:train"
    eval_corpus: str = "tiny_world:eval"
    eval_limit: int | None = None
    benchmarks: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """Names of prompt templates: "tiny_world", "default", or a path of a template file.

    chat, simulator_chat: the policy's and the simulator's prompt are put into the tokenizer's chat template, which
      instruct models want; base models read plain text.
    """

    policy: str = "default"
    simulator: str = "default"
    chat: bool = False
    simulator_chat: bool = False


@dataclasses.dataclass(frozen=True)
class RemoteConfig:
    """Engines behind a network. Keys come from environment variables, which are named here; they are never written.

    url: of the /retrieve server ("http") or the OpenAI-style chat server ("chat").
    model: the chat server's name of its model.
    key_env: environment variable with the key of "serpapi" or "chat"; "" is SERPAPI_API_KEY for the first, none for
      the second.
    web_engine: which web search SerpApi asks: "google", "bing", ...
    cache_dir: SerpApi's results and account, relative to the run's folder; absolute to share it between runs.
    budget: dollars that web search may spend in all, over restarts; the run stops before it spends more. None: no limit.
    timeout: seconds of one attempt. retries: further attempts. concurrency: requests under way at a time.
    max_bytes: of a reply.
    """

    url: str = ""
    model: str = ""
    key_env: str = ""
    web_engine: str = "google"
    cache_dir: str = "web_search"
    budget: float | None = None
    timeout: float = 30.0
    retries: int = 3
    concurrency: int = 8
    max_bytes: int = 8 << 20


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """engine = "mixed": each search asks the simulator or a real engine. P(real) follows a schedule over training.

    real: the real engine. schedule, start, end, base: as the curriculum's.
    """

    real: str = "bm25"
    schedule: str = "linear"
    start: float = 0.0
    end: float = 0.5
    base: float = 4.0


@dataclasses.dataclass(frozen=True)
class RerankConfig:
    """More documents are written or found in training than are shown, and a scorer, learned from the rewards of the episodes
    that saw a document, chooses: the best, or for noise the most misleading (zsjax.search.rerank). A simulator is tuned to
    write all candidates. Evaluations show what the engine ranks first.

    candidates: documents per search to choose from, search.num_documents to 20; 0: off.
    learning_rate: of the scorer's Adam, one update a step; 0 never learns and shows the first: an ablation.
    buckets: the scorer's weights of hashed tokens, twice.
    """

    candidates: int = 0
    learning_rate: float = 0.01
    buckets: int = 1024


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How documents are found or made.

    engine: "simulator", "bm25", "dense", "http" (a /retrieve server), "serpapi" (web search), "chat" (a simulator behind
      an OpenAI-style server), "mixed" (simulator and a real engine), or "empty" (documents without content: an ablation).
    eval_engine: the engine of evaluations; not "mixed".
    remote, mix, rerank: see there.
    embedder: of "dense": a checkpoint (pooled at the last token, as Qwen3-Embedding) or "package.module:function", which
      takes a list of texts and gives float32[N, D].
    index_dir: built indexes of corpus files, relative to the run's folder; "" builds in memory each time.
    reveal_gold: whether the simulator is shown the gold answers: "always", "never", or "on_target": for queries of
      which at least half of the tokens stand in the question.
    noise_per: "search", one coin for all documents of a search, or "document", a coin for each (twice the simulator's
      work: a useful and a noisy reply are written and mixed).
    num_documents: documents shown per search, 1 to 20.
    max_document_tokens: a shown document is cut to this many tokens.
    max_query_tokens: longer queries are cut.
    temperature, top_p: the simulator's sampling.
    shuffle_documents: a simulator's documents are shown in random order.
    document_format: one line per document, with {i}, {title}, {text}.
    passage_words: real engines show the window of so many words of a document that matches the query best
      (zsjax.search.passages); 0 shows its beginning.
    """

    engine: str = "simulator"
    eval_engine: str = "bm25"
    num_documents: int = 5
    max_document_tokens: int = 64
    max_query_tokens: int = 64
    temperature: float = 0.8
    top_p: float = 1.0
    shuffle_documents: bool = False
    document_format: str = "Doc {i}: {title}. {text}"
    passage_words: int = 0
    noise_per: str = "search"
    remote: RemoteConfig = dataclasses.field(default_factory=RemoteConfig)
    mix: MixConfig = dataclasses.field(default_factory=MixConfig)
    embedder: str = ""
    index_dir: str = "indexes"
    reveal_gold: str = "always"
    rerank: RerankConfig = dataclasses.field(default_factory=RerankConfig)

    @property
    def num_candidates(self) -> int:
        """Documents that are written or found for a search in training: what is shown is chosen from them."""
        return self.rerank.candidates or self.num_documents


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Turns and budgets, in tokens.

    max_turns: searches plus invalid actions; after them one last generation may only answer.
    max_turn_tokens: budget of one generation.
    max_tokens: T, the whole row: prompt, policy, documents.
    max_prompt_tokens: a longer prompt is an error, never cut.
    rows: episodes played at a time on each device; a row that ends takes the next. 0: all.
    simulator_slots: requests that the simulator writes at a time; 0: a quarter of the rows.
    busy: the policy decodes while more than this share of its rows has a token to draw; otherwise what it waits for comes
      first.
    lanes: rows whose prompts and documents are read at a time; 0: all.
    visit_every: where searches are made outside of the compiled rollout (real engines, mesh.simulator_devices), decode
      steps between two looks at those that are under way.
    search_batches: such batches of searches under way at a time; more than 1 asks a real engine from several threads.
    capacities: sizes in which a compiled rollout allocates the policy's cache: max_tokens last, each half of the next.
      Rows move to the next size when one could outgrow its own; a program is compiled for each. 1: max_tokens at once.
    """

    max_turns: int = 4
    max_turn_tokens: int = 128
    max_tokens: int = 2048
    max_prompt_tokens: int = 512
    temperature: float = 1.0
    rows: int = 0
    simulator_slots: int = 0
    busy: float = 0.0
    lanes: int = 0
    visit_every: int = 16
    search_batches: int = 1
    capacities: int = 1


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """P(noisy) over training: `schedule` is a name in zsjax.schedules; its length is the steps that really run.

    schedule: "zero_search", "linear" or "cosine" from `start` to `end`; "constant" at `end`; "step": `values`, changing
      at the steps `boundaries`; "adaptive": from `start`, up to `end` while the recent reward is above `target`, down
      while it is below (zsjax.schedules.follow_reward with `rate` and `decay`).
    reverse: the schedule runs backwards: hard first.
    """

    schedule: str = "zero_search"
    start: float = 0.0
    end: float = 0.5
    base: float = 4.0
    values: tuple[float, ...] = ()
    boundaries: tuple[int, ...] = ()
    reverse: bool = False
    target: float = 0.7
    rate: float = 0.05
    decay: float = 0.9


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optax chain: clip by global norm, AdamW, learning-rate schedule.

    schedule: "constant", "linear" or "cosine" after `warmup_steps`; `final_fraction` of the rate is left at the end.
    chain: any optax chain in place of clip and AdamW: dicts of a transformation's name in optax and its arguments, as
      [dict(name="clip_by_global_norm", max_norm=1.0), dict(name="lion", learning_rate="schedule")]; the text
      "schedule" stands for the learning-rate schedule. b1, b2, weight_decay and clip_norm are then not read.
    master_weights: parameters narrower than float32 are updated in float32 copies, which the optimizer keeps.
    """

    learning_rate: float = 1e-6
    schedule: str = "constant"
    warmup_steps: int = 0
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.999
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    chain: tuple[dict, ...] = ()
    master_weights: bool = True


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """How rewards become a loss.

    advantage: "grpo", "rloo", "reinforce", "reinforce_plus_plus", "gae" or "package.module:function".
    loss: a registered name ("ppo_clip", "gspo") or "package.module:function".
    normalize: GRPO divides by the group's deviation.
    kl_coef, kl_kind: KL to the reference as a loss (k2, k3) or, with kl_in="reward", as a cost of tokens (k1 is right
      there; k2 and k3 hold back little, see zsjax.rl.credit.kl_rewards).
    track_kl: log the KL even when kl_coef is 0, at the cost of a reference copy and one more forward pass a step.
    reduction: "token_mean", "sequence_mean" or "fixed_length" (rollout.max_tokens).
    invert_mask: an ablation that trains on everything but the policy's tokens.
    kl_in: "loss" or "reward".
    kl_target: nats per token that an adaptive kl_coef holds, changing by about 20 % in kl_horizon episodes; 0: fixed.
    gamma, lam: of "gae" (both) and "reinforce_plus_plus" (gamma), per policy token.
    value_model: train a value model beside the policy (config.value), which "gae" needs.
    whiten: advantages get mean 0 and deviation 1 over the batch's policy tokens.
    dual_clip: > 1 bounds the loss of a token with a negative advantage, see zsjax.rl.losses.ppo_clip; 0: off.
    sampler_clip: > 0 weighs tokens by min(trainer's / sampler's probability, this); 0: off.
    drop_equal_groups, refill_rounds: groups whose rewards are all equal leave the loss; up to so many times further
      questions are played to replace them.
    mask: episodes that leave the loss: some of "truncated" (the context was full), "overlong" (reward.overlong_to).
    """

    advantage: str = "grpo"
    loss: str = "ppo_clip"
    normalize: bool = True
    kl_coef: float = 0.0
    kl_kind: str = "k3"
    track_kl: bool = True
    clip_low: float = 0.2
    clip_high: float = 0.2
    entropy_coef: float = 0.0
    reduction: str = "token_mean"
    invert_mask: bool = False
    kl_in: str = "loss"
    kl_target: float = 0.0
    kl_horizon: int = 10_000
    gamma: float = 1.0
    lam: float = 1.0
    value_model: bool = False
    whiten: bool = False
    dual_clip: float = 0.0
    sampler_clip: float = 0.0
    drop_equal_groups: bool = False
    refill_rounds: int = 0
    mask: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """An episode's reward: the sum of weight * term, see zsjax.rewards.terms.

    terms: term -> weight: "f1", "em", "contains", "format", "no_answer", "no_search", "searches", "invalid_actions",
      "retry_helped", "truncated", "overlong" or "package.module:function". Penalties get negative weights.
    overlong_from, overlong_to: policy tokens between which the term "overlong" rises from 0 to 1; 0: it stays 0.
    """

    terms: dict = dataclasses.field(default_factory=lambda: {"f1": 1.0})
    overlong_from: int = 0
    overlong_to: int = 0


@dataclasses.dataclass(frozen=True)
class ValueConfig:
    """The value model of algorithm.value_model: the starting policy's trunk and a scalar head.

    clip: a prediction moves at most so far from the old one before it stops to be trained, in reward; 0: no clip.
    warmup_steps: the first so many steps train it alone.
    """

    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: OptimizerConfig(learning_rate=1e-5))
    clip: float = 0.2
    warmup_steps: int = 0


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    """Signs of collapse, see zsjax.monitor.health.

    alarms: metric -> [low, high], either may be None; a metric of a step line that is outside raises its alarm.
    patience: steps in a row outside before it does.
    stop: an alarm stops the run, after a checkpoint.
    keep_best: the policy with the best `best_metric` so far, of the evaluations in training, is kept in models/best.
    """

    alarms: dict = dataclasses.field(default_factory=lambda: {
        "entropy": [1e-4, None], "response_tokens": [2.0, None], "repetition": [None, 0.8],
        "share_answered": [0.05, None], "searches": [0.02, None], "sampler_gap_mean": [None, 0.1],
        "grad_norm": [None, 100.0]})
    patience: int = 3
    stop: bool = False
    keep_best: bool = True
    best_metric: str = "eval/em"


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The RL loop. One step: questions_per_step x group_size episodes, cut into `minibatches` updates, `epochs` times.

    microbatch_rows: rows whose activations exist at a time; 0 is a minibatch at once.
    microbatch_tokens: > 0 cuts by tokens instead: rows are sorted by length into few shapes of about so many tokens.
    remat: what the backward pass computes again instead of keeping: a name in zsjax.models.decoder.REMAT.
    keep, keep_fraction: which share of the episodes is updated on, by "reward_spread" (groups whose rewards differ
      most) or "search_depth" (episodes that searched most); "all" is all.
    """

    steps: int = 200
    questions_per_step: int = 64
    group_size: int = 5
    minibatches: int = 1
    epochs: int = 1
    microbatch_rows: int = 0
    microbatch_tokens: int = 0
    logprob_chunk: int = 256
    remat: str = "none"
    keep: str = "all"
    keep_fraction: float = 1.0
    checkpoint_every: int = 20
    keep_checkpoints: int = 2
    trajectories_every: int = 10
    eval_every: int = 20
    eval_questions: int = 64


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """One phase of supervised training: pretraining of the policy or the simulator, simulator tuning.

    batch_rows, max_tokens: of a step, and of a row. microbatch_tokens: tokens of a part of it, for which rows are sorted by
      length and packed, as of TrainConfig; 0: the batch as it is.
    remat, logprob_chunk: as of TrainConfig.
    """

    steps: int = 0
    batch_rows: int = 32
    max_tokens: int = 128
    microbatch_tokens: int = 0
    remat: str = "none"
    logprob_chunk: int = 256
    checkpoint_every: int = 100
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    options: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class WarmStartConfig(SupervisedConfig):
    """Supervised training of the policy on episodes, loss on its own tokens; what training starts from then.

    episodes: a .jsonl[.gz] file of episodes (zsjax.tuning.demonstrations has its form); "" writes them from data.train
      and the real engine.
    """

    episodes: str = ""


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The model of collect.label = "judge": a decoder, or a server. It says yes or no to (question, answers, document).

    init: a checkpoint as of ModelConfig; tokenizer: its own, "" is the one in init's folder. dtype: of both kinds.
    chat: the prompt is put into the tokenizer's chat template.
    max_tokens: of a prompt; batch_rows: prompts a pass.
    url, model, key_env: a server with the OpenAI chat interface instead, as of RemoteConfig, whose limits hold for it, too.
    template: "default" or the path of a file with {question}, {answers}, {document}.
    """

    init: str = ""
    tokenizer: str = ""
    dtype: str = "float32"
    chat: bool = False
    max_tokens: int = 1024
    batch_rows: int = 32
    url: str = ""
    model: str = ""
    key_env: str = ""
    template: str = "default"


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Searches with the real engine, from which the simulator's examples are made.

    episodes: played by the policy, whose searches are kept.
    probes: questions of each number of hops whose right queries, and wrong ones beside them, are searched for as well: a
      small policy asks fewer different things than a language model. They need questions that know their right queries.
    balance: as many noisy as useful examples.
    label: how replies are labelled useful or noisy: "ranking", "answer" (by the final answer, the paper's first version),
      "contains" or "judge" (by document, its second version: a gold answer stands in it, or a model, see `judge`, says
      so); zsjax.tuning.dataset says more.
    hold_out: share of the questions whose searches are not tuned on: on them it is reported how often useful and noisy
      replies hold a gold answer, before and after tuning. 0 reports nothing.
    """

    episodes: int = 512
    probes: int = 0
    balance: bool = True
    label: str = "ranking"
    hold_out: float = 0.0
    judge: JudgeConfig = dataclasses.field(default_factory=JudgeConfig)


@dataclasses.dataclass(frozen=True)
class GatesConfig:
    """What must hold before the next stage; a gate that fails stops the run. None: the gate is only printed."""

    reading: float | None = None  # exact answers with the right documents given, at least
    useful: float | None = None  # gold in useful documents for the right last query, at least
    noisy: float | None = None  # gold in noisy documents, at most
    leak: float | None = None  # gold in useful documents for off-path queries above the real engine's rate, at most


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation with `search.eval_engine` of the starting and the trained policy.

    temperature: 0 is greedy.
    samples: episodes of each question, each with a seed of its own; needs a temperature above 0.
    batch_rows: questions played at a time.
    drop_best: > 0 also evaluates with a real engine that loses its best document with this probability.
    baselines: names of zsjax.evaluation.baselines, played on the same questions.
    baseline_model: who plays them: "policy", the run's (trained where there is one), or "base", what the run began with.
    baseline_samples: episodes a question of "best_of_n" and "tree_search", at rollout.temperature.
    """

    temperature: float = 0.0
    samples: int = 1
    batch_rows: int = 64
    drop_best: float = 0.0
    baselines: tuple[str, ...] = ()
    baseline_model: str = "policy"
    baseline_samples: int = 8


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes what is left.

    simulator_devices: so many devices, each host's last, hold the simulator and nothing else, which then writes while the
      policy decodes on the others; data, fsdp and tensor are of the others. 0: policy and simulator share all devices.
    simulator_tensor: devices that one copy of that simulator's heads is cut over.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    simulator_devices: int = 0
    simulator_tensor: int = 1


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """Prices, in dollars; the report says what a run cost by them.

    search: one search at a web search API; 586.70 for 64,000 by ZeroSearch's account (SerpApi).
    accelerator_hour: one device for an hour; an A100 at AWS, if the 70.80 dollars that the same account gives for 4 of them
      were 12 hours.
    """

    search: float = 586.70 / 64_000
    accelerator_hour: float = 70.80 / (4 * 12)


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = "run"
    seed: int = 0
    stages: tuple[str, ...] = ("train", "evaluate", "report")
    tokenizer: str = "asset:tiny_world/tokenizer"
    world: dict = dataclasses.field(default_factory=dict)  # options of the tiny world, when it is used
    policy: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    simulator: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    prompts: PromptsConfig = dataclasses.field(default_factory=PromptsConfig)
    search: SearchConfig = dataclasses.field(default_factory=SearchConfig)
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    curriculum: CurriculumConfig = dataclasses.field(default_factory=CurriculumConfig)
    algorithm: AlgorithmConfig = dataclasses.field(default_factory=AlgorithmConfig)
    reward: RewardConfig = dataclasses.field(default_factory=RewardConfig)
    value: ValueConfig = dataclasses.field(default_factory=ValueConfig)
    health: HealthConfig = dataclasses.field(default_factory=HealthConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    pretrain: SupervisedConfig = dataclasses.field(default_factory=SupervisedConfig)
    pretrain_simulator: SupervisedConfig = dataclasses.field(default_factory=SupervisedConfig)
    tune_simulator: SupervisedConfig = dataclasses.field(default_factory=SupervisedConfig)
    warm_start: WarmStartConfig = dataclasses.field(default_factory=WarmStartConfig)
    trajectory_sft: SupervisedConfig = dataclasses.field(default_factory=SupervisedConfig)  # a baseline
    collect: CollectConfig = dataclasses.field(default_factory=CollectConfig)
    gates: GatesConfig = dataclasses.field(default_factory=GatesConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    cost: CostConfig = dataclasses.field(default_factory=CostConfig)
