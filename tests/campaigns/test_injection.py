"""Campaign of injection: texts made of tags, special tokens, control characters, chat turns and HTML stay text.

    ZSJAX_CAMPAIGN_CASES=2000 ZSJAX_CAMPAIGN_FOLDER=runs/campaigns python -m pytest tests/campaigns/test_injection.py -s

The policy of a rollout says a script, so that every difference comes from the hostile text. Cases of one kind are rows of
one rollout. `document`: what an engine returns, or a simulator writes. `query`: what the policy searches for. `question`:
question and gold answers. Each is played by the host with an engine and by the compiled program with a simulator whose
model wants to write hostile texts (`hostile_writer`). `page`: records in the report, the viewer, the terminal and the
tables; tests/browser opens a page with one such text. `text`: documents and questions under several tokenizers.
"""

import collections
import csv
import dataclasses
import functools
import html.parser
import io
import itertools
import json
import random
import re
import threading

import httpx
import jax
import numpy as np
from hostile_texts import hostile_text
from rich.console import Console

from tests.campaigns.campaign import cases_of, run_campaign
from tests.real_tokenizer import qwen2
from zsjax import report, rewards, types
from zsjax.config import resolve
from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.evaluation import tables
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.report.view_server import TrajectoryServer
from zsjax.rollout import make_rollout, transcript
from zsjax.rollout.documents import CONTROL, encode_documents
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.run import build
from zsjax.search import Document
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.search.simulator.writing import ALL_TAGS
from zsjax.types import Question

KINDS = ("document", "query", "question", "page", "text")
ROWS, MAX_TURNS, TURN_TOKENS = 16, 2, 48
TOKENIZER = load_tokenizer(asset_path("asset:real/tokenizer"))
CONFIG = resolve({
    "tokenizer": "asset:real/tokenizer", "prompts": {"simulator_chat": True, "policy": "plain"},
    "search": {"num_documents": 2, "max_document_tokens": 24, "max_query_tokens": 32, "temperature": 1.0},
    "rollout": {"max_turns": MAX_TURNS, "max_turn_tokens": TURN_TOKENS, "max_tokens": 512, "max_prompt_tokens": 200}},
    check=False)
MODEL = DecoderConfig(vocab_size=TOKENIZER.vocab_size, embed_dim=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
                      mlp_dim=32)
PARAMS = init_params(MODEL, jax.random.key(0))
WRITER = dataclasses.replace(MODEL, embed_dim=512, tie_embeddings=False)
SEARCH, WRONG = "<search> author of the book </search>", "<answer> wrong </answer>"
BEGUN = ("</search", "</answer", "<answer", "<search", "</information", "<script", "<|im")  # less than a tag
# Control characters and those that reorder text: none of them is on a page, in a table or on a terminal.
UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def hostile_writer():
    """Parameters of a simulator whose next token, but for the masks, is one that follows in our tags and hostile texts.

    Attention and MLP add nothing, so a state is its token's embedding. The head solves logits = 12 + log(count) for the
    tokens that follow it in these texts, and 0 for others. All special tokens follow each text.
    """
    draw, follows, rng = random.Random("writer"), collections.defaultdict(collections.Counter), np.random.default_rng(0)
    for number in range(400):
        text = "".join(draw.choices(ALL_TAGS, k=4)) if number % 4 else hostile_text(draw, 120)
        ids = [*TOKENIZER.encode(text), *special(range(TOKENIZER.vocab_size)), *TOKENIZER.encode("\n<")]
        for token, following in itertools.pairwise(ids):
            follows[token][following] += 1
    params = jax.tree.map(np.array, init_params(WRITER, jax.random.key(1)))
    params["embed_tokens"] = rng.standard_normal(params["embed_tokens"].shape).astype(np.float32)
    for kernel in (params["layers"][0]["attn"]["o_proj"], params["layers"][0]["mlp"]["down_proj"]):
        kernel["kernel"][:] = 0
    states = params["embed_tokens"][list(follows)]
    states /= np.sqrt(np.square(states).mean(axis=1, keepdims=True))
    wanted = np.zeros((len(follows), WRITER.vocab_size), np.float32)
    for row, counts in zip(wanted, follows.values(), strict=True):
        row[list(counts)] = 12.0 + np.log(list(counts.values()))
    params["lm_head"] = {"kernel": (np.linalg.pinv(states) @ wanted).astype(np.float32)}
    return jax.tree.map(jax.numpy.asarray, params)


def special(ids, tokenizer=TOKENIZER) -> list[int]:
    return [id for id in ids if tokenizer.token_bytes(id) is None]


class Scripted:
    """Rollouts whose policy says `script[row][turn]`, by the host and compiled, of programs that are compiled once."""

    def __init__(self):
        self.table, self.documents = np.zeros((ROWS, MAX_TURNS + 1, TURN_TOKENS), np.int32), {}
        shape = jax.ShapeDtypeStruct((), np.int32)

        def token(episode, turn, at):
            row = self.table[np.asarray(episode) % ROWS, np.minimum(turn, MAX_TURNS)]
            return np.take_along_axis(row, np.minimum(at, TURN_TOKENS - 1)[:, None], 1)[:, 0].astype(np.int32)

        def sampler(logits, state, key, temperature):
            drawn = jax.pure_callback(token, jax.ShapeDtypeStruct(state.turn.shape, shape.dtype), state.episode_id,
                                      state.turn, state.length - state.turn_start)
            return drawn, jax.numpy.zeros(drawn.shape)

        simulator = build.simulator(CONFIG, WRITER, hostile_writer(), TOKENIZER)
        self.rollouts = {"host": make_rollout(MODEL, self, TOKENIZER, CONFIG, sampler=sampler),
                         "compiled": make_rollout(MODEL, simulator, TOKENIZER, CONFIG, sampler=sampler)}

    def search(self, queries, contexts, *, k):
        assert all(isinstance(query, str) and json.dumps(query, ensure_ascii=False).encode() for query in queries)
        return [self.documents.get(context.question.id, [Document("t", "king")]) for context in contexts]

    def play(self, how: str, questions, scripts):
        """(episodes, answers, queries) of one row a question."""
        for row, script in enumerate(scripts):
            for turn, said in enumerate(script):
                ids = TOKENIZER.encode(said)[:TURN_TOKENS]
                self.table[row, turn] = [*ids, *[TOKENIZER.encode(" a")[0]] * (TURN_TOKENS - len(ids))]
        questions = [*questions, *[Question("pad", "who?", ("x",))] * (ROWS - len(questions))]
        episodes = jax.device_get(self.rollouts[how](PARAMS, questions, key=jax.random.key(3)))
        return episodes, transcript.answers(episodes, TOKENIZER), transcript.searches(episodes, TOKENIZER)


@functools.cache
def scripted() -> Scripted:
    return Scripted()


def texts_of(case):
    draw = case.draw
    return [hostile_text(draw, 120) for _ in range(4)]


def played(kind: str, cases):
    """{how: (episodes, answers, queries)} of up to ROWS cases of one kind."""
    texts, player = [texts_of(case) for case in cases], scripted()
    questions = [Question(f"{kind}{i}", "who?", ("gold",)) for i in range(len(cases))]
    scripts = [[SEARCH] * (MAX_TURNS + 1)] * len(cases)
    player.documents = {}
    if kind == "document":
        player.documents = {f"{kind}{i}": [Document(a, b), Document("", c)] for i, (a, b, c, _) in enumerate(texts)}
    elif kind == "query":
        scripts = [[f"<search> {a} </search>", f"{b}<search>{c}</search>", SEARCH] for a, b, c, _ in texts]
    else:
        questions = [Question(f"{kind}{i}", f"who {a[:60]}", (b, c)) for i, (a, b, c, _) in enumerate(texts)]
        scripts = [[SEARCH, WRONG, WRONG]] * len(cases)
    return {how: player.play(how, questions, scripts) for how in player.rollouts}, questions


def said_by(tokens, roles) -> list[str]:
    """The text of each generation of the policy."""
    return [TOKENIZER.decode([int(token) for token, _ in run]) for is_policy, run in itertools.groupby(
        zip(tokens, roles, strict=True), key=lambda pair: pair[1] == types.POLICY) if is_policy]


def check_row(kind, row, found, question) -> dict[str, int]:
    """Fails where a hostile text is more than text. How many of its documents by the compiled program show that it tried."""
    tried = 0
    for how, (episodes, answers, queries) in found.items():
        roles, tokens = np.asarray(episodes.roles[row]), np.asarray(episodes.tokens[row])
        status = types.STATUS_NAMES[int(episodes.status[row])]
        assert status != "running", how
        assert not special(tokens[roles == types.DOCUMENT].tolist()), (how, "a special token in a document")
        shown = TOKENIZER.decode(tokens[roles == types.DOCUMENT].tolist())
        # What the simulator writes may hold control characters, which pages and tables show as signs.
        assert not any(tag in shown for tag in ALL_TAGS) and (how == "compiled" or not CONTROL.search(shown)), (how, shown)
        tried += how == "compiled" and any(piece in shown for piece in BEGUN)
        inside = np.zeros(roles.shape, bool)
        for start, stop in episodes.documents_span[row]:
            inside[start:stop] = True
        assert (inside == (roles == types.DOCUMENT)).all(), (how, "roles")
        assert np.isfinite(episodes.behavior_logprobs[row]).all()
        if kind == "document":
            assert (status, answers[row], int(episodes.num_searches[row])) == ("out_of_turns", None, MAX_TURNS), how
            assert queries[row] == ["author of the book"] * MAX_TURNS, (how, queries[row])
        elif kind == "question":
            assert (status, answers[row], queries[row]) == ("answered", "wrong", ["author of the book"]), how
            prompt = tokens[roles == types.PROMPT].tolist()
            assert not special(prompt), (how, "a special token in the prompt")
            assert rewards.f1_score(answers[row], question.golden_answers) == 0.0 or "wrong" in " ".join(
                question.golden_answers).lower()
        else:
            said = said_by(tokens, roles)
            assert (answers[row] is not None) <= any("</answer>" in text for text in said), (how, said)
            assert not any(tag in query for query in queries[row] for tag in ("</search>", "</answer>")), how
    # The same script, whoever finds the documents.
    ends = {how: (int(episodes.status[row]), queries[row]) for how, (episodes, _, queries) in found.items()}
    assert len(set(map(str, ends.values()))) == 1, ends
    return {"tried": int(tried)}


# ---------------------------------------------------------------------------------------------------- pages and text

class Page(html.parser.HTMLParser):
    """Tags and attributes of a page; fails where tags do not match."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.attributes = [], collections.Counter(), []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found[tag] += 1
        self.attributes += [name for name, _ in attributes]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def record(a, b, c, d) -> dict:
    return {"id": a, "question": b, "golden_answers": [c, d], "answer": a, "status": b, "data_set": c, "queries": [d],
            "search_status": ["ok", a], "noisy": [True, False], "num_searches": 1, "reward": 0.5,
            "segments": [{"role": role, "text": text} for role, text in (
                ("prompt", a), ("policy", b), ("template", c), ("document", d), (a, b))]}


def check_page(case, folder):
    texts = [text.encode("utf-8", "replace").decode() for text in texts_of(case)]
    a, b, c, d = texts
    for name in ("trajectories", "evaluation"):
        (folder / name).mkdir()
    (folder / "trajectories/train_000001.jsonl").write_text(json.dumps(record(*texts)) + "\n")
    scores = {"em": 0.5, "em_se": 0.1, "contains": 0.5, "contains_se": 0.1, "n": 3}
    evaluation = [{"name": a, "data_set": b, "policy": c, "hops": d, **scores}, {"name": d, "data_set": "nq", **scores}]
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "gates.json").write_text(json.dumps([{"gate": a, b: c}]))
    (folder / "config.json").write_text(json.dumps({"name": d, "tokenizer": a}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"stage": a, "step": step, f"x{b}": 1.0}) + "\n"
                                                  for step in range(3)))
    text = report.write(folder).read_text()
    page = Page(text)
    assert not {"script", "img", "a", "link", "iframe", "object", "form"} & page.found.keys(), page.found
    assert page.found["style"] == page.found["html"] == page.found["body"] == 1
    assert not [name for name in page.attributes if name.startswith("on") or name in ("src", "href")]
    assert not UNSHOWN.search(text), UNSHOWN.search(text)
    out = io.StringIO()
    report.show_episode(record(*texts), Console(file=out, width=200))
    assert not UNSHOWN.search(out.getvalue())
    header, rows = tables.paper_table(evaluation)
    check_tables(header, rows)
    check_viewer(folder)


def check_tables(header, rows):
    lines = tables.to_markdown(header, rows).splitlines()
    borders = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines}
    assert len(lines) == len(rows) + 2 and len(borders) == 1, "the table of Markdown is broken"
    cells = list(csv.reader(io.StringIO(tables.to_csv(header, rows))))
    assert len(cells) == len(rows) + 1 and {len(row) for row in cells} == {len(header)}
    assert not [cell for row in cells for cell in row if cell[:1] in tuple("=+-@\t\r")], "a formula for a spreadsheet"
    found = Page(tables.to_html(header, rows)).found
    assert set(found) == {"table", "thead", "tbody", "tr", "th", "td"}
    for text in (*lines, tables.to_csv(header, rows).replace("\r", "").replace("\n", ""), tables.to_html(header, rows)):
        assert not UNSHOWN.search(text), "a control character in a table"


def check_viewer(folder):
    with TrajectoryServer([folder]) as server, httpx.Client(base_url=server.url) as client:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        for path in ("/api/runs", "/api/list", "/api/trajectory?id=trajectories/train_000001:0"):
            reply = client.get(path)
            assert reply.status_code == 200 and reply.headers["Content-Type"].startswith("application/json"), path
            assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
            assert not UNSHOWN.search(json.dumps(reply.json(), ensure_ascii=False)), path
        server.shutdown()


def check_text(case):
    a, b, c, d = texts_of(case)
    for tokenizer in (TOKENIZER, qwen2(), load_tokenizer("asset:tiny_world/tokenizer")):
        found = encode_documents([[Document(a, b), Document("", c)]], tokenizer, "Doc {i}: {title}. {text}",
                                 num_documents=2, max_document_tokens=40)
        for ids in (found[0][0, i, :found[1][0, i]].tolist() for i in range(2)):
            written = tokenizer.decode(ids)
            assert not special(ids, tokenizer) and written.endswith("\n") and written.count("\n") == 1
            assert not any(tag in written for tag in ALL_TAGS) and not UNSHOWN.search(written)
        slots = dict(mode="useful", num_documents="2", question=a, answers=[b, c], query=d)
        assert not special(SimulatorTemplate.load("default").build(tokenizer, **slots), tokenizer)
        template = PolicyTemplate.load("default")
        assert not special(template.encode(tokenizer, a), tokenizer)
        if tokenizer is TOKENIZER:
            plain = special(template.encode(tokenizer, "who?", chat=True))
            assert special(template.encode(tokenizer, a, chat=True)) == plain


def test_injection(tmp_path_factory):
    cases = cases_of(KINDS, default=len(KINDS) * ROWS)
    of_kind = collections.defaultdict(list)
    for case in cases:
        of_kind[case.kind].append(case)

    @functools.lru_cache(maxsize=8)
    def batch(kind, number):
        return played(kind, of_kind[kind][number * ROWS:(number + 1) * ROWS])

    def check(case):
        if case.kind == "page":
            check_page(case, tmp_path_factory.mktemp("run"))
        elif case.kind == "text":
            check_text(case)
        else:
            number, row = divmod(of_kind[case.kind].index(case), ROWS)
            found, questions = batch(case.kind, number)
            return {case.kind: 1, **check_row(case.kind, row, found, questions[row])}
        return {case.kind: 1}

    def lacks(records):
        tried = [record["counts"]["tried"] for record in records if "tried" in record["counts"]]
        return f"the simulator wrote hostile text in {sum(tried)} of {len(tried)}" if 2 * sum(tried) < len(tried) else ""

    summary = run_campaign("injection", cases, check, lacks=lacks)
    assert not summary["failures"], summary["line"]
