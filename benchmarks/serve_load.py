r"""`serve-corpus` under load: throughput, latency and memory with many clients, beside bm25s used directly.

    python benchmarks/serve_load.py [--documents 1000000] [--clients 1 16 64 256] [--seconds 20]

The paragraphs and the index are those of retrieval.py. The server runs in a process of its own. A client sends one query,
waits for the reply and sends the next, on a connection that it keeps. bm25s answers the same queries one by one, in a
process of its own, without documents: what the search alone costs on one core. Latency is what a client waits, so it
grows with the clients once the server's cores are busy. Prints a JSON line for each number of clients.
A refused request is an error, exit code 1.
"""

import argparse
import asyncio
import json
import pathlib
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
K = 3
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
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16, 64, 256])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--direct", action="store_true", help="bm25s alone (a process of this script's own)")
    options = parser.parse_args()
    if options.direct:
        print(json.dumps(direct(options)))
        return
    prepare(options)
    print(json.dumps({"documents": indexed(options)}), flush=True)
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--direct"], check=True, text=True,
                          stdout=subprocess.PIPE)
    print(done.stdout.strip().splitlines()[-1], flush=True)
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(options.folder / "index")], text=True, cwd=ROOT,
                              stdout=subprocess.PIPE)
    try:
        port = int(server.stdout.readline())
        refused = 0
        for clients in options.clients:
            found = asyncio.run(load(options, port, clients))
            refused += found["refused"]
            print(json.dumps(found | memory_of(server.pid)), flush=True)
    finally:
        server.kill()
    if refused:
        sys.exit(f"error: {refused} requests were refused")


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
    """The figures of `clients` clients for options.seconds, after one request of each that is not counted."""
    asked, latencies, refused = questions(options), [], []

    async def client(number: int):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        at, end = number * 7919, None
        while end is None or time.perf_counter() < end:
            begun = time.perf_counter()
            status = await ask(reader, writer, asked[at % len(asked)])
            if end is None:
                end = time.perf_counter() + options.seconds
            else:
                latencies.append(time.perf_counter() - begun)
            if status != 200:
                refused.append(status)
            at += 1
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    latencies.sort()
    return {"clients": clients, "requests": len(latencies), "refused": len(refused),
            "requests_per_s": round(len(latencies) / (time.perf_counter() - begun), 1),
            "p50_ms": round(1e3 * latencies[len(latencies) // 2], 1),
            "p99_ms": round(1e3 * latencies[int(0.99 * (len(latencies) - 1))], 1)}


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


def direct(options) -> dict:
    """bm25s on the same index and queries, one query a call, numbers of documents only."""
    import bm25s

    index = bm25s.BM25.load(options.folder / "index", mmap=True, load_corpus=False, show_progress=False)
    asked, begun, count = questions(options), time.perf_counter(), 0
    while time.perf_counter() < begun + options.seconds:
        words = bm25s.tokenize([asked[count % len(asked)]], stopwords="en", return_ids=False, show_progress=False)
        known = [word for word in words[0] if word in index.vocab_dict]
        if known:
            index.retrieve([known], k=K, show_progress=False, backend_selection="numpy")
        count += 1
    seconds = time.perf_counter() - begun
    return {"bm25s": "direct", "requests_per_s": round(count / seconds, 1), "mean_ms": round(1e3 * seconds / count, 2)}


if __name__ == "__main__":
    main()
