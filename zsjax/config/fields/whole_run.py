"""Fields of a whole run: its stages, the simulator's data, gates, evaluation, mesh and prices."""

import dataclasses

from zsjax.config.declare import DTYPES, SHARE, fast, field, free, group, later, limit
from zsjax.config.fields.learning import (
    AlgorithmConfig,
    HealthConfig,
    OptimizerConfig,
    RewardConfig,
    SupervisedConfig,
    TrainConfig,
    ValueConfig,
    WarmStartConfig,
)
from zsjax.config.fields.model import ModelConfig
from zsjax.config.fields.search_and_rollout import (
    CurriculumConfig,
    DataConfig,
    PromptsConfig,
    RolloutConfig,
    SearchConfig,
)

# What `Config.stages` may name, in the order in which they run.
STAGES = ("pretrain", "pretrain_simulator", "warm_start", "collect", "tune_simulator", "train", "evaluate", "report")


@dataclasses.dataclass(frozen=True)
class JudgeConfig:
    """The model of collect.label = "judge": a decoder, or a server. It says yes or no to (question, answers, document)."""

    init: str = field("", "a checkpoint, as ModelConfig.init", names="path")
    tokenizer: str = field("", 'its own; "": the one in the folder of init', names="path")
    dtype: str = field("float32", "of activations and parameters", choices=DTYPES)
    chat: bool = field(False, "put the prompt into the tokenizer's chat template")
    max_tokens: int = limit(1024, "of a prompt", "[1, 1e7]", unit="tokens")
    batch_rows: int = fast(32, "prompts a pass", "[1, 1e7]", unit="rows")
    url: str = free("", "of an OpenAI-style chat server, instead of init; the limits of search.remote hold for it",
                    names="url")
    model: str = field("", "the server's name of its model")
    key_env: str = free("", "as of RemoteConfig", names="variable")
    template: str = field("default", '"default" or a file with {question}, {answers}, {document}', names="path")
    extra_body: dict = field({}, 'as of RemoteConfig, for the judge\'s requests; its "max_tokens" is 1024 by default')


@dataclasses.dataclass(frozen=True)
class CollectConfig:
    """Searches with the real engine, from which the simulator's examples are made."""

    episodes: int = field(512, "played by the policy; their searches are kept; 0: only those of queries and probes",
                          "[0, 1e9]", unit="episodes")
    shuffle: bool = field(False, "questions are taken in random order; off, in the order of their file, which may be sorted "
                          "by data set")
    queries: tuple[str, ...] = field(
        (), 'searches that no policy made, of all questions: for the "question" itself, and for the queries of the '
        '"episodes" of warm_start, whose second hops a small policy seldom asks for', choices=("question", "episodes"))
    off_target: float = field(
        0.0, "at most this share of the examples asks beside the point: another question's query, or a page that the first "
        "search showed. The reply is what the engine finds, so that gold in the prompt is not shown whatever is asked",
        "[0, 0.9]")
    probes: int = field(
        0, "questions of each number of hops that are also searched for, by their right queries and by wrong ones: a small "
        "policy asks few different things; the questions must know their right queries", "[0, 1e9]", unit="questions")
    balance: bool = field(True, "as many noisy as useful examples")
    pairs: bool = field(False, "only searches that give a useful and a noisy reply are used, and the two share no document "
                        "(zsjax.tuning.dataset)")
    label: str = field(
        "ranking", 'what makes a reply useful or noisy: its place in the engine\'s "ranking"; the final "answer" (the '
        'paper\'s first version); or, document by document (its second), that it "contains" a gold answer, or that a '
        'model, the "judge", says so (zsjax.tuning.dataset)', choices=("ranking", "answer", "contains", "judge"))
    hold_out: float = field(0.0, "share of the questions whose searches are not tuned on; on them the stage reports how "
                            "often useful and noisy replies hold a gold answer, before and after; 0: no report", "[0, 0.5]")
    judge: JudgeConfig = group(JudgeConfig)


@dataclasses.dataclass(frozen=True)
class GatesConfig:
    """What must hold before the next stage; a gate that fails stops the run. None: the gate is only printed."""

    reading: float | None = free(None, "exact answers with the right documents given, at least", SHARE)
    useful: float | None = free(None, "gold in useful documents for the right last query, at least", SHARE)
    noisy: float | None = free(None, "gold in noisy documents, at most", SHARE)
    leak: float | None = free(None, "gold in useful documents for off-path queries above the real engine's rate, at most",
                              SHARE)
    questions: int = free(120, "asked of the simulator's gate, of each number of hops", "[1, 1e6]", unit="questions")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Evaluation with `search.eval_engine` of the starting and the trained policy."""

    temperature: float = later(0.0, "0 is greedy", "[0, 10]")
    samples: int = later(1, "episodes of each question, each with its own seed; needs a temperature above 0", "[1, 1e6]",
                         unit="episodes")
    batch_rows: int = fast(64, "questions played at a time", "[1, 1e7]", unit="rows")
    drop_best: float = later(0.0, "> 0 adds an evaluation with a real engine that loses its best document with this "
                             "probability", SHARE)
    misinformation: float = later(0.0, "> 0 adds an evaluation, in the tiny world, with a real engine whose best document "
                                  "names a wrong object with this probability (zsjax.tiny_world.misinformation)", SHARE)
    baselines: tuple[str, ...] = later((), "played by the run's policy (the trained one, if any) on the same questions",
                                       choices=("zsjax.evaluation.baselines:METHODS",))
    baseline_model: str = later("policy", 'who plays the baselines: "policy", the run\'s (the trained one, if any), or '
                                '"base", what the run began with; methods that play the policy\'s own prompt then have '
                                'its warm start, where there was one', choices=("policy", "base"))
    baseline_turn_tokens: int = later(0, 'budget of one generation of "chain_of_thought" and "search_agent", whose thoughts '
                                      'need room; 0: rollout.max_turn_tokens', "[0, 1e7]", unit="tokens")
    baseline_samples: int = later(8, 'episodes a question of "best_of_n" and "tree_search", at rollout.temperature',
                                  "[2, 1e6]", unit="episodes")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 takes the rest."""

    data: int = fast(-1, "cuts rows", "[-1, 1e7]", unit="devices")
    fsdp: int = fast(1, "cuts rows, and weights and optimizer", "[-1, 1e7]", unit="devices")
    tensor: int = fast(1, "cuts heads", "[-1, 1e7]", unit="devices")
    simulator_devices: int = fast(
        0, "devices for the simulator alone, the last ones of each host: it writes there while the policy decodes on the "
        "others, which data, fsdp and tensor divide; 0: both share all devices", "[0, 1e7]", unit="devices")
    simulator_tensor: int = fast(1, "devices over which the heads of one copy of that simulator are cut", "[1, 1e7]",
                                 unit="devices")
    target: str = free("", "the machine that the settings are chosen for, such as a100-80gb:8; `plan` takes it where no "
                           "--target is given, and a run does not read it")


@dataclasses.dataclass(frozen=True)
class CostConfig:
    """Prices; the report states the run's cost in them."""

    search: float = later(586.70 / 64_000, "one search at a web search API; ZeroSearch's figure for SerpApi", "[0, 1e6]",
                          unit="dollars")
    accelerator_hour: float = later(
        70.80 / (4 * 12), "one device for an hour; an A100 at AWS, if ZeroSearch's 70.80 dollars for 4 of them were for 12 "
        "hours", "[0, 1e6]", unit="dollars")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    name: str = free("run", "the run's name in its report")
    trackers: tuple[str, ...] = free((), "where metrics go beside metrics.jsonl and TensorBoard; each needs its package",
                                     choices=("zsjax.monitor.trackers:TRACKERS",))
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
