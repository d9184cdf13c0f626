import json
import unicodedata

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.real_tokenizer import ASSETS, qwen2, qwen2_folder
from zsjax.data.assets import asset_path
from zsjax.data.tokenization import load_tokenizer


def joined(tokenizer, ids):
    return b"".join(tokenizer.token_bytes(id) for id in ids)


@pytest.fixture(scope="module")
def llama2_like(tmp_path_factory):
    """Pieces with "▁" for a blank and bytes for what the vocabulary lacks, as Llama 2's tokenizer.json has them."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2, **{f"<0x{byte:02X}>": 3 + byte for byte in range(256)}}
    for piece in ("▁", "a", "b", "▁a", "ab"):
        vocab[piece] = len(vocab)
    model = tokenizers.models.BPE(vocab, [("▁", "a"), ("a", "b")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    backend.decoder = tokenizers.decoders.Sequence([
        tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens(["<think>"])
    path = tmp_path_factory.mktemp("llama") / "tokenizer.json"
    backend.save(str(path))
    return load_tokenizer(path)


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    import sentencepiece

    path = tmp_path_factory.mktemp("sentencepiece") / "toy.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the spouse of Kora Velim is Dran Tosk"] * 5), model_writer=file, vocab_size=300,
            byte_fallback=True, character_coverage=1.0, hard_vocab_limit=False, user_defined_symbols=["<search>"],
            normalization_rule_name="identity", minloglevel=2, model_type="bpe")
    return path


def test_qwen2_golden_encodings():
    rows = [json.loads(line) for line in (ASSETS / "golden_encodings.jsonl").read_text().splitlines()]
    assert len(rows) == 50
    for row in rows:
        assert qwen2().encode(row["text"]) == row["ids"]
        assert qwen2().decode(row["ids"]) == unicodedata.normalize("NFC", row["text"])


def test_qwen2_facts():
    tokenizer = qwen2()
    assert tokenizer.vocab_size == 151646
    assert (tokenizer.eos_ids, tokenizer.pad_id) == ((151645,), 151643)
    assert [tokenizer.token_bytes(id) for id in (151643, 151644, 151645, 151646, -1)] == [None] * 5
    assert all(entry for entry in tokenizer.token_table[:151643])
    assert len({tokenizer, load_tokenizer(qwen2_folder())}) == 2


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=30))
def test_bytes_of_the_tokens_are_the_text(text):
    text = unicodedata.normalize("NFC", text)
    assert joined(qwen2(), qwen2().encode(text)) == text.encode()


def test_a_tokenizer_json_is_the_same_and_needs_no_transformers(tmp_path):
    tokenizer = qwen2()
    tokenizer._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [151645, 151643]}')
    other = load_tokenizer(tmp_path)
    assert other.token_table == tokenizer.token_table
    text = "<search> spouse of Kora?\n\n</search><|im_end|>"
    assert other.encode(text) == tokenizer.encode(text)
    assert other.eos_ids == (151645, 151643)
    with pytest.raises(ValueError, match="no chat template.*prompts.chat"):
        other.apply_chat_template([{"role": "user", "content": "hi"}])


def test_chat_template():
    ids = qwen2().apply_chat_template([{"role": "user", "content": "who?"}])
    assert qwen2().decode(ids) == ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
                                   "<|im_start|>user\nwho?<|im_end|>\n<|im_start|>assistant\n")
    assert ids[0] == 151644  # the marker is one special token, not text


def test_pieces_with_byte_fallback(llama2_like):
    tokenizer = llama2_like
    ids = tokenizer.encode("a ab\n漢<think></s>")
    assert joined(tokenizer, ids[:-1]) == "a ab\n漢<think>".encode()
    assert tokenizer.token_bytes(ids[-1]) is None and tokenizer.eos_ids == (ids[-1],)
    assert tokenizer.decode(ids[:-1]) == "a ab\n漢<think>"


def test_sentencepiece(sentencepiece_model, tmp_path):
    tokenizer = load_tokenizer(sentencepiece_model)
    text = "spouse of 漢 <search> Kora\nVelim"
    ids = tokenizer.encode(text)
    assert joined(tokenizer, ids) == b" " + text.encode()  # the model's own dummy prefix
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes(tokenizer.eos_ids[0]) is None and tokenizer.token_bytes(0) is None
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model.read_bytes())
    assert load_tokenizer(tmp_path).encode(text) == ids


def test_bad_paths_are_told_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no tokenizer at '.*nowhere'.*tokenizer.json"):
        load_tokenizer(tmp_path / "nowhere")
    (tmp_path / "model.safetensors").write_text("")
    with pytest.raises(FileNotFoundError, match="it holds model.safetensors; put tokenizer.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot read the tokenizer at") as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)
    (tmp_path / "toy.model").write_text("nothing")
    with pytest.raises(ValueError, match="cannot read the tokenizer at"):
        load_tokenizer(tmp_path / "toy.model")
    with pytest.raises(FileNotFoundError, match="asset:tiny_world/tokenizer"):
        load_tokenizer("asset:tiny_wurld")
    with pytest.raises(FileNotFoundError):
        asset_path("asset:../../config.py")


def test_the_carried_tokenizer_loads():
    tokenizer = load_tokenizer("asset:tiny_world/tokenizer")
    assert tokenizer.decode(tokenizer.encode("<search> spouse of X </search>\n")) == "<search> spouse of X </search>\n"


def test_what_begins_a_context_stands_before_a_prompt_once(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    backend = Tokenizer(models.WordLevel({"<bos>": 0, "a": 1, "b": 2, "[UNK]": 3}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<bos>"])
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 0)])
    from zsjax.data.tokenization import FastTokenizer

    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = FastTokenizer(backend, tmp_path)
    assert tokenizer.bos_ids == (0,) and tokenizer.encode("a b") == [1, 2]
    assert tokenizer.encode_prompt("a b") == tokenizer.encode_prompt("<bos> a b") == [0, 1, 2]
    assert load_tokenizer("asset:real/tokenizer").bos_ids == ()
