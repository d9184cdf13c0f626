"""Sampling from decoders: keyed draws, compiled decoding, tags seen in tokens, ragged splicing."""

import importlib

_HOME = {"generate": "decode", "GenerateOutput": "decode", "row_keys": "logits", "sample": "logits",
         "TagAutomaton": "tags"}
__all__ = list(_HOME)


def __getattr__(name):
    # Lazy: a custom loss or a text tool that needs one name does not import the other modules.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
