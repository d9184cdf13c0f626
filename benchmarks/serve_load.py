r"""`serve-corpus` under load: throughput, latency and memory with many clients, beside bm25s used directly.

    python benchmarks/serve_load.py [--documents 1000000] [--clients 1 16 64 256 1024] [--seconds 20]

The paragraphs and the index are those of retrieval.py. The server runs in a process of its own. A client sends one query,
waits for the reply and sends the next, on a connection that it keeps. The server keeps 1,024 connections; more clients wait.
bm25s answers the same queries one by one, without documents, by each of its selections (numpy, and jax, its default where
jax is installed): what the search alone costs. Both sides may use the same cores, but bm25s uses about one, the server up to
four. Latency is what a client waits, so it grows with the clients once the cores are busy. Prints a JSON line for the index,
for bm25s, and for each number of clients. A request that is refused, or without reply for five minutes, is an error: exit
code 1.
"""

import argparse
import asyncio
import json
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
K, WAIT = 3, 300.0  # documents of a reply; seconds that a client waits for it
SERVE = """
import sys
from zsjax.search import BM25
from zsjax.search.server import RetrievalServer
with RetrievalServer(BM25.load(sys.argv[1]), port=0) as server:
    print(server.server_address[1], flush=True)
    server.serve_forever()
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--corpus", default=str(ROOT / "zsjax/data/assets/real/paragraphs.jsonl.gz"))
    parser.add_argument("--questions", default=str(ROOT / "zsjax/data/assets/real/questions.jsonl.gz"))
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("/tmp/zsjax_serve_load"))
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16, 64, 256, 1024])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--selections", nargs="*", default=["numpy", "jax"], help="of bm25s, used directly")
    options = parser.parse_args()
    # A client and the server take a file descriptor each.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    prepare(options)
    print(json.dumps({"documents": indexed(options), "cores": len(os.sched_getaffinity(0))}), flush=True)
    for selection in options.selections:
        print(json.dumps(direct(options, selection)), flush=True)
    if lost := sum(found["refused"] + found["lost"] for found in serve(options)):
        sys.exit(f"error: {lost} requests were refused or lost")


def serve(options):
    """Starts a server, prints and yields the figures of each number of clients."""
    if not options.clients:
        return
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(options.folder / "index")], text=True, cwd=ROOT,
                              stdout=subprocess.PIPE)
    try:
        port = int(server.stdout.readline())
        for clients in options.clients:
            found = asyncio.run(load(options, port, clients)) | memory_of(server.pid)
            print(json.dumps(found), flush=True)
            yield found
    finally:
        server.kill()
        server.wait()


def prepare(options):
    """The corpus and the index, unless they are there with as many documents."""
    import retrieval

    options.folder.mkdir(parents=True, exist_ok=True)
    if indexed(options) != options.documents:
        shutil.rmtree(options.folder / "index", ignore_errors=True)
        retrieval.resample(options)
        print(json.dumps(retrieval.build(options)), flush=True)


def indexed(options) -> int:
    """How many documents the folder's index has; 0 without one."""
    manifest = options.folder / "index" / "manifest.json"
    return json.loads(manifest.read_text())["num_documents"] if manifest.exists() else 0


def questions(options) -> list[str]:
    from zsjax.data import load_questions

    return [question.question for question in load_questions(options.questions)]


async def load(options, port: int, clients: int) -> dict:
    """The figures of `clients` clients for options.seconds, which begin when each has had one reply."""
    asked, latencies, refused, lost = questions(options), [], [], []
    new, begun = clients, 0.0

    async def client(number: int):
        nonlocal new, begun
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        at = number * 7919
        while not lost and (new or time.perf_counter() < begun + options.seconds):
            start = time.perf_counter()
            try:
                status = await asyncio.wait_for(ask(reader, writer, asked[at % len(asked)]), WAIT)
            except (TimeoutError, asyncio.IncompleteReadError, ConnectionError) as error:
                lost.append(repr(error))
                break
            if status != 200:
                refused.append(status)
            if not new and start >= begun:
                latencies.append(time.perf_counter() - start)
            if at == number * 7919:
                new -= 1
                begun = time.perf_counter()
            at += 1
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    return {"clients": clients, "requests": len(latencies), "refused": len(refused), "lost": len(lost),
            **rates(latencies, time.perf_counter() - begun)}


def rates(latencies: list[float], seconds: float) -> dict:
    """Requests a second, and the latency that a half and 99 % of the requests stayed within."""
    ranked = sorted(latencies) or [0.0]
    return {"requests_per_s": round(len(latencies) / seconds, 1),
            **{f"p{share}_ms": round(1e3 * ranked[int(share / 100 * (len(ranked) - 1))], 1) for share in (50, 99)}}


async def ask(reader, writer, query: str) -> int:
    """Sends a query and reads the reply; its status."""
    body = json.dumps({"queries": [query], "topk": K, "return_scores": True}).encode()
    writer.write(b"POST /retrieve HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    size = int(head.partition(b"content-length:")[2].split()[0])
    await reader.readexactly(size)
    return int(head.split()[1])


def memory_of(pid: int) -> dict:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("VmHWM", "RssAnon"))}
    return {"server_peak_mb": kilobytes["VmHWM"] >> 10, "server_anonymous_mb": kilobytes["RssAnon"] >> 10}


def direct(options, selection: str) -> dict:
    """bm25s on the same index and queries, one query a call, numbers of documents only."""
    import bm25s

    index = bm25s.BM25.load(options.folder / "index", mmap=True, load_corpus=False, show_progress=False)
    asked, latencies = questions(options), []

    def search(question):
        words = bm25s.tokenize([question], stopwords="en", return_ids=False, show_progress=False)
        known = [word for word in words[0] if word in index.vocab_dict]
        if known:
            index.retrieve([known], k=K, show_progress=False, backend_selection=selection)

    search(asked[0])
    begun = time.perf_counter()
    while (start := time.perf_counter()) < begun + options.seconds:
        search(asked[(1 + len(latencies)) % len(asked)])
        latencies.append(time.perf_counter() - start)
    return {"bm25s": selection, "requests": len(latencies), **rates(latencies, time.perf_counter() - begun)}


if __name__ == "__main__":
    main()
