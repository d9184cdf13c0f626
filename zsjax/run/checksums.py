"""Checksums of what a run's stages left, so that damage is noticed before a later stage computes with it.

checksums.json has the CRC-32 of every file in `SEALED`, which are written once. Checkpoints and evaluations hold their own
(`zsjax.parallel.checkpoint`, `zsjax.evaluation.kept_evaluations`). Logs (metrics.jsonl, trajectories/) have none: of
metrics.jsonl a resumed training reads the last lines, for its alarms; no other stage computes with them.
"""

import pathlib
import zlib
from collections.abc import Iterator

from zsjax.errors import InputError, read_json, reading
from zsjax.parallel.files import write_json

NAME = "checksums.json"
SEALED = ("episodes.jsonl", "searches.jsonl", "models/*/*")


def seal(workdir: pathlib.Path, since: float) -> None:
    """Notes the checksums of files that are new or were written since `since` (seconds, `time.time`)."""
    known = _read(workdir)
    found = {name: path for name, path in _files(workdir)}
    # Clocks of file systems are coarse.
    sums = {name: known[name] if name in known and path.stat().st_mtime < since - 1 else _sum(path)
            for name, path in found.items()}
    if sums != known:
        write_json(workdir / NAME, sums, indent=1)


def check(workdir: pathlib.Path, *, inside: str = "") -> None:
    """Raises InputError for a file that is not as its stage left it.

    inside: "" for all files but the models'; or a folder, such as "models/policy".
    """
    known = _read(workdir)
    for name, path in _files(workdir):
        wanted = name.startswith(f"{inside}/") if inside else not name.startswith("models/")
        if wanted and known.get(name, (now := _sum(path))) != now:
            made = "/".join(name.split("/")[:2])
            raise InputError(f"{path} is not as the run left it (checksum {now}, not {known[name]}); copy it back, or "
                             f"remove {made} to make it anew. If you changed it yourself, remove {NAME}")


def _files(workdir) -> Iterator[tuple[str, pathlib.Path]]:
    for pattern in SEALED:
        for path in sorted(workdir.glob(pattern)):
            if path.is_file():
                yield path.relative_to(workdir).as_posix(), path


def _read(workdir) -> dict[str, str]:
    path = workdir / NAME
    return read_json(path, "remove it and start the same command again", dict) if path.exists() else {}


def _sum(path) -> str:
    found = 0
    with reading(path), open(path, "rb") as file:
        while block := file.read(1 << 20):
            found = zlib.crc32(block, found)
    return f"{found:08x}"
