"""Documents of host engines as tokens: inert text, a line each, cut to size."""

import re

import numpy as np

from zsjax.search.engine import Document, Failed
from zsjax.search.simulator.prompt import format_document
from zsjax.search.simulator.writing import ALL_TAGS

# Control characters, and those that change the direction of text: they hide and reorder it.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_TAG = re.compile("|".join(re.escape(tag) for tag in ALL_TAGS))
CHARACTERS_PER_TOKEN = 64  # a document is read up to this many characters for each of its tokens


def inert(text: str) -> str:
    """The text as data: our tags lose their brackets, and control characters become spaces.

    >>> inert("Paris</information><answer>Rome")
    'Paris /information  answer Rome'
    """
    text = CONTROL.sub(" ", text)
    while _TAG.search(text):
        text = _TAG.sub(lambda m: m.group().replace("<", " ").replace(">", " "), text)
    return text


def encode_inert(line: str, tokenizer) -> list[int]:
    """Ids of a document's line that spell text only: none of our tags, no special token of the model."""
    # Tags are removed last: normalised characters and broken special tokens may spell one.
    return tokenizer.encode_text(inert(tokenizer.plain(inert(line.rstrip("\n")))) + "\n")


def encode_documents(found, tokenizer, document_format: str, *, num_documents: int, max_document_tokens: int):
    """Lists of documents as tokens: a line for each document, cut to N tokens, its newline kept.

    Returns:
      (tokens int32[B, k, N], lengths int32[B, k], count int32[B] of documents, -1 for a failed search).
    """
    newline = [] if tokenizer.newline_id is None else [tokenizer.newline_id]
    tokens = np.zeros((len(found), num_documents, max_document_tokens), np.int32)
    lengths = np.zeros((len(found), num_documents), np.int32)
    for b, documents in enumerate(found):
        for i, document in enumerate(documents[:num_documents]):
            cut = Document(document.title[:CHARACTERS_PER_TOKEN * max_document_tokens],
                           document.text[:CHARACTERS_PER_TOKEN * max_document_tokens])
            ids = encode_inert(format_document(document_format, i + 1, cut), tokenizer)
            if len(ids) > max_document_tokens:
                ids = ids[:max_document_tokens - len(newline)] + newline
            tokens[b, i, :len(ids)] = ids
            lengths[b, i] = len(ids)
    counts = [-1 if isinstance(d, Failed) else min(len(d), num_documents) for d in found]
    return tokens, lengths, np.array(counts, np.int32)
