"""Small GGUF files as llama.cpp's converter writes them (convert_hf_to_gguf.py), with the gguf package's own writer."""

import gguf
import numpy as np

ARCHITECTURES = {"qwen2": "qwen2", "qwen3": "qwen3", "llama": "llama", "gemma3_text": "gemma3"}


def write_gguf(path, model, tokens: dict, *, quantized="Q8_0", extra=None, skip=()):
    """Writes a transformers model. `tokens`: field of tokenizer.ggml -> value; `extra`: metadata -> value."""
    config = model.config
    arch = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, arch)
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    for name, value in {
            "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
            "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
            "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
            "attention.key_length": model.model.layers[0].self_attn.head_dim}.items():
        writer.add_uint32(f"{arch}.{name}", value)
    writer.add_float32(f"{arch}.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32(f"{arch}.rope.freq_base", rope["rope_theta"])
    if arch == "gemma3":
        writer.add_uint32("gemma3.attention.sliding_window", config.sliding_window)
    if rope["rope_type"] == "linear":
        writer.add_string(f"{arch}.rope.scaling.type", "linear")
        writer.add_float32(f"{arch}.rope.scaling.factor", rope["factor"])
    if rope["rope_type"] == "llama3":
        stretched = model.model.rotary_emb.inv_freq.numpy()
        plain = rope["rope_theta"] ** (-np.arange(0, len(stretched)) / len(stretched))
        writer.add_tensor("rope_freqs.weight", (plain / stretched).astype(np.float32))
    for name, value in (extra or {}).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name, value)
    for name, value in tokens.items():
        add = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, list: writer.add_array}[type(value)]
        add(name if "." in name else f"tokenizer.ggml.{name}", value)
    names = gguf.get_tensor_name_map(next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == arch),
                                     config.num_hidden_layers)
    kind = gguf.GGMLQuantizationType[quantized]
    for name, x in model.state_dict().items():
        if name in skip or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        x, (base, _, end) = x.float().numpy(), name.rpartition(".")
        if arch == "llama" and ("q_proj" in name or "k_proj" in name):  # LlamaModel.permute
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            x = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        if arch == "gemma3" and "norm" in name:
            x = x + 1
        stored = f"{names.get_name(base)}.{end}"
        if x.ndim == 2 and kind is not gguf.GGMLQuantizationType.F32:
            writer.add_tensor(stored, gguf.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(stored, np.ascontiguousarray(x))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
