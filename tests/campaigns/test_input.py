"""Campaign of hostile input: whatever a file, a reply or a request holds, it is a value or one line that says what is wrong.

    ZSJAX_CAMPAIGN_CASES=10000 ZSJAX_CAMPAIGN_FOLDER=runs/campaigns python -m pytest tests/campaigns/test_input.py -s

A case is a valid file of one kind with up to three places changed. It may end in a value or in a `UserError` of one line
that names the file. It may take no more than `MOST_SECONDS` of CPU time, and all cases together no more than `MOST_MEMORY`.
The files of a case that fails are kept in ZSJAX_CAMPAIGN_FOLDER/input_failed; `saved_inputs` has those that failed once. A
case that hangs in C ends the process with its stacks; started again, the campaign notes it as failed and goes on.
"""

import contextlib
import faulthandler
import http.server
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import sys
import tempfile
import time
import urllib.parse

import httpx
import pytest
from hostile_files import (
    CHAT,
    DOCUMENTS,
    EVALUATION,
    GATES,
    KEPT,
    METRICS,
    PROMPT,
    QUESTIONS,
    REQUEST,
    RETRIEVED,
    SIMULATOR_ROWS,
    TEMPLATE,
    TRAJECTORY,
    WEB,
    gguf_file,
    json_lines,
    row_file,
    run_folder,
)
from stored_inputs import READERS, SAVED, restore

from tests.campaigns.campaign import cases_of, run_campaign
from tests.mutations import ODD, damaged, json_bytes, mutated
from tests.raw_replies import Raw, started
from zsjax.config import Config, resolve, to_json
from zsjax.config.declare import leaves
from zsjax.config.experiments import load_experiment
from zsjax.data.assets import asset_path
from zsjax.errors import ConfigError, InputError, UserError
from zsjax.search import BM25, ChatSimulator, Document, Failed, HttpRetriever, Limits, SearchContext, SerpApi
from zsjax.search.server import RetrievalServer
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.search.transport import FAILURES
from zsjax.types import Question

MOST_SECONDS = 20  # of CPU time of a case, all threads together
HANGS_AFTER = 150  # seconds of the clock, on a machine that has other work
MOST_MEMORY = 1 << 30  # bytes beyond what the process held before the first case
LIMITS = Limits(timeout=30, retries=0, breaker_failures=0, max_bytes=1 << 20)
# What cannot name a file: there is none, or no file was opened yet.
NAMELESS = ("config_fields", "config_file", "reply", "request", "viewer")


class Echo:
    def search(self, queries, contexts, *, k):
        return [[Document(query, query)] for query in queries]


class Kinds:
    """A method for each kind of input: (draw, an empty folder) -> what was read. It raises what zsjax raises."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.fields = folder, sorted(leaves(Config))
        self.experiment = load_experiment("experiments/tiny_world.py:smoke")
        self.config = to_json(resolve(self.experiment))
        self.header = gguf_file(folder / "valid.gguf")
        self.gguf = (folder / "valid.gguf").read_bytes()
        BM25.from_documents(DOCUMENTS[:2]).save(folder / "index")
        self.raw = started(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Raw))
        self.server = started(RetrievalServer(Echo(), port=0))
        url = f"http://127.0.0.1:{self.raw.server_address[1]}/x"
        self.engines = [(RETRIEVED, HttpRetriever(url, limits=LIMITS)), (WEB, SerpApi(url=url, limits=LIMITS, price=1.0)),
                        (CHAT, ChatSimulator(url, model="m", template=SimulatorTemplate.load("prompted"), limits=LIMITS))]
        self.client = httpx.Client(timeout=5)

    def close(self):
        self.client.close()
        for server in (self.raw, self.server):
            server.shutdown()
            server.server_close()

    def config_fields(self, draw, folder):
        overrides = {draw.choice(self.fields): str(draw.choice(ODD)) for _ in range(draw.randint(0, 2))}
        tree = mutated(json.loads(self.config), draw) if draw.random() < 0.7 else self.experiment
        (folder / "fields").write_text(repr((tree, overrides)), errors="backslashreplace")
        return to_json(resolve(tree, overrides, files=draw.random() < 0.5))

    def config_file(self, draw, folder):
        (folder / "config.json").write_bytes(json_bytes(mutated(json.loads(self.config), draw), draw))
        return READERS["config_file"](folder)

    def template(self, draw, folder):
        path = draw.choice([folder / "t.json", folder / "t.txt"])
        text = json_bytes(mutated(TEMPLATE, draw, least=0), draw)
        path.write_bytes(text if path.suffix == ".json" else damaged(PROMPT, draw))
        return READERS["template"](folder)

    def rows(self, draw, folder):
        name, valid = draw.choice([("questions", QUESTIONS), ("corpus", DOCUMENTS)])
        ending = draw.choice([".jsonl", ".jsonl", ".jsonl.gz", ".parquet"])
        try:
            data = row_file([mutated(draw.choice(valid), draw) for _ in range(draw.randint(1, 3))], ending)
        except (ValueError, AttributeError):
            data = row_file(valid[:1], ending)
        (folder / f"{name}{ending}").write_bytes(damaged(data, draw) if draw.random() < 0.4 else data)
        found = READERS["rows"](folder)
        json.dumps([vars(item) for item in found], ensure_ascii=False).encode()
        return found

    def simulator_rows(self, draw, folder):
        (folder / "rows.jsonl").write_bytes(json_lines([mutated(SIMULATOR_ROWS[0], draw, least=0)]))
        return READERS["simulator_rows"](folder)

    def index(self, draw, folder):
        shutil.copytree(self.folder / "index", folder / "index")
        path = draw.choice(sorted((folder / "index").iterdir()))
        data = path.read_bytes()
        if path.suffix == ".json" and draw.random() < 0.5:
            data = json.dumps(mutated(json.loads(data), draw)).encode()
        path.write_bytes(damaged(data, draw))
        return READERS["index"](folder)

    def tokenizer(self, draw, folder):
        shutil.copytree(asset_path("asset:real/tokenizer"), folder, dirs_exist_ok=True)
        file = folder / draw.choice(["tokenizer.json", "tokenizer.json", "tokenizer_config.json"])
        data = file.read_bytes()
        if draw.random() < 0.8:
            spec = json.loads(data)
            if "model" in spec:  # otherwise few of its tokens would be drawn
                spec["model"]["vocab"] = dict(list(spec["model"]["vocab"].items())[:256])
                spec["model"]["merges"] = []
            data = json.dumps(mutated(spec, draw)).encode()
        file.write_bytes(damaged(data, draw) if draw.random() < 0.3 else data)
        return READERS["tokenizer"](folder)

    def checkpoint(self, draw, folder):
        shutil.copytree(asset_path("asset:real/policy"), folder, dirs_exist_ok=True)
        weights, config = folder / "model.safetensors", folder / "config.json"
        what, data = draw.choice(["config", "header", "header bytes", "index", "weights"]), weights.read_bytes()
        size = int.from_bytes(data[:8], "little")
        if what == "config":
            config.write_bytes(json_bytes(mutated(json.loads(config.read_text()), draw, least=0, most=2), draw))
        elif what == "header":
            header = json.dumps(mutated(json.loads(data[8:8 + size]), draw)).encode()
            weights.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size:])
        elif what == "header bytes":
            weights.write_bytes(damaged(data[:8 + size], draw) + data[8 + size:])
        elif what == "index":
            weights.rename(folder / "model-00001-of-00001.safetensors")
            names = ["model.embed_tokens.weight", "model.norm.weight"]
            index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
            (folder / "model.safetensors.index.json").write_bytes(json_bytes(mutated(index, draw), draw))
        else:
            weights.write_bytes(data[:draw.randrange(len(data))] + data[draw.randrange(len(data)):])
        return READERS["checkpoint"](folder)

    def gguf_header(self, draw, folder):
        header = self.gguf[:self.header]
        for _ in range(draw.randint(1, 2)):
            header = damaged(header, draw)
        (folder / "m.gguf").write_bytes(header + self.gguf[self.header:])
        return READERS["gguf_header"](folder)

    def reply(self, draw, folder):
        reply, engine = draw.choice(self.engines)
        self.raw.body = json_bytes(mutated(reply, draw), draw)
        (folder / "reply").write_bytes(self.raw.body)
        # Paid searches are kept by their query: each case asks its own.
        queries = [f"{name} {draw.random()}" for name in "ab"]
        found = engine.search(queries, [SearchContext(Question("1", "who?", ("x",)))] * 2, k=3)
        assert len(found) == 2, self.raw.body
        for documents in found:
            assert not isinstance(documents, Failed) or documents.kind in FAILURES and not documents, self.raw.body
            assert getattr(documents, "kind", "") != "timeout", self.raw.body
            "".join(f"{document.title}{document.text}" for document in documents).encode()  # no lone surrogates
        return found

    def request(self, draw, folder):
        body = json_bytes(mutated(REQUEST, draw), draw)
        (folder / "request").write_bytes(body)
        reply = self.client.post(self.server.url, content=body)
        assert reply.status_code in (200, 400) and isinstance(
            reply.json()["result" if reply.status_code == 200 else "detail"], list | str), body
        return reply

    def run_folder(self, draw, folder):
        path = folder / draw.choice(run_folder(folder))
        valid = {"metrics": METRICS, "train_000001": [TRAJECTORY] * 2, "after": [TRAJECTORY], "evaluation": EVALUATION,
                 "gates": GATES, "before-12345678": KEPT, "config": json.loads(self.config)}[path.stem]
        value = mutated(valid, draw)
        data = json_lines(value) if path.suffix == ".jsonl" and isinstance(value, list) else json.dumps(value).encode()
        path.write_bytes(damaged(data, draw) if draw.random() < 0.25 else data)
        return READERS["run_folder"](folder)

    def viewer(self, draw, folder):
        run_folder(folder)
        data = json_lines([mutated(TRAJECTORY, draw, most=4) for _ in range(3)])
        (folder / "trajectories/train_000001.jsonl").write_bytes(damaged(data, draw) if draw.random() < 0.3 else data)
        asked = {"first": draw.choice(ODD), "count": draw.choice(ODD), "low": draw.choice(ODD), "text": draw.choice(ODD)}
        odd = urllib.parse.urlencode({name: str(value)[:200] for name, value in asked.items() if draw.random() < 0.5},
                                     errors="replace")
        return READERS["viewer"](folder, odd)


KINDS = ("config_fields", "config_file", "template", "rows", "rows", "simulator_rows", "index", "tokenizer", "checkpoint",
         "gguf_header", "reply", "request", "run_folder", "viewer")


def one_line(error, kind, folder):
    text = str(error)
    if isinstance(error, ConfigError):
        assert error.problems and len(text.splitlines()) == 1 + len(error.problems), text
        return
    assert "\n" not in text.strip() and len(text) < 1500 and "Traceback" not in text, text
    assert not isinstance(error, InputError) or text.isprintable(), repr(text)
    names = [str(folder), *(path.name for path in folder.rglob("*"))]
    assert kind in NAMELESS or any(name in text for name in names), f"does not name one of {names}: {text}"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    pytest.importorskip("gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SERPAPI_API_KEY", "k")
        logging.getLogger().handlers.clear()
        made = Kinds(tmp_path_factory.mktemp("valid"))
        yield made
        made.close()


def hangs(number, frame):
    raise AssertionError(f"hangs in {frame.f_code.co_filename}:{frame.f_lineno}")


@contextlib.contextmanager
def watched(case, kept):
    """Ends a case that hangs, and the process where C code does not let Python end it. kept: None, or where the case that
    runs is noted."""
    running = kept / "input.running" if kept else pathlib.Path(os.devnull)
    if kept and running.exists() and running.read_text() == case.id:
        running.unlink()
        raise AssertionError(f"hung {HANGS_AFTER} s at the last start, which it ended; the stacks are in its output")
    running.write_text(case.id)
    signal.alarm(HANGS_AFTER - 30)
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        signal.alarm(0)
        faulthandler.cancel_dump_traceback_later()
        if kept:
            running.unlink()


def kept_files(case, folder, kept):
    """Keeps the files of a case that failed."""
    if kept:
        shutil.copytree(folder, kept / "input_failed" / f"{case.kind}-{case.seed}", dirs_exist_ok=True)


def checked(kinds, caplog):
    """A function that runs one case."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    kept = os.environ.get("ZSJAX_CAMPAIGN_FOLDER")
    kept = pathlib.Path(kept) if kept else None

    def check(case):
        with tempfile.TemporaryDirectory() as folder:
            folder, begun, outcome = pathlib.Path(folder), time.process_time(), "value"
            caplog.clear()
            try:
                with watched(case, kept):
                    try:
                        getattr(kinds, case.kind)(case.draw, folder)
                    except UserError as error:
                        outcome = "refused"
                        one_line(error, case.kind, folder)
                seconds = time.process_time() - begun
                assert seconds < MOST_SECONDS, f"took {seconds:.1f} s of CPU time"
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before
                assert grown < MOST_MEMORY, f"{grown >> 20} MB more than before"
                shown = [record for record in caplog.records if record.exc_info]
                assert not shown, f"a traceback in the log: {shown[0].exc_info[1]!r}"
            except BaseException:
                kept_files(case, folder, kept)
                raise
        return {outcome: 1, f"{case.kind} {outcome}": 1}

    return check


@pytest.mark.parametrize("name", sorted(path.name for path in SAVED.iterdir()))
def test_what_failed_once_is_a_value_or_one_line(name, tmp_path):
    kind = restore(name, tmp_path)
    try:
        READERS[kind](tmp_path)
    except UserError as error:
        one_line(error, kind, tmp_path)


def test_hostile_input(kinds, caplog):
    caplog.set_level(logging.WARNING)
    signal.signal(signal.SIGALRM, hangs)
    summary = run_campaign("input", cases_of(KINDS, default=140), checked(kinds, caplog),
                           most_seconds=MOST_SECONDS, most_memory_mb=MOST_MEMORY >> 20)
    assert not summary["failures"], summary["line"]
    counts = summary["counts"]
    assert all(summary["kinds"].get(kind) for kind in KINDS)
    assert counts["value"] > summary["cases"] / 10 and counts["refused"] > summary["cases"] / 10
