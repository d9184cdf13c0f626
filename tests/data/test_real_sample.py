"""The carried real questions, paragraphs, tokenizer and checkpoints; Qwen2 checkpoints written by transformers."""

import unicodedata

import numpy as np
import pytest

from zsjax.data import load_corpus, load_questions, load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.models import forward, load_hf
from zsjax.rewards import contains_match
from zsjax.search import BM25
from zsjax.search.engine import SearchContext

REAL = asset_path("asset:real")
DATA_SETS = {"nq", "hotpotqa", "2wiki", "musique", "popqa"}


@pytest.fixture(scope="module")
def questions():
    return load_questions(REAL / "questions.jsonl.gz")


@pytest.fixture(scope="module")
def corpus():
    return load_corpus(REAL / "paragraphs.jsonl.gz")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("asset:real/tokenizer")


def test_every_question_has_its_evidence_in_the_paragraphs(questions, corpus):
    titles = {document.title.lower() for document in corpus}
    assert len({q.id for q in questions}) == len(questions) == 120
    assert {q.metadata["data_set"] for q in questions} == DATA_SETS
    for question in questions:
        named = question.metadata.get("supporting_titles", question.metadata.get("linked_titles"))
        if named:
            missing = [title for title in named if title.lower() not in titles]
            assert not missing, (question.id, missing)
        else:
            assert question.metadata["data_set"] == "nq"
            assert any(contains_match(d.text + " " + d.title, question.golden_answers) for d in corpus), question.id


def test_bm25_finds_an_article_of_most_annotated_questions(questions, corpus):
    asked = [q for q in questions if q.metadata.get("supporting_titles")]
    found = BM25.from_documents(corpus).search([q.question for q in asked], [SearchContext(q) for q in asked], k=5)
    hits = [bool({d.title.lower() for d in documents} & {t.lower() for t in q.metadata["supporting_titles"]})
            for q, documents in zip(asked, found, strict=True)]
    assert np.mean(hits) > 0.9


def test_recall_equals_bm25s_used_directly(questions, corpus):
    import bm25s

    asked = [q for q in questions if q.metadata.get("supporting_titles")]
    direct = bm25s.BM25()
    direct.index(bm25s.tokenize([f"{d.title} {d.text}" for d in corpus], show_progress=False), show_progress=False)
    rows, _ = direct.retrieve(bm25s.tokenize([q.question for q in asked], show_progress=False), k=5, show_progress=False)
    theirs = [[corpus[row].title for row in found] for found in rows]
    ours = [[d.title for d in found] for found in BM25.from_documents(corpus).search([q.question for q in asked], None, k=5)]

    def recall(found):
        return np.mean([len({t.lower() for t in titles} & {t.lower() for t in q.metadata["supporting_titles"]})
                        / len({t.lower() for t in q.metadata["supporting_titles"]})
                        for titles, q in zip(found, asked, strict=True)])

    assert recall(ours) == recall(theirs) and 0.4 < recall(ours) < 1


def test_origin_names_every_file_and_data_set_and_the_sample_is_small():
    origin = (REAL / "ORIGIN.md").read_text()
    for entry in REAL.iterdir():
        assert entry.name in origin or entry.name == "ORIGIN.md"
    for words in ("CC BY-SA 3.0", "CC BY-SA 4.0", "CC BY 4.0", "Apache-2.0", "MIT", "Wikipedia contributors"):
        assert words in origin
    assert sum(file.stat().st_size for file in REAL.glob("*.gz")) < 300_000
    for checkpoint in ("random", "policy"):
        assert sum(file.stat().st_size for file in (REAL / checkpoint).iterdir()) < 1_000_000


def test_tokenizer_is_of_qwens_kind(tokenizer, corpus):
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoTokenizer.from_pretrained(REAL / "tokenizer")
    for document in corpus[::8]:
        text = f"{document.title}.  {document.text}\n\n<search> it's 1892 </search>\n"
        ids = tokenizer.encode(text)
        assert ids == peer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)
    assert tokenizer.vocab_size == 4096
    specials = [tokenizer.encode(name) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")]
    assert specials == [[4093], [4094], [4095]]
    assert tokenizer.eos_ids == (4093, 4095)  # its own, and what ends a turn of its chat template
    assert len(tokenizer.encode("<search>")) > 1 and len(tokenizer.encode("2004")) == 4
    assert tokenizer.decode(tokenizer.apply_chat_template([{"role": "user", "content": "Who?"}])) == (
        "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n")


def written_by_transformers(folder):
    """Writes a fresh random Qwen2 checkpoint of the shape in ORIGIN.md, with transformers, into `folder`."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.Qwen2Config(
        vocab_size=4096, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, rope_theta=1e6, tie_word_embeddings=True,
        eos_token_id=4093, bos_token_id=4093)
    transformers.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["random", "policy", "fresh"])
def test_checkpoint_of_transformers_is_read_and_computes_the_same(name, tokenizer, questions, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    folder = written_by_transformers(tmp_path / "fresh") if name == "fresh" else REAL / name
    config, params = load_hf(folder, dtype="float32")
    assert (config.model_type, config.qkv_bias, config.tie_embeddings, config.vocab_size) == ("qwen2", True, True, 4096)
    tokens = np.array([(tokenizer.encode(q.question) * 9)[:48] for q in questions[:3]], np.int32)
    ours = forward(params, config, tokens)
    with torch.no_grad():
        peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        theirs = peer(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(np.asarray(ours), theirs, atol=1e-4, rtol=1e-4)
