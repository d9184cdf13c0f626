"""What `benchmarks/serve_load.py` counts: every client has a reply before it begins, and nothing that is lost passes."""

import argparse
import asyncio

import pytest

from benchmarks import serve_load
from tests.environment import ROOT

OPTIONS = argparse.Namespace(questions=str(ROOT / "zsjax/data/assets/real/questions.jsonl.gz"), seconds=0.3)


def loaded(reply, clients=8):
    """The figures of some clients of a server that answers its n-th request with reply(n): seconds to wait, bytes."""
    count = 0

    async def serve(reader, writer):
        nonlocal count
        while head := await reader.readline():
            while (line := await reader.readline()) != b"\r\n":
                head = line if line.lower().startswith(b"content-length") else head
            await reader.readexactly(int(head.split()[-1]))
            count += 1
            seconds, text = reply(count)
            await asyncio.sleep(seconds)
            writer.write(text)
            if not text:
                break
        writer.close()

    async def both():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        found = await serve_load.load(OPTIONS, server.sockets[0].getsockname()[1], clients)
        server.close()
        return found

    return asyncio.run(both())


def text(status):
    return f"HTTP/1.1 {status} x\r\nContent-Length: 2\r\n\r\n{{}}".encode()


def test_what_is_served_refused_and_lost(monkeypatch):
    found = loaded(lambda number: (0.02, text(200)))
    assert found["refused"] == found["lost"] == 0 and 8 < found["requests"] < 200
    assert 20 <= found["p50_ms"] <= found["p99_ms"]
    found = loaded(lambda number: (0.02, text(503 if number % 5 == 0 else 200)))
    assert found["refused"] > 1 and found["lost"] == 0
    assert loaded(lambda number: (0.02, b"" if number == 20 else text(200)))["lost"] == 1
    monkeypatch.setattr(serve_load, "WAIT", 0.2)
    assert loaded(lambda number: (5.0 if number == 20 else 0.02, text(200)))["lost"] == 1


def test_the_clock_begins_when_every_client_has_had_a_reply():
    found = loaded(lambda number: (0.6 if number == 1 else 0.02, text(200)))
    assert found["requests"] < 8 * 0.3 / 0.02 + 9  # of 0.3 s, not of 0.9 s


def test_rates():
    found = serve_load.rates([i / 1000 for i in range(100, 0, -1)], 2.0)
    assert found == {"requests_per_s": 50.0, "p50_ms": pytest.approx(50), "p99_ms": pytest.approx(99)}
