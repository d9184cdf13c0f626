"""The simulator's requests: when gold answers are shown, and that equal requests are written once and alike."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.search import SearchContext
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.search.simulator.requests import Requests, on_target, question_keys
from zsjax.search.simulator.simulator import Simulator
from zsjax.types import Question

TOKENIZER = load_tokenizer("asset:tiny_world/tokenizer")
QUESTION = Question("1", "What is the spouse of the author of Lonor Cruwick?", ("Sekel Wencroft", "Sekel"))
QUERIES = {"author of Lonor Cruwick": True, "spouse of Molen Thidov": True, "mother of Molen Thidov": False, "": False,
           "Molen Thidov": False}


@pytest.fixture(scope="module")
def simulator():
    config = DecoderConfig(vocab_size=TOKENIZER.vocab_size, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1,
                           head_dim=8, mlp_dim=16)
    return Simulator(config=config, params=init_params(config, jax.random.key(0)), tokenizer=TOKENIZER,
                     template=SimulatorTemplate.load("tiny_world"), num_documents=2, max_document_tokens=6,
                     max_query_tokens=8, max_question_tokens=24, max_answer_tokens=8)


def requests(simulator):
    question, answers = simulator.encode_questions([QUESTION] * len(QUERIES))
    return Requests(question=question, answers=answers, query=simulator.encode_queries(list(QUERIES)),
                    noisy=np.zeros(len(QUERIES), bool), question_key=question_keys([QUESTION] * len(QUERIES)),
                    active=np.ones(len(QUERIES), bool))


def test_gold_is_revealed_as_asked(simulator):
    batch, on = requests(simulator), list(QUERIES.values())
    assert np.asarray(on_target(batch, simulator.tables.blank)).tolist() == on
    noisy = [False, True, False, True, False]  # one of the two queries on target, one of the three off target
    batch = batch.replace(noisy=np.array(noisy))
    for reveal, shown in (("always", [True] * 5), ("never", [False] * 5), ("on_target", on),
                          ("useful", [not mode for mode in noisy]),
                          ("useful_on_target", [hit and not mode for hit, mode in zip(on, noisy, strict=True)])):
        tokens, lengths = dataclasses.replace(simulator, reveal_gold=reveal).prompts(batch)
        texts = [TOKENIZER.decode(np.asarray(row[:length]).tolist()) for row, length in zip(tokens, lengths, strict=True)]
        assert ["Sekel Wencroft" in text for text in texts] == shown
        assert all(query in text for query, text in zip(QUERIES, texts, strict=True))
    with pytest.raises(ValueError, match="on_target"):
        dataclasses.replace(simulator, reveal_gold="sometimes")


def test_a_mode_for_each_document_hides_the_gold_from_the_noisy_reply_alone(simulator):
    """Both replies of such a request are written, each from the prompt of its mode."""
    prompted, prompts = [], dataclasses.replace(simulator, reveal_gold="useful")
    batch = requests(simulator).replace(noisy=np.tile(np.array([True, False]), (len(QUERIES), 1)))
    write = prompts.prompts
    object.__setattr__(prompts, "prompts", lambda batch: prompted.append(write(batch)) or prompted[-1])
    prompts.take(prompts.params, prompts.idle(prompts.params, len(QUERIES), 2), batch, jax.random.key(0))
    texts = [TOKENIZER.decode(np.asarray(row[:size]).tolist()) for row, size in zip(*prompted[0], strict=True)]
    assert ["Sekel Wencroft" in text for text in texts] == ["useful" in text for text in texts] == [True] * 5 + [False] * 5


@pytest.mark.parametrize("tokenizer", ["asset:tiny_world/tokenizer", "asset:real/tokenizer"])
@pytest.mark.parametrize("marks", ["{}", "**{}**\n\n", "(({})):\n", '["{}"]!!'])
def test_the_device_splices_what_tuning_was_shown(tokenizer, marks):
    """However many tokens touch the slots for the mode and the number of documents."""
    tokenizer = load_tokenizer(tokenizer)
    text = "Write {} of kind {} now. {{question}} \n{{answers}} \n{{query}} \n".format(
        marks.format("{num_documents}"), marks.format("{mode}"))
    template = SimulatorTemplate("marked", text)
    config = DecoderConfig(vocab_size=tokenizer.vocab_size, embed_dim=8, num_layers=1, num_heads=1, num_kv_heads=1,
                           head_dim=8, mlp_dim=8)
    simulator = Simulator(config=config, params=None, tokenizer=tokenizer, template=template, num_documents=20)
    question, answers = simulator.encode_questions([QUESTION] * 2)
    tokens, lengths = simulator.prompts(Requests(
        question=question, answers=answers, query=simulator.encode_queries(["Kara"] * 2), noisy=np.array([False, True]),
        question_key=question_keys([QUESTION] * 2), active=np.ones(2, bool)))
    for row, mode in enumerate(("useful", "noisy")):
        assert tokens[row, :lengths[row]].tolist() == template.build(
            tokenizer, mode=mode, num_documents=20, question=QUESTION.question, answers=QUESTION.golden_answers,
            query="Kara")


def test_a_tokenizer_may_have_a_special_token_without_a_row(tmp_path):
    import tokenizers

    shutil.copytree(asset_path("asset:real/tokenizer"), tmp_path, dirs_exist_ok=True)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["<image_soft_token>"])  # as Gemma 3's
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    config = DecoderConfig(vocab_size=tokenizer.vocab_size - 1, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1,
                           head_dim=8, mlp_dim=16)
    simulator = Simulator(config=config, params=init_params(config, jax.random.key(0)), tokenizer=tokenizer,
                          template=SimulatorTemplate.load("plain"), num_documents=2, max_document_tokens=6)
    (documents,) = simulator.search(["Kara"], [SearchContext(QUESTION)], k=2)
    assert len(documents) == 2


@pytest.mark.parametrize("per_document", [0, 2])
def test_a_slot_that_waited_while_others_wrote_is_as_good_as_new(simulator, per_document):
    """It keeps the common beginning of all prompts. The weights are strong, so that it counts."""
    strong = jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, simulator.params)
    simulator = dataclasses.replace(simulator, params=strong, template=SimulatorTemplate.load("tiny_world_prompted"))
    batch = requests(simulator)
    if per_document:  # the first request leaves one half of its slot unused
        batch = batch.replace(noisy=np.tile(np.array([[True, True]]), (len(QUERIES), 1)))
    first, others = np.arange(len(QUERIES)) == 0, np.arange(len(QUERIES)) > 0
    key, idle = jax.random.key(0), simulator.idle(strong, len(QUERIES), per_document)

    def write(writing, active, noisy=batch.noisy):
        taken = simulator.take(strong, writing, batch.replace(active=active, noisy=noisy), key)
        return simulator.proceed(strong, simulator.tables, taken)

    used = write(idle, first)
    shared, unused = len(simulator.shared_prefix), ~np.asarray(used.keys).any(axis=1)
    assert shared > 100 and unused.sum() == (9 if per_document else 4)
    for before, after in zip(jax.tree.leaves(idle.cache.k), jax.tree.leaves(used.cache.k), strict=True):
        np.testing.assert_array_equal(after[unused][:, :, :shared], before[unused][:, :, :shared])
    later, fresh = (simulator.replies(write(writing, others, ~batch.noisy)) for writing in (used, idle))
    np.testing.assert_array_equal(later.tokens[others], fresh.tokens[others])


def test_the_published_prompt_shows_the_first_gold_or_none(simulator):
    for reveal, golds, shown in (("always", QUESTION.golden_answers, "is Sekel Wencroft.\n"), ("never", "", "is.\n")):
        published = dataclasses.replace(simulator, template=SimulatorTemplate.load("zerosearch"), reveal_gold=reveal)
        tokens, lengths = published.prompts(requests(published))
        text = published.template.render(mode="useful", question=QUESTION.question, query=next(iter(QUERIES)), answers=golds)
        assert f"whose answer {shown}" in text
        assert tokens[0, :lengths[0]].tolist() == TOKENIZER.encode(text)


def test_equal_requests_are_written_once_and_alike(simulator, monkeypatch):
    other = dataclasses.replace(QUESTION, id="2", key="2")
    queries = ["author", "spouse", "author", "author", "author"]
    contexts = [SearchContext(QUESTION), SearchContext(QUESTION), SearchContext(QUESTION, noisy=True), SearchContext(other),
                SearchContext(QUESTION)]
    written, write = [], simulator._write

    def counting(params, tables, batch, key, **options):
        written.append(int(batch.active.sum()))
        return write(params, tables, batch, key, **options)

    monkeypatch.setitem(simulator.__dict__, "_write", counting)
    found = simulator.search(queries, contexts, k=2)
    assert written == [4] and found[0] == found[4] and len(found) == 5
    assert found[0] != found[2] and found[0] != found[3]  # another mode, another question: other draws
    assert simulator.search(queries[3:4], contexts[3:4], k=2) == [found[3]]  # whatever else is asked
    assert simulator.search([], [], k=1) == []
    with pytest.raises(ValueError, match="mispaired"):
        simulator.search(["a", "b"], contexts[:1], k=1)
