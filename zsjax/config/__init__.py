"""The config of a run: its fields (`fields`), how it is read (`experiments`, `resolve`), what is checked before a run
(`checks`), and which changes a run that has begun allows (`folder`)."""

from zsjax.config.checked import resolve
from zsjax.config.experiments import load_experiment, parse_arg
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
from zsjax.config.read import to_json
from zsjax.errors import ConfigError, Problem, UserError

__all__ = [
    "AlgorithmConfig", "CollectConfig", "Config", "ConfigError", "CostConfig", "CurriculumConfig", "DataConfig",
    "EvaluateConfig", "GatesConfig", "HealthConfig", "JudgeConfig", "LoraConfig", "MeshConfig",
    "MixConfig", "ModelConfig", "OptimizerConfig", "Problem", "PromptsConfig", "RemoteConfig", "RerankConfig",
    "RewardConfig", "RolloutConfig", "STAGES", "SearchConfig", "SupervisedConfig", "TrainConfig", "UserError",
    "ValueConfig", "check_resume", "diff", "from_json", "load_experiment", "parse_arg", "resolve",
    "to_json", "withdraw_config", "write_config",
]
