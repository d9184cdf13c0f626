"""Names on the Hugging Face hub: asked for only where no folder has the name; refused in one line."""

import shutil

import jax
import numpy as np
import pytest

from zsjax.models import DecoderConfig, init_params, load_hf, save_hf

CONFIG = DecoderConfig(vocab_size=40, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)


def test_names_of_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    params, asked = init_params(CONFIG, jax.random.key(0)), []
    folder = save_hf(tmp_path / "model", CONFIG, params)

    def download(name, revision, allow_patterns):
        asked.append((name, allow_patterns, revision))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for name in ("someone/a-model_1.5B", "hf:someone/a-model_1.5B"):
        jax.tree.map(np.testing.assert_array_equal, load_hf(name)[1], params)
        assert asked[-1][0] == "someone/a-model_1.5B" and not any("bin" in pattern for pattern in asked[-1][1])
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "someone" / "a-model_1.5B")  # a folder of that name comes first
    load_hf("someone/a-model_1.5B")
    assert len(asked) == 2

    load_hf("hf:someone/a-model_1.5B@refs/pr/3")
    assert asked[-1][0] == "someone/a-model_1.5B" and asked[-1][2] == "refs/pr/3" and asked[0][2] is None

    def offline(name, revision, allow_patterns):
        raise OSError("no network\nand more lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(FileNotFoundError, match=r"'other/model'.*\(no network\).*give the folder's path"):
        load_hf("other/model")
    with pytest.raises(FileNotFoundError, match="hf:owner/name"):
        load_hf("hf:nothing")


def test_names_of_the_hub_in_a_config():
    from zsjax import config as configuration

    def resolve(name):
        return configuration.resolve({"policy": {"init": name}, "search": {"engine": "empty"}})

    for name in ("hf:Qwen/Qwen2.5-0.5B", "hf:Qwen/Qwen2.5-0.5B@060db64"):
        assert resolve(name).policy.init == name
    with pytest.raises(configuration.ConfigError, match="policy.init = 'hf:Qwen'.*hf:OWNER/NAME"):
        resolve("hf:Qwen")
