"""A retrieval server and a chat server whose faults follow a seed: what a request meets depends on its content alone."""

import collections
import dataclasses
import json
import random
import threading
import time

from tests.search.faulty_server import FaultyServer, Handler
from zsjax.search import BM25, registry
from zsjax.tiny_world import world

# What the server does -> the kind of failure that the client counts, and whether the client tries again.
FAULTS = {"hang": ("timeout", True), "drip": ("timeout", True), "drip_head": ("timeout", True), "reset": ("reset", True),
          "short": ("reset", True), "nothttp": ("reset", True), "429": ("rate_limited", True), "500": ("server_error", True),
          "404": ("client_error", False), "garbage": ("invalid_json", True),
          "deep": ("invalid_json", True), "huge": ("too_large", False), "gzip": ("too_large", False),
          "gzip_twice": ("wrong_schema", False), "schema": ("wrong_schema", False)}
OF_RETRIEVAL = {"half": ("wrong_schema", False)}
OF_CHAT = {"refusal": ("declined", False), "thoughts": ("thoughts_only", False), "half": (None, False)}
SLOW = ("hang", "drip", "drip_head")  # rarer: each attempt takes the whole time-out
DOCUMENTS = 3


class Script:
    """What each request meets, and how often it was met. Shared by the servers before and after a restart.

    Attributes:
      attempts: {fault: attempts that met it}; None: healthy.
      failed: {kind of failure: requests whose last attempt met it}, where each request makes all its attempts: one that is
        tried again makes two.
      restart_at: the attempt at which the server goes away for `away` seconds; 0: never.
    """

    def __init__(self, kind: str, seed: int, *, rate: float, restart_at: int = 0, away: float = 3.0):
        self.kind, self.seed, self.rate, self.restart_at, self.away = kind, seed, rate, restart_at, away
        self.faults = FAULTS | (OF_CHAT if kind == "chat" else OF_RETRIEVAL)
        self.attempts, self.failed, self.seen = collections.Counter(), collections.Counter(), collections.Counter()
        self.engine = BM25.from_documents(world.documents(world.worlds_of("tiny_world:train")))
        self.lock, self.restart = threading.Lock(), threading.Event()

    def fault_of(self, body) -> str | None:
        """The fault of a request, or None. Some are over at the next attempt."""
        content = json.dumps(body, sort_keys=True)
        draw = random.Random(f"{self.seed} {content}")
        with self.lock:
            self.seen[content] += 1
            number = self.seen[content]
            fault = draw.choice(list(self.faults)) if draw.random() < self.rate else None
            if fault in SLOW and draw.random() < 0.5:
                fault = "500"
            kind, again = self.faults[fault] if fault else (None, False)
            if again and draw.random() < 0.3 and number % 2 == 0:
                fault = None
            elif kind and (not again or number % 2 == 0):
                self.failed[kind] += 1
            self.attempts[fault] += 1
            if self.restart_at and self.attempts.total() == self.restart_at:
                self.restart.set()
        return fault

    @property
    def answered(self) -> int:
        """Requests that got documents, if only some."""
        return sum(count for fault, count in self.attempts.items() if fault is None or self.faults[fault][0] is None)

    def reply(self, body, half: bool = False):
        if self.kind == "http":
            found = self.engine.search(body["queries"], None, k=body["topk"])
            found = found[:len(found) // 2] if half else found
            return {"result": [[{"document": {"title": d.title, "text": d.text}, "score": d.score} for d in documents]
                               for documents in found]}
        found = self.engine.search([body["messages"][0]["content"]], None, k=1 if half else DOCUMENTS)[0]
        text = "\n".join(f"Doc {i}: {document.text}" for i, document in enumerate(found, 1))
        return chat(text or "Doc 1: nothing")


def http_without_breaker(setting):
    """The engine "http" whose every request is sent, however many have failed."""
    return _without_breaker("http", setting)


def chat_without_breaker(setting):
    """The engine "chat" whose every request is sent, however many have failed."""
    return _without_breaker("chat", setting)


def _without_breaker(name, setting):
    limits = dataclasses.replace(setting.limits, breaker_failures=0)
    return registry.find(name).factory(dataclasses.replace(setting, limits=limits))


def chat(text: str):
    return {"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": text}}]}


class ScriptedHandler(Handler):
    def handle(self):
        script = self.server.script
        _, body = self._read()
        fault = script.fault_of(body)
        if fault is None:
            return self._send(200, json.dumps(script.reply(body)).encode())
        getattr(self, f"do_{fault}")(*([body] if fault in ("half", "refusal", "thoughts") else []))

    def do_429(self):
        self._send(429, b"{}", extra="Retry-After: 1\r\n")

    def do_half(self, body):
        self._send(200, json.dumps(self.server.script.reply(body, half=True)).encode())

    def do_refusal(self, body):
        self._send(200, json.dumps(chat("I'm sorry, I can't help with that.")).encode())

    def do_thoughts(self, body):
        self._send(200, json.dumps(chat("<think>what might it be?</think>")).encode())


class Served:
    """A context: the script's server at `url`. It goes away and comes back on the same port if the script says so."""

    def __init__(self, script: Script):
        self.script, self.done = script, threading.Event()
        self.server = self._start(0)
        self.url = self.server.url + ("/v1" if script.kind == "chat" else "/retrieve")
        self.watcher = threading.Thread(target=self._watch, daemon=True)

    def _start(self, port):
        server = FaultyServer(port=port, handler=ScriptedHandler)
        server.script = self.script
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return server

    def _watch(self):
        while not self.done.wait(0.02):
            if self.script.restart.is_set():
                self.script.restart.clear()
                port = self.server.server_address[1]
                self._stop()
                time.sleep(self.script.away)
                self.server = self._start(port)

    def _stop(self):
        self.server.stop.set()
        self.server.shutdown()
        self.server.server_close()

    def __enter__(self):
        self.watcher.start()
        return self

    def __exit__(self, *exception):
        self.done.set()
        self.watcher.join()
        self._stop()
