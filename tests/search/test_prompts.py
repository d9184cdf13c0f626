import unicodedata

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_tokenizer import qwen2

from zsjax.data.tokenization import load_tokenizer
from zsjax.sampling.splice import concatenate
from zsjax.search.engine import Document
from zsjax.search.simulator.prompt import TEMPLATES, SimulatorTemplate, format_document
from zsjax.tiny_world import world

SLOTS = {
    "mode": "noisy", "num_documents": "5",
    "question": "Who wrote \"Les Misérables\" (1862)?\nAnd when?",
    "answers": ["Victor Hugo", "V. Hugo."], "query": " author of Les Misérables?! ",
}

# What people write: words, numbers, punctuation and newlines at every place, in several scripts.
natural = st.lists(st.sampled_from(["who", "is", "Kora", "don't", "'s", "1999", "3.14", "?", "?!", "...", "\"x\"",
                                    "(b)", ";", "漢字", "Ёлка", "naïve", "\n", "\t", " ", "  ", "é", "#", "-", "</s",
                                    "x>\n"]),
                   min_size=1, max_size=8).map(lambda words: " ".join(words))


def whole(template, slots):
    """The prompt as one text."""

    def text(value):
        return "; ".join(value) if isinstance(value, list) else value

    return "".join(value if kind == "text" else f" {text(slots[value]).strip()}" for kind, value in template.parts())


@pytest.mark.parametrize("name", TEMPLATES)
def test_pieces_are_what_the_tokenizer_makes_of_the_whole(name):
    template = SimulatorTemplate.load(name)
    for tokenizer in (qwen2(), load_tokenizer("asset:tiny_world/tokenizer")):
        assert template.build(tokenizer, **SLOTS) == tokenizer.encode(whole(template, SLOTS))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), natural, natural, natural)
def test_borders_are_never_joined(name, question, answers, query):
    slots = {"mode": "useful", "num_documents": "3", "question": question, "answers": [answers, "x"], "query": query}
    if any(not slots[slot].strip() for slot in ("question", "query")):
        return  # an empty slot has no borders
    template = SimulatorTemplate.load(name)
    assert template.build(qwen2(), **slots) == qwen2().encode(unicodedata.normalize("NFC", whole(template, slots)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_splice_on_device_is_the_same(name):
    template, tokenizer = SimulatorTemplate.load(name), qwen2()
    pieces, rows = [], 2
    for kind, value in template.pieces(tokenizer):
        ids = value
        if kind == "slot":
            text = "; ".join(SLOTS[value]) if isinstance(SLOTS[value], list) else SLOTS[value]
            ids = template.encode_slot(tokenizer, text)
            padded = np.zeros((rows, 40), np.int32)
            padded[:, :len(ids)] = ids
            ids = (padded, np.full(rows, len(ids), np.int32))
        pieces.append(ids if isinstance(ids, tuple) else np.array(ids))
    tokens, lengths = jax.jit(lambda: concatenate(pieces, size=512))()
    built = template.build(tokenizer, **SLOTS)
    assert lengths.tolist() == [len(built)] * rows
    assert tokens[1, :len(built)].tolist() == built


def test_a_query_cut_from_between_the_tags_fits_its_slot():
    template, tokenizer = SimulatorTemplate.load("default"), qwen2()
    ids = tokenizer.encode("<search> author of Les Misérables </search>")
    assert template.encode_slot(tokenizer, "author of Les Misérables\n") == ids[3:-3]
    assert template.encode_slot(tokenizer, " \n") == []


def test_template_files(tmp_path):
    path = tmp_path / "published.txt"
    path.write_text("Write five {mode} documents.\nQuery: {query}\n")
    template = SimulatorTemplate.load(path)
    assert template.parts() == [("text", "Write five"), ("slot", "mode"), ("text", " documents.\nQuery:"),
                                ("slot", "query"), ("text", "\n")]
    assert template.build(qwen2(), **SLOTS | {"query": "who"}) == qwen2().encode(
        "Write five noisy documents.\nQuery: who\n")
    for text, message in (("{query} {mode} {gold}", "unknown slot {gold}; slots are {mode}"),
                          ("{query}", "no slot {mode}"), ("{mode}", "no slot {query}")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            SimulatorTemplate.load(path)
        assert "published.txt" in str(caught.value)
    given = "give 'default', 'plain', 'tiny_world', 'prompted', 'tiny_world_prompted' or"
    with pytest.raises(FileNotFoundError, match=f"no simulator template 'nowhere'; {given}"):
        SimulatorTemplate.load("nowhere")
    with pytest.raises(ValueError, match="slot {mode}; give mode="):
        template.build(qwen2(), query="who")


def test_the_tiny_world_reads_what_its_tokenizer_was_made_for():
    assert TEMPLATES["tiny_world"] == world.SIMULATOR_PROMPT


def test_a_document_is_one_line():
    document = Document("Kora\nVelim", "spouse of\r\n\nKora {title} is\u2028Dran.")
    line = "spouse of Kora {title} is Dran."
    assert format_document("Doc {i}: {title}. {text}", 2, document) == f"Doc 2: Kora Velim. {line}\n"
    assert format_document("* {text}", 1, document) == f"* {line}\n"
    assert format_document("Doc {i}: {title}. {text}", 1, Document("", "a")) == "Doc 1: a\n"
    with pytest.raises(ValueError, match="unknown slot {body}; slots are {i}, {title}, {text}"):
        format_document("{body} {text}", 1, document)
    with pytest.raises(ValueError, match="no slot {text}"):
        format_document("{title}", 1, document)


def test_in_chat_the_same_words_stand_between_the_markers():
    plain, tokenizer = SimulatorTemplate.load("default"), qwen2()
    chat = plain.in_chat(tokenizer)
    ids = chat.build(tokenizer, **SLOTS)
    text = whole(plain, SLOTS).strip()
    assert ids == tokenizer.apply_chat_template([{"role": "user", "content": unicodedata.normalize("NFC", text)}])
    assert ids[0] == 151644 and tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
    with pytest.raises(ValueError, match="no chat template"):
        plain.in_chat(load_tokenizer("asset:tiny_world/tokenizer"))
