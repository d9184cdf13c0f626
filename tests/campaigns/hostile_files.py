"""Valid files of each kind that zsjax reads, small, to be damaged by the campaign of hostile input."""

import gzip
import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet

QUESTIONS = [
    {"id": "1", "question": "Who wrote it?", "golden_answers": ["Jo"], "metadata": {"split": "dev", "hops": 2}},
    {"_id": "2", "question": "Where?", "answer": {"value": "Rome", "aliases": ["Roma"]}, "extra_info": {"index": 3}},
    {"data_source": "nq", "prompt": [{"role": "user", "content": "Question: who?"}],
     "reward_model": {"ground_truth": {"target": ["a", "b"]}}, "extra_info": {"index": 3, "split": "dev"}}]
DOCUMENTS = [{"id": "0", "title": "T", "text": "ab cd"}, {"id": "1", "contents": '"T"\nab cd ef'},
             {"document": {"title": "A", "contents": '"A"\nab cd'}, "score": 1.0}]
SIMULATOR_ROWS = [{"messages": [
    {"role": "user", "content": "Generate five useful documents.\nquestion: who? whose answer is Jo\nQuery: who"},
    {"role": "assistant", "content": "Doc 1: a\nDoc 2: b"}]}]
RETRIEVED = {"result": [[{"document": {"id": "1", "contents": '"A"\na', "title": "A", "text": "a"}, "score": 1.0}]] * 2}
CHAT = {"id": "x", "choices": [{"finish_reason": "stop", "message": {
    "role": "assistant", "content": "Doc 1: A. a\nDoc 2: B. b", "reasoning_content": None, "refusal": None}}]}
WEB = {"search_metadata": {"status": "Success"}, "organic_results": [{"position": 1, "title": "T", "snippet": "s"}] * 2}
REQUEST = {"queries": ["a", "b"], "topk": 2, "return_scores": True}
TEMPLATE = {"prompt": "Q: {question}\n", "information_open": "\n<information>\n", "hint": "\nSearch.\n"}
PROMPT = b"Write {num_documents} {mode} documents for {question} ({answers}).\nQuery: {query}\nDoc 1:"
TRAJECTORY = {
    "id": "q1", "question": "Question?", "golden_answers": ["gold"], "answer": "a", "status": "answered",
    "search_status": ["ok", "failed"], "noisy": [True, False], "num_searches": 2, "reward": 0.5, "em": 0.0, "f1": 0.5,
    "data_set": "nq", "segments": [{"role": "prompt", "text": "Question?\n"}, {"role": "policy", "text": "<search> x"},
                                   {"role": "document", "text": "Doc 1: x"}]}
METRICS = [{"stage": "train", "step": 1, "reward": 0.1, "em": 0.0, "kl": None, "time/step": 1.0, "used/searches": 3},
           {"stage": "tune_simulator", "step": 1, "loss": 2.0}, {"stage": "evaluate", "step": 0, "time/step": 2.0}]
EVALUATION = [{"name": "after training", "hops": "all", "data_set": "nq", "n": 10, "em": 0.5, "em_se": 0.03, "f1": 0.6,
               "contains": 0.5, "contains_se": 0.02, "searches": 1.25, "evaluation": "after", "failed_searches": 0}]
KEPT = {"part": "before", "title": "before training", "number": 1, "how": {"seed": 0}, "searches": 20, "failed_searches": 0,
        "subject": {"role": "base", "source": "random", "fingerprint": "0"}, "rows": EVALUATION}
GATES = [{"gate": "reading", "em": 0.97, "passed": True}, {"gate": "simulator", "kind": "right", "useful": 0.9}]


def json_lines(rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def row_file(rows, ending: str) -> bytes:
    """Rows as .jsonl, .jsonl.gz or .parquet. Raises ValueError where they have no common type for parquet."""
    if ending == ".parquet":
        out = io.BytesIO()
        try:
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), out)
        except (pyarrow.ArrowException, UnicodeError, OverflowError, AttributeError, TypeError) as error:
            raise ValueError("no parquet") from error
        return out.getvalue()
    data = json_lines(rows)
    return gzip.compress(data, mtime=0) if ending.endswith("gz") else data


def gguf_file(path) -> int:
    """Writes a Qwen3 of one layer with a tokenizer; returns where its tensors begin, in bytes."""
    import gguf

    D, H, h, F, V = 32, 2, 16, 64, 300
    writer = gguf.GGUFWriter(path, "qwen3")
    for name, value in {"context_length": 64, "embedding_length": D, "block_count": 1, "feed_forward_length": F,
                        "attention.head_count": H, "attention.head_count_kv": 1, "attention.key_length": h}.items():
        writer.add_uint32(f"qwen3.{name}", value)
    writer.add_float32("qwen3.attention.layer_norm_rms_epsilon", 1e-6)
    writer.add_float32("qwen3.rope.freq_base", 1e4)
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 324))]
    words = ["<|endoftext|>", *letters[:V - 2], "ab"]
    for add, name, value in ((writer.add_string, "model", "gpt2"), (writer.add_string, "pre", "qwen2"),
                             (writer.add_array, "tokens", words), (writer.add_array, "merges", ["a b"]),
                             (writer.add_array, "token_type", [3] + [1] * (len(words) - 1)),
                             (writer.add_uint32, "eos_token_id", 0)):
        add(f"tokenizer.ggml.{name}", value)
    shapes = {"token_embd": (len(words), D), "output_norm": (D,), "blk.0.attn_norm": (D,), "blk.0.ffn_norm": (D,),
              "blk.0.attn_q": (H * h, D), "blk.0.attn_k": (h, D), "blk.0.attn_v": (h, D), "blk.0.attn_output": (D, H * h),
              "blk.0.attn_q_norm": (h,), "blk.0.attn_k_norm": (h,), "blk.0.ffn_gate": (F, D), "blk.0.ffn_up": (F, D),
              "blk.0.ffn_down": (D, F)}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.stat().st_size - sum(4 * int(np.prod(shape)) for shape in shapes.values())


def run_folder(folder) -> list[str]:
    """Writes what a run leaves for the report and the viewer; returns the files' names."""
    from zsjax.config import Config, to_json

    (folder / "trajectories").mkdir(parents=True)
    (folder / "evaluation").mkdir()
    texts = {"config.json": to_json(Config(name="x")).encode(), "metrics.jsonl": json_lines(METRICS),
             "evaluation.json": json.dumps(EVALUATION).encode(), "gates.json": json.dumps(GATES).encode(),
             "trajectories/train_000001.jsonl": json_lines([TRAJECTORY] * 3),
             "evaluation/after.jsonl": json_lines([TRAJECTORY]),
             "evaluation/before-12345678.json": json.dumps(KEPT).encode()}
    for name, data in texts.items():
        (folder / name).write_bytes(data)
    return list(texts)
