"""Fields of models: where a decoder comes from, its dtypes, its adapters."""

import dataclasses

from zsjax.config.declare import DTYPES, fast, field, free, group


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Train low-rank adapters instead of the model (zsjax.models.lora); saved models have them merged."""

    rank: int = field(0, "0 trains the model itself", "[0, 65536]")
    alpha: float = field(16.0, "adapters are scaled by alpha / rank", "(0, 1e6]")
    targets: tuple[str, ...] = field(("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
                                     "projections that get an adapter", choices=("zsjax.models.lora:TARGETS",))


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder and where its weights come from."""

    init: str = field("random", '"asset:NAME" (carried with the package), a folder in Hugging Face\'s form, '
                      '"hf:OWNER/NAME" (the hub, where there is a network), or "random"', names="path")
    shape: dict = field({}, 'fields of DecoderConfig, for init="random"; a checkpoint has its own')
    positional_bias_init: bool = field(
        False, 'random layer-0 heads start as "attend n tokens back" (zsjax.tiny_world.positional)')
    dtype: str = field("float32", "dtype of the activations", choices=DTYPES)
    param_dtype: str = field("float32", "dtype in which parameters are kept", choices=DTYPES)
    attention: str = fast("auto", '"auto" takes the platform\'s kernel (zsjax.models.attention), "xla" none',
                          choices=("auto", "xla", "cudnn", "splash"))
    check_finite: bool = free(False, "refuse a checkpoint with NaN or infinite weights")
    quantize: str = field("none", '"int8" stores the frozen simulator\'s weights in half of bfloat16\'s bytes',
                          choices=("none", "int8"))
    cache_dtype: str = field("model", 'of the keys and values that a rollout keeps; "model" is that of the activations',
                             choices=("model", "int8"))
    lora: LoraConfig = group(LoraConfig)
