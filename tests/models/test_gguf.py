"""GGUF files become folders with the tensors and tokens that transformers reads from the same files."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
from hf_reference import GEMMA, KINDS, make_reference, padded_batch, reference_logits

from zsjax import launch
from zsjax.data import load_tokenizer
from zsjax.models import forward, load_hf
from zsjax.models.checkpoints.gguf import import_gguf

transformers = pytest.importorskip("transformers")
pytest.importorskip("gguf")
from gguf_files import write_gguf  # noqa: E402

# ggml's blocks hold 32 numbers, so sizes are multiples of it; Llama 3's stretch is of 8192 tokens.
LLAMA = dict(rope_parameters=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                  original_max_position_embeddings=8192, rope_theta=5e5))
CASES = {"qwen2_untied": "F16", "qwen2_linear": "Q8_0", "qwen3": "Q5_0", "llama": "Q8_0", "gemma3": "Q8_0",
         "gemma3_linear": "F32"}
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TEXTS = ["the spouse of Kora", "  two blanks\n\nand  lines\t", "<search> the answer </search>", "Émile 日本 🤖", "a" * 20,
         ""]


@pytest.fixture(autouse=True)
def kinds(monkeypatch):
    monkeypatch.setitem(KINDS, "llama", ("LlamaConfig", LLAMA))
    monkeypatch.setitem(KINDS, "gemma3_linear", ("Gemma3TextConfig", dict(GEMMA, num_hidden_layers=6, rope_parameters=dict(
        full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
        sliding_attention=dict(rope_type="default", rope_theta=1e4)))))


def sentencepiece_tokens(tmp_path, *, gemma=False):
    """(SentencePieceProcessor, metadata) of a small BPE model, as llama.cpp writes it."""
    import sentencepiece

    path = tmp_path / "toy.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the spouse of Kora Velim is  Dran Tosk", "the answer to the  search is a name"] * 5),
            model_writer=file, vocab_size=330, byte_fallback=True, character_coverage=1.0, hard_vocab_limit=False,
            normalization_rule_name="identity", minloglevel=2, model_type="bpe", remove_extra_whitespaces=False,
            add_dummy_prefix=not gemma, control_symbols=["<end_of_turn>"])
    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = range(model.vocab_size())
    types = [2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in ids]
    return model, dict(model="llama", tokens=[model.id_to_piece(i) for i in ids], token_type=types,
                       scores=[float(model.get_score(i)) for i in ids], bos_token_id=model.bos_id(),
                       eos_token_id=model.eos_id(), unknown_token_id=model.unk_id(), add_space_prefix=not gemma,
                       **{"tokenizer.chat_template": "{{ bos_token }}{{ messages[0]['content'] }}<end_of_turn>"})


def reference(kind, vocab_size, monkeypatch):
    name, fields = KINDS[kind]
    monkeypatch.setitem(KINDS, kind, (name, fields | {"vocab_size": vocab_size}))
    return make_reference(kind)


def tensors_of_transformers(path, model):
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    loaded = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)["tensors"]
    return {name: x.float().numpy() for name, x in loaded.items()}


@pytest.mark.parametrize("kind", CASES)
def test_tensors_equal_those_of_transformers(kind, tmp_path, monkeypatch):
    tokens = sentencepiece_tokens(tmp_path, gemma="gemma" in kind)[1]
    model = reference(kind, len(tokens["tokens"]), monkeypatch)
    path = write_gguf(tmp_path / "m.gguf", model, tokens, quantized=CASES[kind])
    config = import_gguf(path, tmp_path / "out")
    theirs = tensors_of_transformers(path, model)
    from safetensors.numpy import load_file

    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert set(ours) == set(theirs) - ({"lm_head.weight"} if config.tie_embeddings else set())
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)
    # The folder is the model that was written: llama.cpp's changes are undone, scaling and windows are there.
    batch, lengths = padded_batch(2, 64, config.vocab_size)
    valid = np.arange(64) < lengths[:, None]
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    for name, x in model.state_dict().items():
        near = dict(rtol=1e-6, atol=1e-6) if CASES[kind] == "F32" else dict(rtol=0.05, atol=0.3)
        np.testing.assert_allclose(whole.state_dict()[name].numpy(), x.numpy(), **near)
    params = load_hf(tmp_path / "out")
    logits = np.asarray(jax.jit(forward, static_argnums=1)(params[1], params[0], batch, valid=valid))
    model.load_state_dict(whole.state_dict())  # the written model's config with the folder's weights
    assert np.abs(logits - reference_logits(model, batch, lengths))[valid].max() <= 1e-4


@pytest.mark.parametrize("kind", ["llama", "gemma3"])
def test_pieces_are_those_of_sentencepiece(kind, tmp_path, monkeypatch):
    gemma = kind == "gemma3"
    model, tokens = sentencepiece_tokens(tmp_path, gemma=gemma)
    path = write_gguf(tmp_path / "m.gguf", reference(kind, len(tokens["tokens"]), monkeypatch), tokens)
    import_gguf(path, tmp_path / "out")
    ours, theirs = load_tokenizer(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS:
        assert ours.encode(text) == model.encode(text), text
        assert theirs(text).input_ids == [model.bos_id(), *ours.encode(text)]
        assert ours.decode(ours.encode(text)) == text
    table = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    texts = [text for text in TEXTS if gemma or text[:1] != " "]  # theirs puts no blank before one, SentencePiece does
    assert [table(text).input_ids for text in texts] == [theirs(text).input_ids for text in texts]
    assert ours.eos_ids == (model.eos_id(), model.piece_to_id("<end_of_turn>"))
    assert "<end_of_turn>" in ours.decode(ours.apply_chat_template([{"role": "user", "content": "x"}]))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["bos_token_id"] == model.bos_id()


def test_byte_level_bpe(tmp_path, monkeypatch):
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    from zsjax.models.checkpoints.gguf_tokenizer import _SPLITS

    backend = Tokenizer(models.BPE())
    cut = pre_tokenizers.Split(Regex(_SPLITS["qwen2"]), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(False, use_regex=False)])
    backend.train_from_iterator(["the spouse of Kora Velim is Dran Tosk", "<search> the answer </search>\n"] * 9,
                                trainers.BpeTrainer(vocab_size=330, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                                    special_tokens=["<|endoftext|>", "<|im_end|>"]))
    spec = json.loads(backend.to_str())["model"]
    words = sorted(spec["vocab"], key=spec["vocab"].get)
    tokens = dict(model="gpt2", pre="qwen2", tokens=words, token_type=[3, 3] + [1] * (len(words) - 2),
                  merges=[" ".join(merge) for merge in spec["merges"]], eos_token_id=0, padding_token_id=0)
    path = write_gguf(tmp_path / "m.gguf", reference("qwen3", len(words), monkeypatch), tokens)
    import_gguf(path, tmp_path / "out")
    ours = load_tokenizer(tmp_path / "out")
    for text in [*TEXTS, "a<|im_end|>b 1234"]:
        assert ours.encode(text) == backend.encode(text).ids
        assert ours.decode(ours.encode(text)) == text
    assert (ours.eos_ids, ours.pad_id, ours.token_bytes(1)) == ((0, 1), 0, None)


def damaged(what, path, write):
    """(path of a damaged file, words of its error)."""
    if what == "cut":
        path.write_bytes(write().read_bytes()[:-2000])
        return "cut short"
    if what == "cut_header":
        path.write_bytes(write().read_bytes()[:3000])
        return "cut short or damaged"
    if what == "foreign":
        path.write_bytes(b"PK\x03\x04" + bytes(100))
        return "not a GGUF file"
    if what == "absent":
        return "no such file"
    if what == "tensor":
        write(skip=("model.layers.1.mlp.up_proj.weight",))
        return "tensor 'blk.1.ffn_up.weight' (model.layers.1.mlp.up_proj.weight) is missing"
    if what == "experts":
        write(extra={"qwen3.expert_count": 8})
        return "num_experts=8 is not supported"
    if what == "scaling":
        write(extra={"qwen3.rope.scaling.type": "longrope"})
        return "rope_scaling.rope_type='longrope' is not supported"
    if what == "tokenizer":
        write(tokens=dict(model="bert", tokens=["a"] * 9))
        return "tokenizer.ggml.model='bert'"
    data = write().read_bytes()
    path.write_bytes(data.replace(b"\x05\0\0\0\0\0\0\0qwen3", b"\x05\0\0\0\0\0\0\0phi99"))
    return "general.architecture='phi99' is not supported; supported are qwen2, qwen3, llama, gemma3"


@pytest.mark.parametrize("what", ["cut", "cut_header", "foreign", "absent", "tensor", "experts", "scaling", "tokenizer",
                                  "architecture"])
def test_what_cannot_be_imported_is_one_line(what, tmp_path, capsys, monkeypatch):
    path = tmp_path / "m.gguf"
    ordinary = dict(model="gpt2", pre="qwen2", tokens=["a", "b"], merges=[], token_type=[1, 1], eos_token_id=0)

    def write(tokens=ordinary, **options):
        return write_gguf(path, make_reference("qwen3"), tokens, **options)

    words = damaged(what, path, write)
    assert launch.main(["import", str(path), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert words in error and str(path) in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments, words", [
    (["import"], "import FILE OUT"), (["import", "x.gguf"], "import FILE OUT"),
    (["export", "x", "y", "--workdir", "w"], "export takes one argument, but was given y as well")])
def test_import_takes_a_file_and_a_folder(arguments, words, capsys):
    with pytest.raises(SystemExit):
        launch.main(arguments)
    assert words in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- Gemma 3 270M itself

WEIGHTS = pathlib.Path(os.environ.get("ZSJAX_GEMMA_GGUF", "weights/gemma3-270m.gguf"))
FOLDER = WEIGHTS.with_suffix("")  # of an earlier import
PROMPTS = [f"{start} is" for start in (
    "The capital of France", "The author of Hamlet", "The largest planet", "The chemical symbol of gold",
    "The tallest mountain", "The first president of the United States", "The speed of light", "The currency of Japan",
    "The longest river in Africa", "The inventor of the telephone", "The official language of Brazil",
    "The smallest prime number", "The painter of the Mona Lisa", "The largest ocean", "The founder of Microsoft",
    "The boiling point of water", "The national animal of Australia", "The hardest natural material",
    "The city of the Eiffel Tower", "The director of Jaws")]


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file(), reason=f"{WEIGHTS} is absent: run python launch/gemma_weights.py, or set "
                    "ZSJAX_GEMMA_GGUF")
def test_gemma3_270m_is_transformers(tmp_path):
    import torch

    from zsjax.sampling import generate

    folder = FOLDER if (FOLDER / "config.json").is_file() else tmp_path / "out"
    if folder != FOLDER:
        import_gguf(WEIGHTS, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    for name, x in tensors_of_transformers(WEIGHTS, model).items():
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), x, err_msg=name)
    config, params = load_hf(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer(prompt).input_ids for prompt in PROMPTS]
    assert all(row[0] == tokenizer.bos_token_id for row in rows)
    tokens, lengths = np.zeros((20, max(map(len, rows))), np.int32), np.array([*map(len, rows)], np.int32)
    for row, ids in enumerate(rows):
        tokens[row, :len(ids)] = ids
    out = generate(params, config, tokens, lengths, key=jax.random.key(0), max_new_tokens=16, temperature=0.0)
    for row, ids in enumerate(rows):
        with torch.no_grad():
            theirs = model.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False, eos_token_id=None)[0]
        assert np.asarray(out.tokens[row]).tolist() == theirs[len(ids):].tolist(), PROMPTS[row]
    long = tokenizer(" ".join(PROMPTS * 6)).input_ids[:600]  # beyond the window of 512
    assert len(long) == 600
    ours = np.asarray(jax.jit(forward, static_argnums=1)(params, config, np.array([long], np.int32)))
    assert np.abs(ours - reference_logits(model, np.array([long]), [600])).max() <= 5e-4
