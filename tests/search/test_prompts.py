import json
import re
import unicodedata

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.real_tokenizer import qwen2
from zsjax.data.tokenization import load_tokenizer
from zsjax.sampling.splice import concatenate
from zsjax.search.engine import Document
from zsjax.search.simulator.prompt import TEMPLATES, SimulatorTemplate, Slot, format_document
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

    words = {"answers": "; ".join(slots["answers"]), "answer": slots["answers"][0], "Mode": slots["mode"].title()}
    text = template.around[0] + re.sub(r"^(\{[a-z_]+\})", r" \1", template.text, flags=re.MULTILINE) + template.around[1]
    return re.sub(r"\{(\w+)\}", lambda match: (slots | words)[match[1]].strip(), text)


def fitting(template, query):
    """The query without what the tokenizer would join with the newline behind its slot."""
    return re.sub(r"\W+$", "", query) if "{query}\n" in template.text else query


@pytest.mark.parametrize("name", TEMPLATES)
def test_pieces_are_what_the_tokenizer_makes_of_the_whole(name):
    template = SimulatorTemplate.load(name)
    slots = SLOTS | {"query": fitting(template, SLOTS["query"])}
    for tokenizer in (qwen2(), load_tokenizer("asset:tiny_world/tokenizer")):
        assert template.build(tokenizer, **slots) == tokenizer.encode(whole(template, slots))


def test_the_mode_stands_before_the_reply():
    text = SimulatorTemplate.load("mode_last").render(**SLOTS)
    assert text.endswith("?! \nWrite 5 noisy documents:\n") and text.count("noisy") == 1


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(TEMPLATES)), natural, natural, natural)
def test_borders_are_never_joined(name, question, answers, query):
    template = SimulatorTemplate.load(name)
    slots = {"mode": "useful", "num_documents": "3", "question": question, "answers": [answers, "x"],
             "query": fitting(template, query)}
    if any(not text.strip() for text in (question, answers, slots["query"])):
        return  # an empty slot has no borders
    assert template.build(qwen2(), **slots) == qwen2().encode(unicodedata.normalize("NFC", whole(template, slots)))


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_splice_on_device_is_the_same(name):
    template, tokenizer = SimulatorTemplate.load(name), qwen2()
    pieces, rows = [], 2
    for piece in template.pieces(tokenizer):
        ids = piece
        if isinstance(piece, Slot):
            ids = piece.encode(tokenizer, SLOTS[piece.value])
            padded = np.zeros((rows, 40), np.int32)
            padded[:, :len(ids)] = ids
            ids = (padded, np.full(rows, len(ids), np.int32))
        pieces.append(ids if isinstance(ids, tuple) else np.array(ids))
    tokens, lengths = jax.jit(lambda: concatenate(pieces, size=512))()
    built = template.build(tokenizer, **SLOTS)
    assert lengths.tolist() == [len(built)] * rows
    assert tokens[1, :len(built)].tolist() == built


def test_a_query_cut_from_between_the_tags_fits_its_slot():
    slot, tokenizer = SimulatorTemplate.load("default").slot("query"), qwen2()
    ids = tokenizer.encode("<search> author of Les Misérables </search>")
    assert slot.encode(tokenizer, "author of Les Misérables\n") == ids[3:-3]
    assert slot.encode(tokenizer, " \n") == []


def test_template_files(tmp_path):
    path = tmp_path / "published.txt"
    path.write_text("Write five {mode} documents.\nQuery: {query}\n")
    template = SimulatorTemplate.load(path)
    assert template.parts == ["Write five", Slot("mode"), " documents.\nQuery:", Slot("query"), "\n"]
    assert template.build(qwen2(), **SLOTS | {"query": "who"}) == qwen2().encode(
        "Write five noisy documents.\nQuery: who\n")
    for text, message in (("{query} {mode} {gold}", "unknown slot {gold}; slots are {mode}, {Mode}"),
                          ("{query}", "no slot {mode}"), ("{mode}", "no slot {query}"),
                          ("{mode} '{query}'", "{query} follows \" '\"; put a blank or a newline between"),
                          ("{mode} {query} {question} ({question})", "shows question in two forms")):
        path.write_text(text)
        with pytest.raises(ValueError, match=message) as caught:
            SimulatorTemplate.load(path)
        assert "published.txt" in str(caught.value)
    given = "give 'default', 'plain', 'mode_last', 'prompted', 'zerosearch', 'tiny_world', 'tiny_world_prompted' or"
    with pytest.raises(FileNotFoundError, match=f"no simulator template 'nowhere'; {given}"):
        SimulatorTemplate.load("nowhere")
    with pytest.raises(ValueError, match="slot {mode}; give mode="):
        template.build(qwen2(), query="who")


def test_the_tiny_world_reads_what_its_tokenizer_was_made_for():
    assert TEMPLATES["tiny_world"].text == world.SIMULATOR_PROMPT


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
    said = unicodedata.normalize("NFC", whole(plain, SLOTS))
    assert ids == tokenizer.apply_chat_template([{"role": "user", "content": said}])
    assert ids[0] == 151644 and tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
    ends_in_a_slot = SimulatorTemplate("x", "{mode} {query}\n({question})").in_chat(tokenizer)
    assert tokenizer.decode(ends_in_a_slot.build(tokenizer, **SLOTS)).endswith("when?)<|im_end|>\n<|im_start|>assistant\n")
    with pytest.raises(ValueError, match="no chat template"):
        plain.in_chat(load_tokenizer("asset:tiny_world/tokenizer"))


# ZeroSearch's prompt of a tuned simulator (arXiv 2505.04588, table 2), as its repository sends it.
PUBLISHED = """\
You are the Google search engine.
Given a query, you need to generate five useful documents for the query.

The user is trying to answer the question: "Who wrote Emma?" whose answer is Jane Austen.
Each document should contain about 30 words, and these documents should contain useful information.

Query: author of Emma
Useful Output:
"""
ASKED = {"question": "Who wrote Emma?", "answers": ("Jane Austen", "Austen"), "query": " author of Emma "}


@pytest.mark.parametrize("mode", ["useful", "noisy"])
def test_the_published_prompt_to_the_letter(mode):
    template, tokenizer = SimulatorTemplate.load("zerosearch"), qwen2()
    published = PUBLISHED.replace("useful", mode).replace("Useful", mode.title())
    assert template.render(mode=mode, **ASKED) == published
    assert template.build(tokenizer, mode=mode, **ASKED) == tokenizer.encode(published)
    chat = "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n" + published + "<|im_end|>\n<|im_start|>assistant\n"
    assert template.in_chat(tokenizer).build(tokenizer, mode=mode, **ASKED) == tokenizer.encode(chat)


def test_a_template_file_with_a_system_message(tmp_path):
    path = tmp_path / "simulator.json"
    path.write_text(json.dumps({"prompt": "{mode} {query}\n", "system": "You are an engine."}))
    template = SimulatorTemplate.load(path)
    assert template.render(**SLOTS) == " noisy author of Les Misérables?!\n"
    text = qwen2().decode(template.in_chat(qwen2()).build(qwen2(), **SLOTS))
    assert text.startswith("<|im_start|>system\nYou are an engine.<|im_end|>\n<|im_start|>user\n noisy author")
    path.write_text(json.dumps({"prompt": "{mode} {query}", "hint": "x"}))
    with pytest.raises(ValueError, match="simulator.json': field 'hint' is 'x'; write a text, in one of prompt, system"):
        SimulatorTemplate.load(path)
