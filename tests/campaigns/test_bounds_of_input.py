"""Small files that ask for much: each is refused at once, in one line, before memory or time are spent."""

import gzip
import json
import shutil
import struct

import pytest
from hostile_files import KEPT, QUESTIONS, TRAJECTORY, gguf_file, json_lines, run_folder

from zsjax import report
from zsjax.data import load_questions, load_tokenizer, row_files
from zsjax.data.assets import asset_path
from zsjax.errors import InputError
from zsjax.evaluation.kept_evaluations import Kept
from zsjax.models.checkpoints.gguf import import_gguf
from zsjax.models.checkpoints.hf import load_hf
from zsjax.monitor.writer import Writer
from zsjax.report.trajectory_index import TrajectoryIndex
from zsjax.search import BM25, Document
from zsjax.search.simulator.prompt import SimulatorTemplate


def refused(words, function, *arguments):
    with pytest.raises(InputError, match=words) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_lengths_in_a_gguf_header(tmp_path):
    """The package's reader would take 2^40 steps behind the end of the file, or make a model of 2^31 layers."""
    pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    gguf_file(path)
    data = path.read_bytes()

    def changed(key: bytes, offset: int, form: str, value: int):
        at = data.index(key) + len(key) + offset
        path.write_bytes(data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form):])
        return import_gguf, path, tmp_path / "out"

    # Behind a key: its type (4 bytes); of an array also the type of an entry (4) and the number of entries (8).
    for key in (b"tokenizer.ggml.token_type", b"tokenizer.ggml.tokens"):
        refused("m.gguf.*an array of 1099511627776 entries", *changed(key, 8, "<Q", 1 << 40))
        refused("m.gguf.*cut short or damaged", *changed(key, 8, "<Q", 1 << 20))
    refused("m.gguf: num_hidden_layers=2147483647 is more than", *changed(b"qwen3.block_count", 4, "<I", (1 << 31) - 1))
    for count in (8, 16):  # tensors, keys
        path.write_bytes(data[:count] + struct.pack("<Q", 1 << 50) + data[count + 8:])
        refused("m.gguf.*cut short or damaged", import_gguf, path, tmp_path / "out")


def test_numbers_in_json_that_size_a_table(tmp_path):
    shutil.copytree(asset_path("asset:real/policy"), tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    for field, value, words in (("num_hidden_layers", 10**9, "is more than 16384"),
                                ("rope_parameters", {"rope_theta": [1]}, r"rope_theta=\[1\] is not a number"),
                                ("rope_parameters", {"full_attention": {"factor": {}}}, "full_attention.factor=")):
        (tmp_path / "model/config.json").write_text(json.dumps(config | {field: value}))
        refused(words, load_hf, tmp_path / "model")
    shutil.copytree(asset_path("asset:tiny_world/tokenizer"), tmp_path / "tokenizer")
    spec = json.loads((tmp_path / "tokenizer/tokenizer.json").read_text())
    spec["model"]["vocab"]["far"] = 2**32 - 1
    (tmp_path / "tokenizer/tokenizer.json").write_text(json.dumps(spec))
    refused("the highest id is 4294967295", load_tokenizer, tmp_path / "tokenizer")


@pytest.mark.parametrize("text", ["[" * 100_000, " [" * 50_000, "{" * 100_000, " " * 100_000])
def test_a_prompt_of_signs_without_end(tmp_path, text):
    """Its time was quadratic: 200 s. Found by the campaign."""
    (tmp_path / "t.txt").write_text(text)
    refused("t.txt.* slot", SimulatorTemplate.load, tmp_path / "t.txt")


def test_a_line_without_end_in_a_small_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(row_files, "MAX_LINE", 1 << 16)
    path = tmp_path / "bomb.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines(QUESTIONS[:1] * 3) + b" " * (1 << 20)))
    refused(r"bomb.jsonl.gz, line 4: longer than 0 MB", load_questions, path)
    good = gzip.compress(b"".join(json_lines([QUESTIONS[0] | {"id": str(i * 7919)}]) for i in range(4000)), mtime=0)
    path.write_bytes(good[:-400])
    refused(r"bomb.jsonl.gz, line 3\d\d\d: the file is cut off", load_questions, path)


def test_every_file_of_an_index_is_checked(tmp_path):
    BM25.from_documents([Document("", "ab cd"), Document("", "cd ef")]).save(tmp_path / "index")
    for file in sorted((tmp_path / "index").iterdir()):
        data = file.read_bytes()
        half = len(data) // 2
        flipped = data[:half] + bytes([data[half] ^ 4]) + data[half + 1:]
        if file.name == "manifest.json":
            flipped = data.replace(b'"k1": 1.5', b'"k1": 3.5')
        for damaged in (data[:-2], flipped):
            file.write_bytes(damaged)
            refused(f"{file}.*(has changed since|is not JSON|not the manifest).*remove", BM25.load, tmp_path / "index")
        file.write_bytes(data)
    assert len(BM25.load(tmp_path / "index")) == 2
    # An index of an older version names no files and has no check sum.
    manifest = json.loads((tmp_path / "index/manifest.json").read_text())
    del manifest["files"], manifest["check"]
    (tmp_path / "index/manifest.json").write_text(json.dumps(manifest))
    assert len(BM25.load(tmp_path / "index")) == 2


@pytest.mark.parametrize("name, text, words", [
    ("metrics.jsonl", '{"step": 1}\n', "row 1: the field stage or step is missing"),
    ("metrics.jsonl", "[1]\n", "line 1: a list is not an object"),
    ("metrics.jsonl", "[" * 100_000 + "\n", "line 1 is not JSON: too many brackets"),
    ("metrics.jsonl", '{"stage": "train", "step": 1, "reward": {}}\n', "row 1: reward = {} is not a number"),
    ("evaluation.json", '[{"name": "x", "failed_searches": "many"}]', "row 1: failed_searches = 'many' is not a number"),
    ("evaluation.json", '[{"data_set": "nq", "n": 3}]', "row 1: the field name is missing"),
    ("evaluation.json", '[{"name": "x", "data_set": "nq", "n": 3}]', "row 1: em = None is not a number"),
    ("gates.json", '{"gate": "reading"}', "a dict is not a list of rows"),
    ("gates.json", '[{"gate": ["x"]}]', r"row 1: gate = \['x'\] is not a text"),
    ("trajectories/train_000001.jsonl", '{"segments": [{"text": "x"}]}\n', "row 1: segment .* has no role and text")])
def test_a_report_names_the_file_and_the_row(tmp_path, name, text, words):
    run_folder(tmp_path / "run")
    report.write(tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    refused(f"{name}, {words}" if "list of rows" not in words else f"{name}: {words}", report.write, tmp_path / "run")


def test_the_viewer_counts_records_of_another_form(tmp_path):
    run_folder(tmp_path)
    odd = [TRAJECTORY, TRAJECTORY | {"noisy": 3}, TRAJECTORY | {"golden_answers": None}, TRAJECTORY | {"reward": "x"}]
    (tmp_path / "trajectories/train_000001.jsonl").write_bytes(json_lines(odd))
    index = TrajectoryIndex(tmp_path)
    assert (len(index), index.damaged) == (1 + 1, 3)  # one of the evaluation


@pytest.mark.parametrize("change", [
    {"number": "3"}, {"rows": 3}, {"rows": [[1]]}, {"rows": [{"name": "x", "n": {}}]}, {"part": 1}, {"how": []},
    {"subject": {"role": 1, "source": "", "fingerprint": ""}}, None])
def test_a_kept_evaluation_of_another_form_is_one_line_and_the_report_shows_it(tmp_path, change):
    run_folder(tmp_path)
    path = tmp_path / "evaluation" / "before-87654321.json"
    path.write_text("[" * 100_000 if change is None else json.dumps(KEPT | change))
    refused(f"{path.name}: .*; remove it to evaluate again", Kept(tmp_path).all)
    assert path.name in report.write(tmp_path).read_text()


@pytest.mark.parametrize("line", ['{"stagf": "train", "step": 2}', '{"stage": "train", "step": "2"}'])
def test_damaged_metrics_end_a_resumption_in_one_line(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "train", "step": 1}\n' + line + "\n")
    writer = Writer(tmp_path, quiet=True, tensorboard=False)
    for read in (lambda: writer.truncate("train", 1), lambda: report.write(tmp_path)):
        with pytest.raises(InputError, match=r"metrics.jsonl, row 2: the field stage or step is missing; .* the row"):
            read()
