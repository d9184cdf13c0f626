"""The tables of a `TagAutomaton`, built on the host from a tokenizer: numpy.

V tokens, S states, R rows of the spelling tables, K tokens in a row.
"""

from collections.abc import Sequence

import numpy as np

from zsjax.errors import InputError


def build_tables(tokenizer, tags: Sequence[str]) -> dict[str, np.ndarray]:
    """The arrays of `TagAutomaton`, by field. Raises InputError as `TagAutomaton.from_tokenizer`."""
    if not tags or not all(tags) or len(set(tags)) != len(tags) or len(tags) > 127:
        raise InputError(f"tags={tags!r} are not different, non-empty texts (at most 127); change them")
    table = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
    for tag in tags:
        if any(not 0 <= id < len(table) or table[id] is None for id in tokenizer.encode(tag)):
            raise InputError(f"the tag {tag!r} is (or holds) a special token of this tokenizer, which writes no text; "
                             "make the token non-special, or use another tag")
    in_bytes = [tag.encode() for tag in tags]
    return _lift(*_byte_automaton(in_bytes), table) | _spellings(tokenizer, table, in_bytes)


def _byte_automaton(tags: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(goto int16[S, 256], output int8[S]: i + 1 where the longest tag that ends in the state is tags[i], else 0)."""
    prefixes = [b""]
    for tag in tags:
        prefixes += [tag[:n] for n in range(1, len(tag) + 1) if tag[:n] not in prefixes]
    index = {prefix: state for state, prefix in enumerate(prefixes)}
    goto, output = np.zeros((len(prefixes), 256), np.int16), np.zeros(len(prefixes), np.int8)
    for state, prefix in enumerate(prefixes):
        for byte in range(256):
            text = prefix + bytes([byte])
            goto[state, byte] = next(index[text[n:]] for n in range(len(text) + 1) if text[n:] in index)
        ended = [i for i, tag in enumerate(tags) if prefix.endswith(tag)]
        output[state] = max(ended, key=lambda i: len(tags[i])) + 1 if ended else 0
    return goto, output


def _lift(goto, output, table) -> dict[str, np.ndarray]:
    """The byte automaton over tokens: all states at once, one byte of all tokens after the other."""
    lengths = np.array([len(entry or b"") for entry in table])
    order = np.argsort(-lengths, kind="stable")  # longest first: the tokens with a byte n are a prefix of it
    starts = np.cumsum(lengths) - lengths
    data = np.frombuffer(b"".join(entry or b"" for entry in table), np.uint8)
    states, size = goto.shape[0], len(table)
    state = np.repeat(np.arange(states, dtype=np.int16)[:, None], size, axis=1)
    event, end = np.zeros((states, size), np.int8), np.zeros((states, size), np.int16)
    flat = goto.reshape(-1)
    for n in range(lengths.max(initial=0)):
        count = np.searchsorted(-lengths[order], -n, side="left")
        byte = data[starts[order[:count]] + n].astype(np.int32)
        state[:, :count] = flat[state[:, :count].astype(np.int32) * 256 + byte]
        fired = output[state[:, :count]]
        hit = fired > 0
        event[:, :count][hit] = fired[hit]
        end[:, :count][hit] = n + 1
    state[:, lengths[order] == 0] = 0
    back = np.empty_like(order)
    back[order] = np.arange(size)
    tail = np.where(event > 0, lengths[order].astype(np.int16) - end, 0).astype(np.int16)
    return {"next_state": state[:, back], "event": event[:, back], "event_tail": tail[:, back]}


def _spellings(tokenizer, table, tags: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The per-token facts and spelling tables of `TagAutomaton`."""
    first, last = {tag[:1] for tag in tags}, {tag[-1:] for tag in tags}
    size = len(table)
    lengths = np.array([len(entry or b"") for entry in table], np.int32)
    stripped = np.array([len(_rstrip(entry or b"")) for entry in table], np.int32)
    cut_row = np.full(size, -1, np.int32)
    spelled = {"before": [], "after": [], "alone": []}  # ids of every row
    spell = _Speller(tokenizer, table)
    for id, entry in enumerate(table):
        length = int(lengths[id])
        starts = {j for edge in first for j in _find_all(entry or b"", edge)} - {0}
        ends = {j + 1 for edge in last for j in _find_all(entry or b"", edge)} - {length}
        if 0 < stripped[id] < length:
            starts.add(int(stripped[id]))
        if not starts and not ends:
            continue
        cut_row[id] = len(spelled["before"])
        for j in range(length + 1):
            after = _lstrip(entry[j:]) if j in ends and _rstrip(entry[j:]) else b""
            spelled["before"].append(spell(_rstrip(entry[:j])) if j in starts else [])
            spelled["after"].append(spell(after))
            spelled["alone"].append(spell(_rstrip(after)))
    width = max((len(ids) for rows in spelled.values() for ids in rows), default=1)
    rows = {}
    for name, lists in spelled.items():
        counts = np.array([len(ids) for ids in lists] or [0], np.int32)
        ids = np.zeros((len(counts), max(1, width)), np.int32)
        ids[np.arange(ids.shape[1]) < counts[:, None]] = [id for row in lists for id in row]
        rows |= {f"{name}_ids": ids, f"{name}_len": counts}
    return {"token_bytes_len": lengths, "blank": (lengths > 0) & (stripped == 0), "stripped_len": stripped,
            "one_blank": np.array([entry == b" " for entry in table]), "cut_row": cut_row, **rows,
            "begins_blank": np.array([(entry or b"")[:1].isspace() for entry in table])}


def _rstrip(data: bytes) -> bytes:
    """The bytes without white space at the end; that of Unicode only if the bytes are text."""
    if data[-1:].isascii():
        data = data.rstrip()
        if not data or data[-1:].isascii():
            return data
    try:
        return data.decode().rstrip().encode()
    except UnicodeDecodeError:
        return data


def _lstrip(data: bytes) -> bytes:
    """The bytes without white space in front, except a blank right before the word."""
    word = data.lstrip()
    return b" " + word if data[:len(data) - len(word)].endswith(b" ") else word


def _find_all(data: bytes, byte: bytes):
    at = data.find(byte)
    while at >= 0:
        yield at
        at = data.find(byte, at + 1)


class _Speller:
    """Spells bytes by tokens: as the tokenizer encodes them; if they are not text, by the longest token first."""

    def __init__(self, tokenizer, table):
        self._tokenizer, self._table, self._known = tokenizer, table, {b"": []}
        self._by_bytes = None

    def __call__(self, data: bytes) -> list[int]:
        if data not in self._known:
            self._known[data] = self._spell(data)
        return self._known[data]

    def _spell(self, data: bytes) -> list[int]:
        try:
            ids = self._tokenizer.encode(data.decode())
            # SentencePiece may add a blank before the text.
            if all(0 <= id < len(self._table) for id in ids) and b"".join(self._table[id] or b"" for id in ids) == data:
                return list(ids)
        except UnicodeDecodeError:
            pass
        if self._by_bytes is None:
            self._by_bytes = {entry: id for id, entry in reversed(list(enumerate(self._table))) if entry}
        ids, at = [], 0
        while at < len(data):
            stop = next((stop for stop in range(len(data), at, -1) if data[at:stop] in self._by_bytes), None)
            if stop is None:
                return ids  # no token writes this byte: the text is cut before it
            ids.append(self._by_bytes[data[at:stop]])
            at = stop
        return ids
