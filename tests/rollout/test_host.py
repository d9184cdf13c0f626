"""Searches beside the policy's work: no trajectory depends on how long they take, and they do overlap."""

import collections
import dataclasses
import os
import random
import signal
import threading
import time

import jax
import numpy as np
import pytest

from tests.small_models import (
    NUM_DOCUMENTS,
    PARAMS,
    POLICY,
    TOKENIZER,
    Library,
    make_config,
    searching,
)
from zsjax import types
from zsjax.config import MeshConfig
from zsjax.parallel import stops
from zsjax.parallel.mesh import make_mesh, simulator_mesh, split_devices
from zsjax.rollout import make_rollout, running
from zsjax.rollout.searching import Asked, TextSearch
from zsjax.search import BudgetSpent, Document, SearchContext
from zsjax.search.engine import as_engine
from zsjax.types import Question

ROWS, GROUP = 4, 2
QUESTIONS = [Question(str(i), f"What is the mother of {name}?", ("Kara",)) for i, name in enumerate(
    ("Kara", "Lonor Cruwick", "Kara Lonor", "Cruwick", "Lonor", "Kara Cruwick"))]
BUSY = dict(rows=ROWS, decode_threshold=0.7, visit_every=2)


def draws(episode):
    return 2 + 5 * (episode % 3)


def rollout_of(engine, mesh=None, watch=None, **rollout):
    config = make_config(prefill_batch=2, **rollout)
    return make_rollout(POLICY, engine, TOKENIZER, config, mesh, group_size=GROUP, watch=watch, sampler=searching(draws))


def play(rollout, questions=QUESTIONS):
    ids = [int(q.id) for q in questions]
    played = rollout.play(PARAMS, questions, noise=0.5, key=jax.random.key(4), group_ids=ids)
    return jax.device_get((played.episodes, played.work))


def same(a, b):
    for field in dataclasses.fields(types.Episodes):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


class Noisy(Library):
    """Obeys the noise: what it finds says which mode it was asked for. Counts who searches at a time."""

    def obeys_noise(self, queries, contexts):
        return [True] * len(queries)

    def __init__(self, sleep=lambda: None):
        super().__init__()
        self.sleep, self.searching, self.most = sleep, 0, 0

    def search(self, queries, contexts, *, k):
        self.searching += 1
        self.most = max(self.most, self.searching)
        self.sleep()
        self.seen += [(c.question.id, q, c.noisy) for q, c in zip(queries, contexts, strict=True)]
        self.searching -= 1
        return [[Document("", f"{'rival' if c.noisy else 'spouse'} of {c.question.question[22:]}")] * k for c in contexts]


@pytest.fixture(scope="module")
def continuous():
    """A function (engine, search_batches) -> (episodes, work) of one rollout, whose programs are compiled once."""
    rollout = rollout_of(Noisy(), **BUSY)

    def play_with(engine, batches=1):
        rollout._player.search.engine, rollout._player.search_batches = as_engine(engine), batches
        return play(rollout)

    return play_with


def test_no_trajectory_depends_on_how_long_a_search_takes(continuous):
    lockstep = rollout_of(Noisy())
    size = ROWS // GROUP
    parts = [play(lockstep, QUESTIONS[i:i + size])[0] for i in range(0, len(QUESTIONS), size)]
    expected = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    assert expected.noisy.any() and not expected.noisy[expected.num_searches > 0].all()
    dice = random.Random(0)
    for batches in (1, 2):
        engine = Noisy()
        for engine.sleep in (lambda: None, lambda: time.sleep(0.2 * dice.random() ** 4)):
            episodes, work = continuous(engine, batches)
            same(episodes, expected)
            assert work.policy_rows == ROWS and (episodes.roles == types.POLICY).sum() <= work.policy_steps[0] * ROWS
        assert engine.most <= batches  # the engine is called from at most `batches` threads


def test_the_policy_decodes_while_an_engine_searches():
    """The first search ends only after other rows have written more: lockstep would wait for it without end."""
    written, begun, wrote_on = [0], threading.Event(), threading.Event()

    def watch(state):
        tokens = int((np.asarray(state.roles) == types.POLICY).sum())
        if begun.is_set() and tokens > written[0]:
            wrote_on.set()
        written[0] = tokens

    class Waiting(Noisy):
        def search(self, queries, contexts, *, k):
            begun.set()
            assert wrote_on.wait(timeout=300), "nobody decoded in the meantime"
            return super().search(queries, contexts, k=k)

    episodes, _ = play(rollout_of(Waiting(), watch=watch, **BUSY), QUESTIONS[:3])
    assert episodes.num_searches.sum() > 0


def test_what_a_search_raises_comes_out(monkeypatch, continuous):
    hangs = threading.Event()

    class Broken:
        def search(self, queries, contexts, *, k):
            if isinstance(self.error, Exception):
                raise self.error
            hangs.wait()

    engine = Broken()
    engine.error = ConnectionResetError("gone")
    episodes, _ = continuous(engine)
    assert episodes.num_searches.all()
    assert set(episodes.search_status[episodes.query_span[:, :, 1] > 0]) == {types.SEARCH_FAILED}
    engine.error = BudgetSpent("no money")
    with pytest.raises(BudgetSpent, match="no money"):
        continuous(engine)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    engine.error = None
    monkeypatch.setattr(running.concurrent.futures, "wait", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):  # though the search never ends
            continuous(engine)
    finally:
        hangs.set()


def test_a_signal_waits_for_running_searches(continuous):
    """They may have been paid for."""
    class Paid:
        ended = False

        def search(self, queries, contexts, *, k):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)
            self.ended = stops.is_ending()
            return [[] for _ in queries]

    engine = Paid()
    with pytest.raises(stops.Stopped), stops.handled():
        continuous(engine)
    assert engine.ended and not stops.is_ending()


@pytest.mark.parametrize("by_call", [False, True])
def test_the_same_search_is_sent_once(by_call):
    class Engine(Noisy):
        def search(self, queries, contexts, *, k):
            assert len(queries) == len(contexts)
            return super().search(queries, contexts, k=k)

    engine = Engine()
    engine.by_call = by_call
    search = TextSearch(engine, TOKENIZER, "* {text}", num_documents=NUM_DOCUMENTS, max_document_tokens=12)
    find, at_a_time = search.begin(QUESTIONS, jax.random.key(0), 8)
    ids = TOKENIZER.encode("voice of Kara")
    noisy = np.array([[True, False], [True, False], [True, True], [False, False], [True, True]])
    question = np.array([0, 0, 0, 1, 1])
    zeros = np.zeros(5, int)
    found = find(Asked(row=np.arange(5), turn=zeros, place=zeros, action=zeros, episode_id=np.arange(5), question=question,
                       query=(np.tile(ids, (5, 1)).astype(np.int32), np.full(5, len(ids))), noisy=noisy))
    sent = collections.Counter((id, noisy) for id, _, noisy in engine.seen)
    once = {("0", True): 1, ("0", False): 1, ("1", False): 1, ("1", True): 1}
    assert sent == (once | {("0", True): 3, ("0", False): 2} if by_call else once) and at_a_time == 8
    np.testing.assert_array_equal(found.noisy, noisy)

    def text(row, i):
        return TOKENIZER.decode(found.replies.tokens[row, i, :found.replies.lengths[row, i]].tolist())

    for row, i in np.ndindex(noisy.shape):
        assert ("rival" if noisy[row, i] else "spouse") in text(row, i)
    # Whoever asks the same gets the same object.
    contexts = [SearchContext(QUESTIONS[0], call=(turn,)) for turn in range(2)]
    one, other = search._ask(["q", "q"], contexts, np.ones((2, NUM_DOCUMENTS), bool), None)
    assert (one is other) != by_call


def test_a_simulator_on_its_own_devices_writes_the_same(monkeypatch, simulator):
    """Two devices for the policy and two for the simulator, two programs; or two for both, in one program."""
    config = make_config(prefill_batch=2, simulator_slots=2, **BUSY)
    config = dataclasses.replace(config, search=dataclasses.replace(config.search, noise_per="document"))
    questions = QUESTIONS + [dataclasses.replace(q, id=str(6 + i)) for i, q in enumerate(QUESTIONS)]

    def episodes_on(mesh_config, devices):
        settings = dataclasses.replace(config, mesh=mesh_config)
        monkeypatch.setattr(jax, "devices", lambda: devices)
        mesh = make_mesh(mesh_config)
        rollout = make_rollout(POLICY, simulator, TOKENIZER, settings, mesh, group_size=GROUP, sampler=searching(draws))
        played = rollout.play(PARAMS, questions, noise=0.5, key=jax.random.key(4))
        return jax.device_get((played.episodes, played.work))

    devices = jax.devices()
    together, _ = episodes_on(MeshConfig(), devices[:2])
    apart, work = episodes_on(MeshConfig(simulator_devices=2), devices[:4])
    same(apart, together)
    assert apart.num_searches.sum() > 0 and apart.noisy.any()
    assert work.simulator_steps.sum() > 0 and (work.simulator_slots == 2).all()


def test_devices_are_split_host_by_host():
    Device = collections.namedtuple("Device", "id process_index")
    devices = [Device(i, i // 4) for i in range(8)]
    policy, theirs = split_devices(MeshConfig(simulator_devices=1), devices)
    assert [d.id for d in policy] == [0, 1, 2, 4, 5, 6] and [d.id for d in theirs] == [3, 7]
    with pytest.raises(ValueError, match="simulator_devices=4 leaves none"):
        split_devices(MeshConfig(simulator_devices=4), devices)
    assert make_mesh(MeshConfig(simulator_devices=2)).shape == {"data": 6, "fsdp": 1, "tensor": 1}
    own = simulator_mesh(MeshConfig(simulator_devices=2, simulator_tensor=2))
    assert own.shape == {"data": 1, "fsdp": 1, "tensor": 2} and list(own.devices.flat) == jax.devices()[-2:]
    with pytest.raises(ValueError, match="simulator_tensor=2 does not divide the 3"):
        simulator_mesh(MeshConfig(simulator_devices=3, simulator_tensor=2))
