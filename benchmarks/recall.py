"""Recall of BM25 on real questions, ours and bm25s alone, with the question as the only query.

    python benchmarks/recall.py --corpus wiki_paragraphs.jsonl.gz nq.jsonl hotpotqa.jsonl ...

answer@5: share of questions with a gold answer, as whole words, in one of the five best paragraphs. titles@5: mean share
of a question's annotated article titles among the five.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))


def main():
    import bm25s
    import numpy as np

    from zsjax.data import load_corpus, load_questions
    from zsjax.rewards import contains_match
    from zsjax.search import BM25

    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", required=True)
    parser.add_argument("questions", nargs="+")
    options = parser.parse_args()
    corpus = load_corpus(options.corpus)
    engine = BM25.from_documents(corpus)
    direct = bm25s.BM25()
    direct.index(bm25s.tokenize([f"{d.title} {d.text}" for d in corpus], show_progress=False), show_progress=False)
    for path in options.questions:
        questions = load_questions(path)
        asked = [q.question for q in questions]
        rows, _ = direct.retrieve(bm25s.tokenize(asked, show_progress=False), k=5, show_progress=False)
        found = {"ours": engine.search(asked, None, k=5), "bm25s": [[corpus[row] for row in best] for best in rows]}
        for name, results in found.items():
            answer = np.mean([any(contains_match(f"{d.title}\n{d.text}", q.golden_answers) for d in documents)
                              for documents, q in zip(results, questions, strict=True)])
            titles = [np.mean([title.lower() in {d.title.lower() for d in documents}
                               for title in q.metadata["supporting_titles"]])
                      for documents, q in zip(results, questions, strict=True) if q.metadata.get("supporting_titles")]
            shown = f"{np.mean(titles):.4f} (n={len(titles)})" if titles else "-"
            print(f"{pathlib.Path(path).stem:<12}{name:<7}"
                  f"n {len(questions)}  answer@5 {answer:.4f}  titles@5 {shown}", flush=True)


if __name__ == "__main__":
    main()
