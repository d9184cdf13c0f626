import bisect
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from tests.real_tokenizer import qwen2
from zsjax.data.tokenization import FastTokenizer
from zsjax.sampling.tags import TAGS, TagAutomaton, extract

events = jax.jit(lambda automaton, tokens, valid: automaton.events(tokens, valid=valid))
cut_out = jax.jit(extract, static_argnames=("open_tag", "close_tag", "size"))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A byte-level BPE vocabulary in which tags are merged with what stands around them in many ways."""
    text = ["<search> a</search>.\n<answer>b</answer>\n", "x.</search><search>y</search>>\n\n", "?\n </search>",
            "> <</ </s e> </answer> x", "<search>a.\n</search>", "<search>\n\nb </search>"]
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(text, tokenizers.trainers.BpeTrainer(
        vocab_size=400, min_frequency=1, special_tokens=["<|end|>"], show_progress=False, initial_alphabet=alphabet))
    return FastTokenizer(backend, tmp_path_factory.mktemp("small"))


@functools.cache
def automaton_of(tokenizer, tags=TAGS):
    return TagAutomaton.from_tokenizer(tokenizer, tags)


def sequences(tokenizer, rng, rows, length, *, everything):
    """Random ids: two thirds tokens around the tags, one third from the whole vocabulary, some of them not ids."""
    texts = ["<search>", "</search>", "<answer>", "</answer>", "<search> who</search>.\n", " </search>", "></", "<",
             "<search", "search>", ">.\n", "</", "</answer>\n\n", "<answer> x</answer>", " ", "\n", "a", " <", "><"]
    spelled = [tokenizer.encode(text) for text in texts]
    near_a_tag = re.compile(rb"[ .\n?x]*[<>/ ]*[ .\n]*(sea?r?c?h?|ans?w?e?r?)?[>.\n/]*")
    around = [id for id in range(tokenizer.vocab_size) if near_a_tag.fullmatch(tokenizer.token_bytes(id) or b"-")]
    tokens = np.zeros((rows, length), np.int32)
    for row in tokens:
        ids = []
        while len(ids) < length:
            draw = rng.random()
            if draw < 0.6:
                ids += spelled[rng.integers(len(spelled))]
            elif draw < 0.85 or not everything:
                ids.append(around[rng.integers(len(around))])
            else:
                ids.append(int(rng.integers(-2, tokenizer.vocab_size + 3)))
        row[:] = ids[:length]
    return tokens


def search(tokenizer, tags, ids):
    """[(token, end byte in the row's bytes, tag)] of every occurrence, by regular expressions, and where tokens end."""
    data, ends, starts = b"", [], [0]
    for id in ids:
        written = tokenizer.token_bytes(int(id))
        if written is None:
            starts.append(len(data))  # nothing is found across it
        data += written or b""
        ends.append(len(data))
    found = []
    for start, stop in itertools.pairwise([*starts, len(data)]):
        for number, tag in enumerate(tags):
            for match in re.finditer(b"(?=" + re.escape(tag.encode()) + b")", data[start:stop]):
                end = start + match.start() + len(tag.encode())
                found.append((bisect.bisect_left(ends, end), end, number))
    return found, data, ends


def searched_events(tokenizer, tags, ids):
    result = np.zeros(len(ids), np.int8)
    for token, _, number in sorted(search(tokenizer, tags, ids)[0], key=lambda hit: (hit[1], len(tags[hit[2]]))):
        result[token] = number + 1
    return result


def test_events_equal_a_regular_expression_on_qwen2():
    tokens = sequences(qwen2(), np.random.default_rng(0), 10_000, 20, everything=True)
    got = np.asarray(events(automaton_of(qwen2()), tokens, None))
    wanted = np.stack([searched_events(qwen2(), TAGS, ids) for ids in tokens])
    np.testing.assert_array_equal(got, wanted)
    assert all((wanted == number).sum() > 1000 for number in range(1, 5))


@pytest.mark.parametrize("tags", [TAGS, ("ab", "b", "aab", ">", "</search>\n", "x.</")])
def test_events_equal_a_regular_expression_on_a_small_vocabulary(small, tags):
    tokens = sequences(small, np.random.default_rng(1), 10_000, 16, everything=True)
    got = np.asarray(events(automaton_of(small, tags), tokens, None))
    np.testing.assert_array_equal(got, np.stack([searched_events(small, tags, ids) for ids in tokens]))


def test_merged_edges_of_qwen2():
    encode, automaton = qwen2().encode, automaton_of(qwen2())
    ids = encode("<think> x </think><search> who </search>.\n<answer> y</answer>")
    seen = [(qwen2().decode([id]), event)
            for id, event in zip(ids, events(automaton, np.array([ids]), None)[0].tolist(), strict=True)]
    assert [pair for pair in seen if pair[1]] == [(">", 1), (">.\n", 2), (">", 3), (">", 4)]


def test_step_and_valid(small):
    automaton, rng = automaton_of(small), np.random.default_rng(2)
    tokens = sequences(small, rng, 50, 16, everything=True)
    valid = rng.random(tokens.shape) < 0.9
    state, columns = jnp.zeros(50, jnp.int32), []
    for t in range(16):
        state, event = automaton.step(state, tokens[:, t])
        columns.append(event)
    np.testing.assert_array_equal(np.stack(columns, 1), events(automaton, tokens, None))
    # What is not valid is as a special token: nothing fires there or across it.
    wanted = np.stack([searched_events(small, TAGS, ids) for ids in np.where(valid, tokens, -1)])
    np.testing.assert_array_equal(events(automaton, tokens, valid), wanted)


def test_forbidden_is_what_would_complete_a_tag(small):
    automaton = automaton_of(small)
    state = jnp.arange(automaton.next_state.shape[0])
    forbidden = np.asarray(automaton.forbidden(state))
    for id in range(small.vocab_size):
        _, event = automaton.step(state, jnp.full(state.shape, id))
        np.testing.assert_array_equal(forbidden[:, id], np.asarray(event) > 0)
    writes = [small.token_bytes(id) or b"" for id in range(small.vocab_size)]
    assert forbidden[0].tolist() == [any(tag.encode() in data for tag in TAGS) for data in writes]


def searched_text(tokenizer, ids):
    """What `extract` of <search> has to give: bytes, or None where its documented limits begin."""
    found, data, ends = search(tokenizer, TAGS, ids)
    closes = [end for token, end, number in found if number == 1 and token == len(ids) - 1]
    if not closes or max(end for _, end, _ in found) != closes[-1]:
        return b""
    stop = closes[-1] - len(b"</search>")
    # Where one token completes an open tag and then another tag, the open tag is overlooked.
    seen = {token: (end, number) for token, end, number in sorted(found, key=lambda hit: hit[1])}
    opens = [(token, end) for token, (end, number) in seen.items() if number == 0 and end <= stop]
    if not opens:
        return b""
    token, start = opens[-1]
    return None if ends[token] > stop else data[start:stop]


def stripped(data):
    return data.decode("utf-8", "surrogateescape").strip()


@pytest.mark.parametrize("which", ["qwen2", "small"])
def test_extract_equals_the_bytes_between_the_tags(which, small):
    tokenizer = small if which == "small" else qwen2()
    rng = np.random.default_rng(3)
    tokens = sequences(tokenizer, rng, 6000, 20, everything=True)
    if which == "qwen2":  # rows as policies write them
        words = [" who", "is", " Kora", " x.", "?\n", "\n", " ", ".\n\n", " \"a\"", "漢", ">", "<", "a<b", " 1990"]
        for row in tokens[:2000]:
            query = "".join(rng.choice(words, rng.integers(0, 6)))
            ids = tokenizer.encode(f"<think> x</think><search>{query}</search>{rng.choice(['', '.', chr(10)])}")
            row[:] = (ids + [0] * 20)[:20]
    closing = np.asarray(events(automaton_of(tokenizer), tokens, None)) == 2
    lengths = np.where(closing.any(1), 20 - closing[:, ::-1].argmax(1), rng.integers(0, 21, len(tokens)))
    lengths = lengths.astype(np.int32)

    ids, length = map(np.asarray, cut_out(automaton_of(tokenizer), tokens, lengths, open_tag=0, close_tag=1, size=24))

    texts = cuts = 0
    for row, n, got, count in zip(tokens, lengths, ids, length, strict=True):
        wanted = searched_text(tokenizer, row[:n])
        written = b"".join(tokenizer.token_bytes(int(id)) for id in got[:count])
        if wanted is None:
            assert count == 0
            continue
        assert stripped(written) == stripped(wanted), (row[:n], written)
        assert (count == 0) == (not stripped(wanted)) and not got[count:].any()
        if count:
            assert written == written.rstrip(b" \n")
            assert tokenizer.token_bytes(int(got[0])).strip() or re.match(rb" \S", written)
            texts += 1
            cuts += not set(got[:count]) <= set(row)
    assert texts > 1000 and cuts > 10


def test_extract_copies_and_respells():
    encode, decode, automaton = qwen2().encode, qwen2().decode, automaton_of(qwen2())

    def query(text, size=8):
        ids = encode(text)
        row = np.array([ids + [0] * (16 - len(ids))], np.int32)
        got, length = cut_out(automaton, row, np.array([len(ids)]), open_tag=0, close_tag=1, size=size)
        return [decode([id]) for id in got[0, :length[0]].tolist()]

    assert query("<think> x </think><search> spouse of Kora </search>") == [" spouse", " of", " K", "ora"]
    assert query("<search>who is it?</search>") == ["who", " is", " it", "?"]  # the tokens `>` `who` .. `?</`
    assert query("<search>a.\n</search>.\n") == ["a", "."]  # the tokens `>a` and `.\n`
    assert query("<search>one<search> two</search>") == [" two"]
    assert query("<search> one two three</search>", size=2) == [" one", " two"]
    assert query("<search> 19 films </search>") == [" ", "1", "9", " films"]  # the simulator is tuned on " 19 films"
    assert query("<search>\n 19</search>") == query("<search> 19\n</search>") == [" ", "1", "9"]
    assert query("<search>19</search>") == ["1", "9"] and query("<search>  x</search>") == [" x"]
    for nothing in ("<search></search>", "<search> \n </search>", "who</search>", "<search> x", "<answer> x</search>",
                    "<search> x</answer>", "<search> x</search> and"):
        assert query(nothing) == []


def test_tags_that_cannot_be_seen_are_refused(small):
    with pytest.raises(ValueError, match="'<.end.>' is .or holds. a special token"):
        TagAutomaton.from_tokenizer(small, ("<|end|>",))
    for tags in ((), ("",), ("a", "a")):
        with pytest.raises(ValueError, match="different, non-empty texts"):
            TagAutomaton.from_tokenizer(small, tags)


def test_tables_built_inside_a_trace_are_constants(small):
    state = {}

    @jax.jit
    def program(tokens):
        state["automaton"] = TagAutomaton.from_tokenizer(small)
        return state["automaton"].events(tokens)

    tokens = np.array([small.encode("<search> a</search>")])
    np.testing.assert_array_equal(program(tokens), state["automaton"].events(tokens))
