"""A page with all trajectories of one or two runs, served to this machine's own browser.

    GET /                                    the page
    GET /api/runs                            what each run holds
    GET /api/list?run=0&first=0&count=50     a page of trajectories; further names are those of `Filters`
    GET /api/trajectory?run=0&id=FILE:N      one of them, and where the same question was played

Texts of trajectories are data. They travel as JSON and the page sets them as text; its policy lets no other script run.
"""

import json
import logging
import pathlib
import urllib.parse
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from zsjax.errors import InputError, printable
from zsjax.report.page import ROLES, noisy_segments, templates
from zsjax.report.trajectory_index import ORDERS, Filters, TrajectoryIndex, score_of
from zsjax.types import STATUS_NAMES

MAX_COUNT = 200  # trajectories of a page
MAX_SAME = 500  # trajectories of a question that are offered beside it
SUMMARY = 300  # characters of a text in the list
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
          "form-action 'none'; frame-ancestors 'none'")
_NUMBERS = {"low": float, "high": float, "fewest": int, "most": int}
_PAGES = {"/": ("viewer.html.j2", "text/html"), "/viewer.js": ("viewer.js.j2", "text/javascript"),
          "/viewer.css": ("viewer.css.j2", "text/css")}


class TrajectoryServer(ThreadingHTTPServer):
    """Serves runs at 127.0.0.1; `serve_forever()` runs it."""

    daemon_threads = True

    def __init__(self, workdirs: Sequence[pathlib.Path], *, port: int = 0):
        """workdirs: the runs' folders. port: 0 takes any that is free, see `url`.

        Raises InputError for a folder that is not there, OSError for a port that is taken.
        """
        self.runs = [TrajectoryIndex(workdir) for workdir in workdirs]
        names = {"roles": ROLES, "statuses": STATUS_NAMES[1:], "orders": ORDERS}
        self.pages = {path: (templates().get_template(file).render(**names).encode(), kind)
                      for path, (file, kind) in _PAGES.items()}
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    def handle_error(self, request, client_address):
        logging.debug("a browser broke off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version, timeout = "HTTP/1.1", 30
    server: TrajectoryServer

    def do_GET(self):
        path, _, query = self.path.partition("?")
        # Another site's name may be made to point here; its pages must not read the runs.
        if self.headers.get("Host", "").rpartition(":")[0] not in ("127.0.0.1", "localhost"):
            return self._reply(403, {"error": f"open {self.server.url}"})
        if path in self.server.pages:
            return self._send(200, *self.server.pages[path])
        answer = {"/api/runs": self._runs, "/api/list": self._list, "/api/trajectory": self._trajectory}.get(path)
        if answer is None:
            return self._reply(404, {"error": f"there is no {printable(path)}"})
        try:
            self._reply(200, answer(dict(urllib.parse.parse_qsl(query))))
        except InputError as error:
            self._reply(400, {"error": str(error)})
        except (OSError, ValueError):  # a file was replaced since it was indexed
            self._reply(409, {"error": "a file has changed; load the page again"})
        except Exception:  # a record of another form must end this request only
            logging.exception("a trajectory cannot be shown")
            self._reply(500, {"error": "this trajectory cannot be shown; see the log"})

    def _runs(self, asked) -> list[dict]:
        for run in self.server.runs:
            run.refresh()
        return [{"name": run.workdir.resolve().name, "count": len(run), "damaged": run.damaged,
                 "data_sets": sorted(run.data_sets), "files": list(run.files)} for run in self.server.runs]

    def _list(self, asked) -> dict:
        run = self._run(asked)
        run.refresh()
        first, count = _number(asked, "first", int, 0), _number(asked, "count", int, 50)
        if not (first >= 0 and 1 <= count <= MAX_COUNT):
            raise InputError(f"first={first}, count={count}: use first >= 0 and a count of 1 to {MAX_COUNT}")
        page = run.page(filters_of(asked, run), first, count)
        return {"total": page.total, "next": page.next, "rows": [_summary(found) for found in page.found]}

    def _trajectory(self, asked) -> dict:
        run, (name, _, number) = self._run(asked), asked.get("id", "").rpartition(":")
        if not (number.isascii() and number.isdigit()):
            raise InputError(f"id={asked.get('id', '')!r} is not FILE:NUMBER")
        record = run.record(name, int(number))
        segments = [{"role": segment["role"] if segment["role"] in ROLES else "template", "noisy": noisy,
                     "text": segment["text"]}
                    for segment, noisy in zip(record.get("segments", ()), noisy_segments(record), strict=True)]
        same = [{"run": index} | one for index, other in enumerate(self.server.runs)
                for one in other.same_question(record.get("question"), MAX_SAME)]
        facts = {key: value for key, value in record.items() if key not in ("segments", "question", "golden_answers")}
        return {"id": asked["id"], "run": self.server.runs.index(run), "question": record.get("question", ""),
                "golds": record.get("golden_answers", []), "score": score_of(record), "facts": facts, "segments": segments,
                "same": same}

    def _run(self, asked) -> TrajectoryIndex:
        index = _number(asked, "run", int, 0)
        if not 0 <= index < len(self.server.runs):
            raise InputError(f"run={index}: use 0 to {len(self.server.runs) - 1}")
        return self.server.runs[index]

    def _reply(self, status, value):
        text = json.dumps(_printable(value), ensure_ascii=False)
        self._send(status, text.encode("utf-8", "replace"), "application/json")

    def _send(self, status, body, kind):
        self.send_response(status)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body))),
                            ("Content-Security-Policy", POLICY), ("X-Content-Type-Options", "nosniff"),
                            ("Cross-Origin-Resource-Policy", "same-origin"), ("Referrer-Policy", "no-referrer"),
                            ("Cache-Control", "no-store")):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


def _summary(found) -> dict:
    """A trajectory in the list."""
    record = found.record
    return {"id": f"{found.file}:{found.number}", "file": found.file, "score": score_of(record),
            "noisy": any(record.get("noisy") or ()), "searches": record.get("num_searches"),
            "status": record.get("status"), "data_set": record.get("data_set"),
            "question": str(record.get("question", ""))[:SUMMARY], "answer": str(record.get("answer") or "")[:SUMMARY]}


def filters_of(asked: dict[str, str], run: TrajectoryIndex) -> Filters:
    """The filters of a request's names and texts. Raises InputError, naming the filter and what it takes."""
    choices = {"status": STATUS_NAMES, "data_set": run.data_sets, "order": ORDERS, "noisy": ("yes", "no")}
    for name, known in choices.items():
        if asked.get(name) and asked[name] not in known:
            raise InputError(f"{name}={asked[name]!r}: use {', '.join(known) or 'none: the run has none'}")
    numbers = {name: _number(asked, name, kind, None) for name, kind in _NUMBERS.items()}
    noisy = {"yes": True, "no": False}.get(asked.get("noisy", ""))
    return Filters(**numbers, noisy=noisy, order=asked.get("order") or "file",
                   **{name: asked.get(name, "") for name in ("status", "data_set", "file", "text")})


def _number(asked, name, kind, default):
    text = asked.get(name, "")
    try:
        return kind(text) if text else default
    except ValueError:
        fit = "a whole one" if kind is int else "one like 0.5"
        raise InputError(f"{name}={text!r} is not a number; use {fit}") from None


def _printable(value):
    """A JSON value whose texts show control characters, which could hide or reorder text. NaN becomes null."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable(str(name)): _printable(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_printable(each) for each in value]
    return None if isinstance(value, float) and value != value else value
