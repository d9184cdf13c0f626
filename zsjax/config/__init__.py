"""The config of a run: its fields, how it is read and compared, and what is checked before a run."""

from zsjax.config.fields import (
    MAY_CHANGE,
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
from zsjax.config.read import check_resume, diff, from_json, parse_arg, resolve, to_json, write_config
from zsjax.errors import ConfigError, Problem, UserError

__all__ = [
    "AlgorithmConfig", "CollectConfig", "Config", "ConfigError", "CostConfig", "CurriculumConfig", "DataConfig",
    "EvaluateConfig", "GatesConfig", "HealthConfig", "JudgeConfig", "LoraConfig", "MAY_CHANGE", "MeshConfig",
    "MixConfig", "ModelConfig", "OptimizerConfig", "Problem", "PromptsConfig", "RemoteConfig", "RerankConfig",
    "RewardConfig", "RolloutConfig", "STAGES", "SearchConfig", "SupervisedConfig", "TrainConfig", "UserError",
    "ValueConfig", "check_resume", "diff", "from_json", "parse_arg", "resolve", "to_json", "write_config",
]
