"""The config of a run: its fields (`fields`), how it is read (`experiments`, `read`), what is checked before a run
(`checks`), and what may change in a folder that holds one (`folder`)."""

from zsjax.config.experiments import load_experiment
from zsjax.config.fields import (
    STAGES,
    AlgorithmConfig,
    CollectConfig,
    Config,
    CostConfig,
    CurriculumConfig,
    DataConfig,
    EvaluateConfig,
    GatesConfig,
    HealthConfig,
    JudgeConfig,
    LoraConfig,
    MeshConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    PromptsConfig,
    RemoteConfig,
    RerankConfig,
    RewardConfig,
    RolloutConfig,
    SearchConfig,
    SupervisedConfig,
    TrainConfig,
    ValueConfig,
)
from zsjax.config.folder import check_resume, diff, from_json, withdraw_config, write_config
from zsjax.config.read import parse_arg, resolve, to_json
from zsjax.errors import ConfigError, Problem, UserError

__all__ = [
    "AlgorithmConfig", "CollectConfig", "Config", "ConfigError", "CostConfig", "CurriculumConfig", "DataConfig",
    "EvaluateConfig", "GatesConfig", "HealthConfig", "JudgeConfig", "LoraConfig", "MeshConfig",
    "MixConfig", "ModelConfig", "OptimizerConfig", "Problem", "PromptsConfig", "RemoteConfig", "RerankConfig",
    "RewardConfig", "RolloutConfig", "STAGES", "SearchConfig", "SupervisedConfig", "TrainConfig", "UserError",
    "ValueConfig", "check_resume", "diff", "from_json", "load_experiment", "parse_arg", "resolve", "to_json",
    "withdraw_config", "write_config",
]
