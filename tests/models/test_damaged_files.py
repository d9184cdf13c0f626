"""Damaged tokenizers and checkpoints, drawn at random: each is read, or refused in one line that names the file."""

import json
import random
import shutil

import numpy as np

from zsjax.data.assets import asset_path
from zsjax.data.tokenization import load_tokenizer
from zsjax.models.checkpoints.hf import load_hf

ODD = [None, True, -1, 0, 10**30, float("nan"), 1.5, "", "x", "\ud83d", [], {}, [None], {"a": 1}]


def mutated(value, draw):
    """The JSON value with one or two places of it changed, removed, or moved one level up."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(1, 2)):
        at = value
        while isinstance(at, dict | list) and at:
            key = draw.choice(list(at)[:40]) if isinstance(at, dict) else draw.randrange(len(at))
            if draw.random() < 0.4 or not (isinstance(at[key], dict | list) and at[key]):
                if draw.random() < 0.3:
                    del at[key]
                else:
                    at[key] = draw.choice(ODD)
                break
            at = at[key]
    return value


def damaged_bytes(data: bytes, draw) -> bytes:
    at = draw.randrange(len(data))
    return draw.choice([data[:at], data[:at] + bytes([draw.randrange(256)]) + data[at + 1:], data + b"\x00" * 5, b""])


def one_line(error, folder):
    text = str(error)
    assert isinstance(error, ValueError | FileNotFoundError), repr(error)
    assert str(folder) in text and "\n" not in text.strip() and len(text) < 1200, text


def test_a_damaged_tokenizer(tmp_path, generated_seed):
    draw = random.Random(generated_seed)
    shutil.copytree(asset_path("asset:real/tokenizer"), tmp_path, dirs_exist_ok=True)
    file = tmp_path / draw.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
    if draw.random() < 0.7:
        spec = json.loads(file.read_text())
        if "model" in spec:  # otherwise few of its tokens would be drawn
            spec["model"]["vocab"] = dict(list(spec["model"]["vocab"].items())[:256])
            spec["model"]["merges"] = []
        file.write_text(json.dumps(mutated(spec, draw)), errors="surrogatepass")
    else:
        file.write_bytes(damaged_bytes(file.read_bytes(), draw))
    try:
        tokenizer = load_tokenizer(tmp_path)
        tokenizer.encode_text("Who wrote <|im_end|> it? \ud83d")
        tokenizer.encode_prompt("k")
        len(tokenizer.token_table)
    except (ValueError, FileNotFoundError) as error:
        one_line(error, tmp_path)


def test_a_damaged_checkpoint(tmp_path, generated_seed):
    draw = random.Random(generated_seed)
    shutil.copytree(asset_path("asset:real/policy"), tmp_path, dirs_exist_ok=True)
    config, weights = tmp_path / "config.json", tmp_path / "model.safetensors"
    kind = draw.choice(["config", "config bytes", "header", "weights bytes", "index"])
    if kind == "config":
        config.write_text(json.dumps(mutated(json.loads(config.read_text()), draw)))
    elif kind == "config bytes":
        config.write_bytes(damaged_bytes(config.read_bytes(), draw))
    elif kind == "header":
        data = weights.read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(mutated(json.loads(data[8:8 + size]), draw)).encode()
        weights.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size:])
    elif kind == "weights bytes":
        data = weights.read_bytes()
        weights.write_bytes(damaged_bytes(data[:2000], draw) + (data[2000:] if draw.random() < 0.5 else b""))
    else:
        names = ["model.embed_tokens.weight", "model.norm.weight"]
        weights.rename(tmp_path / "model-00001-of-00001.safetensors")
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(mutated(index, draw)))
    try:
        _, params = load_hf(tmp_path)
        assert np.asarray(params["norm"]).size
    except (ValueError, FileNotFoundError) as error:
        one_line(error, tmp_path)
