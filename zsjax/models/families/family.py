"""A model family, and the shared reading and writing of config.json.

The fields follow transformers 5.23 (models/*/configuration_*.py, modeling_rope_utils.py). A config that needs
what the decoder does not have is an error that names the field: a checkpoint never runs with other mathematics.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping

from zsjax.errors import InputError
from zsjax.models.layers import DecoderConfig, RopeScaling

DTYPES = ("float32", "bfloat16", "float16")
# field -> the only implemented value (None: absent or null)
ONLY = {"mlp_bias": False, "partial_rotary_factor": 1.0, "quantization_config": None, "num_experts": None,
        "num_local_experts": None, "text_config": None, "vision_config": None, "dual_chunk_attention_config": None}
# The decoder's switches -> their value in a family that does not set them.
SWITCHES = {"qkv_bias": False, "qk_norm": False, "norm_offset": 0.0, "post_norms": False, "activation": "silu",
            "embed_scale": 1.0, "query_scale": None, "sliding_rope_theta": None, "sliding_rope_scaling": None}


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of published models, for `zsjax.models.families.register`.

    Attributes:
      model_type: of config.json, and `DecoderConfig.model_type`.
      architecture: transformers' class, for config.json.
      read: config.json as a dict -> DecoderConfig; raises ValueError that names the field.
      write: DecoderConfig -> the fields of config.json beyond `common_fields`; raises ValueError where transformers'
        class computes something else than the decoder.
      presets: name -> DecoderConfig of published models.
      eos_names: tokens that end a generation, the end of a turn first.
      also_reads: other model_types whose config.json `read` understands.
      tensor_name: name of a stored tensor -> the text model's name of it, or None for a tensor of another part.
      gguf_architecture: llama.cpp's name of the family, "" where GGUF files of it are not read.
      gguf_interleaved: whether llama.cpp stores the rotary pairs of q and k as neighbours.
      gguf_fields: (lookup of the file's metadata below the architecture's name, the config.json so far) -> fields of
        config.json that only this family's files need.
    """

    model_type: str
    architecture: str
    read: Callable[[dict], DecoderConfig]
    write: Callable[[DecoderConfig], dict]
    presets: Mapping[str, DecoderConfig] = dataclasses.field(default_factory=dict)
    eos_names: tuple[str, ...] = ()
    also_reads: tuple[str, ...] = ()
    tensor_name: Callable[[str], str | None] = lambda name: name
    gguf_architecture: str = ""
    gguf_interleaved: bool = False
    gguf_fields: Callable[[Callable, dict], dict] = lambda lookup, raw: {}


class Fields:
    """The fields of a config.json, with what transformers' class assumes for absent ones.

    Args:
      raw: the file as a dict.
      defaults: field -> value of an absent or null field.
      only: field -> the only supported value, beside `ONLY`.

    Raises:
      ValueError: a field has a value that is not implemented.
    """

    def __init__(self, raw: dict, defaults: dict, only: dict):
        self.raw, self.defaults = raw, defaults
        for field, value in (ONLY | only).items():
            if raw.get(field) is not None and raw[field] != value:
                raise InputError(f"{field}={raw[field]!r} is not supported" + (f"; only {value!r} is" if value else
                                 "; give a checkpoint without it" + ", not quantized" * (field == "quantization_config")))

    def get(self, field: str, default=None):
        """The field, its default, or ValueError."""
        value = self.raw.get(field)
        value = self.defaults.get(field, default) if value is None else value
        if value is None:
            raise InputError(f"{field} is missing")
        return value

    def shape(self) -> dict:
        """The fields of DecoderConfig that every family reads alike."""
        embed_dim, num_heads = self.get("hidden_size"), self.get("num_attention_heads")
        if self.raw.get("head_dim", self.defaults.get("head_dim")) is None and embed_dim % num_heads:
            raise InputError(f"hidden_size={embed_dim} is not a multiple of num_attention_heads={num_heads}; give "
                             "head_dim")
        dtype = self.raw.get("dtype") or self.raw.get("torch_dtype") or "float32"
        if dtype not in DTYPES:
            raise InputError(f"dtype={dtype!r} is not supported; supported are {', '.join(DTYPES)}")
        return dict(
            vocab_size=self.get("vocab_size"), embed_dim=embed_dim, num_layers=self.get("num_hidden_layers"),
            num_heads=num_heads, num_kv_heads=self.get("num_key_value_heads", num_heads),
            head_dim=self.get("head_dim", embed_dim // num_heads), mlp_dim=self.get("intermediate_size"),
            rms_eps=self.get("rms_norm_eps", 1e-6), max_position=self.get("max_position_embeddings"),
            tie_embeddings=bool(self.get("tie_word_embeddings", False)), dtype=dtype)

    def layer_types(self) -> list[str] | None:
        """`layer_types`, checked, or None where the file has none."""
        types, num_layers = self.raw.get("layer_types"), self.get("num_hidden_layers")
        if types is not None:
            unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
            if unknown or len(types) != num_layers:
                raise InputError(
                    f"layer_types has {len(types)} entries and kinds {sorted(set(types))!s:.200}; supported are "
                    f"full_attention and sliding_attention, one for each of num_hidden_layers={num_layers}")
        return types

    def window(self) -> dict:
        """`sliding_window` and `sliding_layers` of Qwen's files, as transformers decides."""
        types, num_layers = self.layer_types(), self.get("num_hidden_layers")
        window = self.raw.get("sliding_window", 4096) if self.raw.get("use_sliding_window") else None
        if types is None:
            first = self.get("max_window_layers", 28)
            layers = tuple(range(first, num_layers)) if window is not None else ()
        else:
            layers = sliding_of(types)
        if layers and window is None:
            raise InputError("layer_types asks for sliding_attention, but use_sliding_window and sliding_window give no "
                             f"window for model_type={self.raw.get('model_type')!r}")
        return dict(sliding_window=window if layers else None, sliding_layers=layers)

    def rope(self) -> dict:
        """`rope_theta` and `rope_scaling` from rope_parameters, or from rope_theta and rope_scaling."""
        name = "rope_scaling" if self.raw.get("rope_scaling") else "rope_parameters"
        rope = self.raw.get(name) or {}
        nested = [key for key, value in rope.items() if isinstance(value, dict)]
        if nested:
            raise InputError(f"{name} with one entry a layer type ({', '.join(nested)}) is not supported for "
                             f"model_type={self.raw.get('model_type')!r}")
        # rope_scaling may be added by hand to a file of transformers 5, which has theta in rope_parameters.
        other = (self.raw.get("rope_parameters") or {}).get("rope_theta")
        theta = float(rope.get("rope_theta") or self.raw.get("rope_theta") or other or 10000.0)
        return dict(rope_theta=theta, rope_scaling=self.scaling(rope, name))

    def scaling(self, rope: dict, name: str) -> RopeScaling | None:
        """One entry of rope parameters, whose field of config.json is `name`."""
        max_position = self.get("max_position_embeddings")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise InputError(f"{name}.partial_rotary_factor={rope['partial_rotary_factor']} is not supported")
        if kind == "default":
            return None
        if kind not in ("linear", "llama3", "yarn"):
            raise InputError(f"{name}.rope_type={kind!r} is not supported; supported are default, linear, llama3, yarn")

        def need(field):
            if rope.get(field) is None:
                raise InputError(f"{name}.{field} is missing for rope_type={kind!r}")
            return float(rope[field])

        if kind == "linear":
            return RopeScaling("linear", need("factor"))
        original = (self.raw.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
                    or max_position)
        if kind == "llama3":
            return RopeScaling("llama3", need("factor"), original, low_freq_factor=need("low_freq_factor"),
                               high_freq_factor=need("high_freq_factor"))
        factor = max_position / original if "factor" in rope and rope["factor"] is None else need("factor")
        return RopeScaling("yarn", factor, original, beta_fast=float(rope.get("beta_fast") or 32),
                           beta_slow=float(rope.get("beta_slow") or 1),
                           attention_factor=_yarn_attention_factor(rope, factor), truncate=rope.get("truncate", True))


def _yarn_attention_factor(rope, factor):
    """The factor on cos and sin: given, or from mscale (DeepSeek), or None for yarn's own."""
    if rope.get("attention_factor") is not None:
        return float(rope["attention_factor"])
    mscale, all_dim = rope.get("mscale"), rope.get("mscale_all_dim")
    if not (mscale and all_dim):
        return None
    log = math.log(factor) if factor > 1 else 0.0
    return (0.1 * mscale * log + 1.0) / (0.1 * all_dim * log + 1.0)


def sliding_of(layer_types) -> tuple[int, ...]:
    """The layers that have a window."""
    return tuple(i for i, kind in enumerate(layer_types) if kind == "sliding_attention")


# ---------------------------------------------------------------------------------------------------------- writing

def require(config: DecoderConfig, **switches):
    """Raises ValueError unless the decoder's `SWITCHES` are these (... allows any value), and the others are off."""
    for field, wanted in (SWITCHES | switches).items():
        value = getattr(config, field)
        if wanted is not ... and value != wanted:
            raise InputError(f"transformers has no model of model_type={config.model_type!r} with {field}={value!r}; "
                             f"it has {wanted!r}: choose another model_type or {field}={wanted!r}")


def require_whole_heads(config: DecoderConfig):
    """Raises ValueError where transformers' config class refuses the number of heads."""
    if config.embed_dim % config.num_heads:
        raise InputError(f"embed_dim={config.embed_dim} must be a multiple of num_heads={config.num_heads} to be "
                         f"saved for model_type={config.model_type!r}: transformers refuses it")


def common_fields(config: DecoderConfig) -> dict:
    """The fields that every family writes, in the form of transformers 4, which 5 reads too."""
    return {
        "vocab_size": config.vocab_size, "hidden_size": config.embed_dim, "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim, "intermediate_size": config.mlp_dim, "hidden_act": "silu",
        "max_position_embeddings": config.max_position, "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta, "rope_scaling": scaling_dict(config.rope_scaling),
        "tie_word_embeddings": config.tie_embeddings, "attention_dropout": 0.0, "initializer_range": 0.02,
        "use_cache": True,
    }


def layer_types(config: DecoderConfig) -> list[str]:
    """config.json's `layer_types`."""
    sliding = set(config.sliding_layers)
    return ["sliding_attention" if i in sliding else "full_attention" for i in range(config.num_layers)]


def window_fields(config: DecoderConfig) -> dict:
    """Qwen's fields of windows."""
    return {"use_sliding_window": bool(config.sliding_layers), "sliding_window": config.sliding_window,
            "max_window_layers": min(config.sliding_layers, default=config.num_layers),
            "layer_types": layer_types(config)}


def scaling_dict(s: RopeScaling | None) -> dict | None:
    """config.json's `rope_scaling`."""
    if s is None:
        return None
    rope = {"rope_type": s.kind, "factor": s.factor}
    if s.kind in ("llama3", "yarn"):
        rope["original_max_position_embeddings"] = s.original_max_position
    if s.kind == "llama3":
        rope |= {"low_freq_factor": s.low_freq_factor, "high_freq_factor": s.high_freq_factor}
    if s.kind == "yarn":
        rope |= {"beta_fast": s.beta_fast, "beta_slow": s.beta_slow, "truncate": s.truncate}
        if s.attention_factor is not None:
            rope["attention_factor"] = s.attention_factor
    return rope
