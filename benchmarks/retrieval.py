r"""BM25 over a million paragraphs: memory of building and searching, and time compared with bm25s alone.

    python benchmarks/retrieval.py [--documents 1000000] [--corpus FILE.jsonl.gz] [--folder /tmp/zsjax_retrieval]

The paragraphs are resampled from a small corpus: a title, the first half of one paragraph's words, and the second half
of another's. Building, searching and the comparison each run in a process of their own, so each has its own peak memory
(maximum resident set). The comparison runs ours and bm25s in turns on the same batches. It compares medians with the
faster of bm25s's two selections: numpy, and jax, its default if jax is installed. Both sides split queries into words.
Ours also reads the documents from disk; bm25s returns their numbers only.
"""

import argparse
import json
import pathlib
import random
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
BATCH, BATCHES, K = 64, 5, 5


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--corpus", default=str(ROOT / "zsjax/data/assets/real/paragraphs.jsonl.gz"))
    parser.add_argument("--questions", default=str(ROOT / "zsjax/data/assets/real/questions.jsonl.gz"))
    parser.add_argument("--folder", type=pathlib.Path, default=pathlib.Path("/tmp/zsjax_retrieval"))
    parser.add_argument("--phase", choices=("build", "search", "compare"))
    options = parser.parse_args()
    if options.phase:
        print(json.dumps(globals()[options.phase](options)))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    resample(options)
    for phase in ("build", "search", "compare"):
        done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--phase", phase], check=True, text=True,
                              stdout=subprocess.PIPE)
        print(phase, done.stdout.strip().splitlines()[-1], flush=True)


def resample(options):
    from zsjax.data import load_corpus

    paragraphs = [(d.title, d.text.split()) for d in load_corpus(options.corpus)]
    rng = random.Random(0)
    with open(options.folder / "corpus.jsonl", "w", encoding="utf-8") as file:
        for number in range(options.documents):
            (title, first), (_, second) = rng.choices(paragraphs, k=2)
            text = " ".join(first[:len(first) // 2] + second[len(second) // 2:])
            file.write(json.dumps({"id": str(number), "title": title, "text": text}, ensure_ascii=False) + "\n")


def peak_gb():
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def build(options):
    from zsjax.data import load_corpus
    from zsjax.search import BM25

    start = time.perf_counter()
    index = BM25.from_documents(load_corpus(options.folder / "corpus.jsonl"))
    built = time.perf_counter()
    index.save(options.folder / "index")
    return {"documents": len(index), "build_s": round(built - start, 1), "save_s": round(time.perf_counter() - built, 1),
            "peak_gb": peak_gb()}


def batches(options):
    from zsjax.data import load_questions

    questions = [q.question for q in load_questions(options.questions)]
    return [[questions[i % len(questions)] for i in range(b * BATCH, (b + 1) * BATCH)] for b in range(BATCHES)]


def search(options):
    from zsjax.search import BM25

    start = time.perf_counter()
    engine = BM25.load(options.folder / "index")
    loaded = time.perf_counter() - start
    times = []
    for batch in batches(options):
        start = time.perf_counter()
        found = engine.search(batch, None, k=K)
        times.append(time.perf_counter() - start)
        assert all(len(documents) == K for documents in found)
    return {"load_s": round(loaded, 1), "batch_of_64_s": round(statistics.median(times), 2), "peak_gb": peak_gb()}


def compare(options):
    import bm25s

    from zsjax.search import BM25

    engine = BM25.load(options.folder / "index")
    direct = bm25s.BM25.load(options.folder / "index", mmap=True, load_corpus=False)
    seconds, worst = {"ours": [], "bm25s_numpy": [], "bm25s_auto": []}, 0.0

    def timed(name, function, *args, **options):
        start = time.perf_counter()
        result = function(*args, **options)
        seconds[name].append(time.perf_counter() - start)
        return result

    def retrieve(batch, backend):
        words = bm25s.tokenize(batch, stopwords="en", show_progress=False)
        return direct.retrieve(words, k=K, show_progress=False, backend_selection=backend).scores

    for batch in batches(options):
        found = timed("ours", engine.search, batch, None, k=K)
        scores = timed("bm25s_numpy", retrieve, batch, "numpy")
        timed("bm25s_auto", retrieve, batch, "auto")
        worst = max(worst, max(abs(document.score - score) / score for row, best in zip(found, scores, strict=True)
                               for document, score in zip(row, best, strict=False)))  # ours leaves out a score of 0
    medians = {f"{name}_s": round(statistics.median(values), 3) for name, values in seconds.items()}
    ratio = medians["ours_s"] / min(medians["bm25s_numpy_s"], medians["bm25s_auto_s"])
    return {**medians, "ratio": round(ratio, 3), "largest_score_difference": float(worst)}


if __name__ == "__main__":
    main()
