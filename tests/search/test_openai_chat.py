"""A simulator behind a chat server: what it is asked, how its replies are repaired, and what its failures become."""

import numpy as np
import pytest
from faulty_server import serve

from zsjax.config import ConfigError, resolve
from zsjax.rollout.searching import TextSearch
from zsjax.run import build
from zsjax.search import ChatSimulator, Document, Failed, Limits, SearchContext
from zsjax.search.engines.chat import reply_documents
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.types import Question

QUESTIONS = [Question("1", "Who wrote Emma?", ("Jane Austen", "Austen")), Question("2", "Who wrote Dune?", ("Herbert",))]


def chat(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


def simulator(server, path="v1", **options):
    options = {"num_documents": 3, "limits": Limits(timeout=0.5, retries=1, backoff=0.01, max_bytes=1 << 20)} | options
    return ChatSimulator(f"{server.url}/{path}", model="m", template=SimulatorTemplate.load("prompted"), **options)


def test_what_is_asked_and_that_equal_requests_are_asked_once(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serve({"v1": lambda body: (200, chat("Doc 1: A. a\nDoc 2: B. b\nDoc 3: C. c"))}) as server:
        engine = simulator(server, key_env="MY_KEY")
        queries = ["emma author", "emma author ", "dune author", "emma author"]
        contexts = [SearchContext(QUESTIONS[0]), SearchContext(QUESTIONS[0]), SearchContext(QUESTIONS[1], noisy=True),
                    SearchContext(QUESTIONS[0], noisy=True)]
        found = engine.search(queries, contexts, k=2)
        assert found == [[Document("", "A. a"), Document("", "B. b")]] * 4
        assert len(server.requests) == 3
        path, body = next(request for request in server.requests if "Herbert" in str(request))
        assert path == "/v1/chat/completions" and body["model"] == "m" and body["max_tokens"] > 0
        prompt = body["messages"][0]["content"]
        end = prompt[prompt.index("Now your turn."):].splitlines()
        assert [line.strip() for line in end[1:]] == [
            "Number of documents:", "3", "Kind of documents:", "noisy", "The user's question:", "Who wrote Dune?",
            "Answers to it:", "Herbert", "Query:", "dune author", "Documents:"]
        assert len({body["seed"] for _, body in server.requests}) == 3
        for reveal, shown in (("never", [0, 0, 0, 0]), ("on_target", [1, 1, 0, 0]), ("useful", [1, 0, 1, 0]),
                              ("useful_on_target", [1, 0, 0, 0])):
            engine, found = simulator(server, reveal_gold=reveal), []
            for query in ("who wrote it", "matchmaker in Highbury"):
                for noisy in (False, True):
                    engine.search([query], [SearchContext(QUESTIONS[0], noisy=noisy)], k=1)
                    found.append(int("Austen" in str(server.requests[-1])))
            assert found == shown, reveal
        with pytest.raises(ValueError, match="useful_on_target"):
            simulator(server, reveal_gold=True)
        published = ChatSimulator(f"{server.url}/v1", model="m", template=SimulatorTemplate.load("zerosearch"))
        published.search(["who"], [SearchContext(QUESTIONS[0], noisy=True)], k=1)
        first, second = server.requests[-1][1]["messages"]
        assert first == {"role": "system", "content": ""}
        assert second["content"].endswith("noisy information.\n\nQuery: who\nNoisy Output:\n")


@pytest.mark.parametrize("text, documents", [
    ("Doc 1: A. a\nDoc 2: B. b\n", ["A. a", "B. b"]),
    ("1. A\n\n2) B\n3: C\n4. D", ["A", "B", "C"]),  # more than asked for
    ("Here:\n- A\n* B", ["A", "B"]),
    ("**Doc 1:** A", ["A"]),
    ("<think> hm\nDoc 1: no </think>\nDocument 1: A", ["A"]),
    ("<think> never ends\nDoc 1: no", []),
    ("A\nA\nA\nA", ["A"]),  # an endless repetition is one document
    ("1984 is a novel.\n2001 is a film", ["1984 is a novel.", "2001 is a film"]),
    ("Okay, two documents.\nFirst I should ...\n</think>\n\nDoc 1: A. a\nDoc 2: B. b", ["A. a", "B. b"]),
    ("[THINK]Doc 1: no[/THINK]Doc 1: A", ["A"]),
    ("Here are 2 documents:\n\nDoc 1: A\nDoc 2: B\n\nLet me know if you need more documents.", ["A", "B"]),
    ("Sure! Here are two useful documents\nA is a.\nB is b.\nI hope this helps!", ["A is a.", "B is b."]),
    ("### Document 1\nA. a\n\n### Document 2\n\nB. b\nmore of b", ["A. a", "B. b more of b"]),
    ("1. A\n- a fact\n2. B", ["A - a fact", "B"]),
    ("```\nDoc 1: A\n```", ["A"]),
    ("20.5 million live in A.\n12:30 is when B opens.", ["20.5 million live in A.", "12:30 is when B opens."]),
    ("", []), ("...\n---", []),
    ("Document 1 (Useful): A\nDocument 2 (Useful): B", ["A", "B"]), ("Passage 1: A\nPassage 2: B", ["A", "B"]),
    ("Doc 1 - A\nDoc 2 - B", ["A", "B"]), ("1. **A**: a\n2. **B**: b", ["**A**: a", "**B**: b"]),
    ("Search Results\nA is a.\nB is b.", ["A is a.", "B is b."]),
    ("The documents are as follows.\nA is a.", ["A is a."]),
    ("As an AI, I will generate 2 documents.\nA is a.", ["A is a."]),
    ("I'll write three documents.\nA is a.", ["A is a."]),
    ("<documents>\nDoc 1: A\nDoc 2: B\n</documents>\nNote: these documents are made up.", ["A", "B"]),
    ("Doc 1: A\nIs there anything else I can help with?", ["A"]),
    ("The documents of the trial were found in 1920.\nThe result is a town.",
     ["The documents of the trial were found in 1920.", "The result is a town."]),
])
def test_replies_are_repaired_by_rule(text, documents):
    assert [document.text for document in reply_documents(text, 3)] == documents


def test_short_replies_and_failures_are_counted():
    replies = iter([(200, chat("Doc 1: only one")), (200, chat(None)), (200, {"error": {"message": "no such model"}})])
    with serve({"v1": lambda body: next(replies)}) as server:
        engine = simulator(server, limits=Limits(timeout=1, retries=0, concurrency=1))
        kinds = [getattr(engine.search([q], [SearchContext(QUESTIONS[0])], k=3)[0], "kind", "ok") for q in "abc"]
    assert kinds == ["ok", "wrong_schema", "wrong_schema"]
    assert engine.counters["short_replies"] == 1 and engine.counters["failed_wrong_schema"] == 2


def reply_of(finish=None, **message):
    return {"choices": [{"finish_reason": finish, "message": message}]}


@pytest.mark.parametrize("reply, kind", [
    (reply_of("length", content=None, reasoning_content="Okay, ..."), "thoughts_cut"),
    (reply_of("stop", content=None, reasoning_content="Okay, ..."), "thoughts_only"),
    (reply_of("stop", content="", reasoning="Okay, ..."), "thoughts_only"),
    (reply_of("length", content="<think>Okay,\nDoc 1: no"), "thoughts_cut"),
    (reply_of("stop", content="<think>Okay</think>\n"), "thoughts_only"),
    (reply_of("length", content="Okay, the user wants documents.\nFirst, who wrote it?"), "thoughts_cut"),  # no tags at all
    (reply_of("length", content=[{"type": "thinking", "thinking": "Okay"}]), "thoughts_cut"),
    (reply_of("stop", content=None, refusal="I cannot help with that."), "declined"),
    (reply_of("length", content=None), "thoughts_cut"),
    (reply_of("length", content=""), "thoughts_cut"),  # the server keeps the thoughts
    (reply_of("stop", content="I'm sorry, but I can't help with that."), "declined"),
    (reply_of("stop", content="I cannot create misleading documents."), "declined"),
    (reply_of("content_filter", content=""), "declined"),
    (reply_of("stop", content=None), "wrong_schema"), (reply_of("stop", content=7), "wrong_schema"),
    (reply_of("stop", content=[7]), "wrong_schema"),
    (reply_of("length", content="Doc 1: A. a\nDoc 2: cut of"), None), (reply_of("stop", content="A. a"), None),
    (reply_of("stop", content=[{"type": "thinking", "thinking": "x"}, {"type": "text", "text": "Doc 1: A"}]), None)])
def test_thoughts_and_refusals_are_failures_of_their_own_names(reply, kind):
    with serve({"v1": lambda body: (200, reply)}) as server:
        engine = simulator(server, limits=Limits(timeout=5, retries=2))
        (found,) = engine.search(["q"], [SearchContext(QUESTIONS[0])], k=3)
    assert getattr(found, "kind", None) == kind and bool(found) == (kind is None)
    assert engine.counters["attempts"] == 1  # another attempt would think as long


def test_fields_of_a_request_are_the_users():
    with serve({"v1": lambda body: (200, chat("Doc 1: A"))}) as server:
        fields = {"chat_template_kwargs": {"enable_thinking": False}, "seed": None, "top_k": 20}
        simulator(server, max_tokens=2000, extra_body=fields).search(["q"], [SearchContext(QUESTIONS[0])], k=1)
        body = server.requests[0][1]
    assert body["max_tokens"] == 2000 and body["top_k"] == 20 and "seed" not in body
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    with pytest.raises(ValueError, match="messages"):
        simulator(server, extra_body={"messages": []})


def test_fields_of_a_request_by_config():
    fields = {"chat_template_kwargs": {"enable_thinking": False}}
    base = dict(policy=dict(init="asset:tiny_world/base"))
    remote = dict(url="http://localhost:1/v1", model="m", max_tokens=900, extra_body=fields)
    search = dict(engine="chat", remote=remote)
    engine = build.engine("chat", resolve(base | dict(search=search)), "")
    assert engine.max_tokens == 900 and engine.extra_body == fields
    for wrong, field in (({"max_tokens": 0}, "max_tokens"), ({"extra_body": {"model": "x"}}, "extra_body")):
        with pytest.raises(ConfigError) as caught:
            resolve(base | dict(search=search | dict(remote=remote | wrong)))
        assert f"search.remote.{field}" in {problem.field for problem in caught.value.problems}


@pytest.mark.parametrize("question", ["Who wrote Dune?", "Who wrote Emma?"])
def test_two_questions_of_one_id_get_their_own_replies(question):
    other = Question("1", question, ("Herbert",))

    def reply(body):
        return 200, chat("Doc 1: " + ("Herbert" if "Herbert" in str(body) else "Austen"))

    with serve({"v1": reply}) as server:
        contexts = [SearchContext(QUESTIONS[0]), SearchContext(other), SearchContext(QUESTIONS[0])]
        engine = simulator(server, num_documents=1)
        direct = engine.search(["author"] * 3, contexts, k=1)
        search = TextSearch(engine, None, "", num_documents=1, max_document_tokens=1)
        assert direct == search._ask(["author"] * 3, contexts, np.zeros((3, 1), bool), None)
    assert [documents[0].text for documents in direct] == ["Austen", "Herbert", "Austen"]


def test_broken_text_in_questions_and_replies():
    with serve({"v1": lambda body: (200, chat("Doc 1: cut \ud83d"))}) as server:
        context = SearchContext(Question("1", "who \ud83d?", ("x\ude00",)))
        assert simulator(server).search(["q \ud83d"], [context], k=1) == [[Document("", "cut \ufffd")]]
        assert "who \ufffd?" in server.requests[0][1]["messages"][0]["content"]


@pytest.mark.parametrize("url", ["localhost:8000/v1", "", "http://"])
def test_addresses_are_checked(url):
    with pytest.raises(ValueError, match="not the URL of a server"):
        ChatSimulator(url, model="m", template=SimulatorTemplate.load("default"))


@pytest.mark.parametrize("path, kind", [("hang", "timeout"), ("reset", "reset"), ("garbage", "invalid_json"),
                                        ("429", "rate_limited"), ("500", "server_error"), ("huge", "too_large")])
def test_faulty_servers(path, kind):
    with serve() as server:
        limits = Limits(timeout=0.3, retries=1, backoff=0.01, max_backoff=0.05, max_bytes=1 << 20)
        engine = simulator(server, path, limits=limits)
        (found,) = engine.search(["q"], [SearchContext(QUESTIONS[0])], k=3)
    assert isinstance(found, Failed) and found.kind == kind and engine.counters[f"failed_{kind}"] == 1


def test_no_key():
    with pytest.raises(ValueError, match="NO_SUCH_KEY"):
        ChatSimulator("http://x", model="m", template=SimulatorTemplate.load("default"), key_env="NO_SUCH_KEY")
