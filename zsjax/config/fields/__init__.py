"""The config's fields. Default, range, unit, choices and help stand in one place; see `zsjax.config.declare`."""

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
from zsjax.config.fields.model import LoraConfig, ModelConfig
from zsjax.config.fields.search_and_rollout import (
    CurriculumConfig,
    DataConfig,
    MixConfig,
    PromptsConfig,
    RemoteConfig,
    RerankConfig,
    RolloutConfig,
    SearchConfig,
)
from zsjax.config.fields.whole_run import (
    STAGES,
    CollectConfig,
    Config,
    CostConfig,
    EvaluateConfig,
    GatesConfig,
    JudgeConfig,
    MeshConfig,
)

__all__ = [
    "AlgorithmConfig", "CollectConfig", "Config", "CostConfig", "CurriculumConfig", "DataConfig", "EvaluateConfig",
    "GatesConfig", "HealthConfig", "JudgeConfig", "LoraConfig", "MeshConfig", "MixConfig", "ModelConfig", "OptimizerConfig",
    "PromptsConfig", "RemoteConfig", "RerankConfig", "RewardConfig", "RolloutConfig", "STAGES", "SearchConfig",
    "SupervisedConfig", "TrainConfig", "ValueConfig", "WarmStartConfig",
]
