"""A simulator behind a chat server: what it is asked, how its replies are repaired, and what its failures become."""

import pytest
from faulty_server import serve

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
        hidden = simulator(server, reveal_gold=False)
        hidden.search(["who"], [SearchContext(QUESTIONS[0])], k=1)
        assert "Austen" not in str(server.requests[-1])


@pytest.mark.parametrize("text, documents", [
    ("Doc 1: A. a\nDoc 2: B. b\n", ["A. a", "B. b"]),
    ("1. A\n\n2) B\n3: C\n4. D", ["A", "B", "C"]),  # more than asked for
    ("Here:\n- A\n* B", ["Here:", "A", "B"]),
    ("**Doc 1:** A", ["A"]),
    ("<think> hm\nDoc 1: no </think>\nDocument 1: A", ["A"]),
    ("<think> never ends\nDoc 1: no", []),
    ("A\nA\nA\nA", ["A"]),  # an endless repetition is one document
    ("1984 is a novel.\n2001 is a film", ["1984 is a novel.", "2001 is a film"]),
    ("", []), ("...\n---", []),
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
