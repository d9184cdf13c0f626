"""Decoders as pure functions: shapes, parameters, forward passes, caches, checkpoints."""

from zsjax.models.cache import KVCache, init_cache
from zsjax.models.checkpoints.hf import load_hf, read_config, save_hf
from zsjax.models.decoder import extend, forward, init_params, num_params, param_specs
from zsjax.models.layers import DecoderConfig, RopeScaling

__all__ = ["DecoderConfig", "KVCache", "RopeScaling", "extend", "forward", "init_cache", "init_params", "load_hf",
           "num_params", "param_specs", "read_config", "save_hf"]
