"""What the shipped experiments do by default, and the claims that it follows from: defaults.toml, read and checked.

Which experiments a default holds for is read from their configs.
"""

import dataclasses
import functools
import pathlib
import tomllib
from collections.abc import Mapping

from benchmarks.hypotheses import verdict
from zsjax.config import Config, load_experiment, resolve

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "experiments"


@dataclasses.dataclass(frozen=True)
class Default:
    """One default; the fields are explained in defaults.toml."""

    says: str
    settings: Mapping
    claim: str = ""
    follows_if: str = verdict.SUPPORTED
    reads: str = ""

    def __post_init__(self):
        if self.follows_if not in (verdict.SUPPORTED, verdict.REFUTED):
            raise ValueError(f"follows_if = {self.follows_if!r}; use {verdict.SUPPORTED} or {verdict.REFUTED}")

    def holds_in(self, config: Config) -> bool:
        return all(_holds(functools.reduce(getattr, name.split("."), config), value)
                   for name, value in self.settings.items())

    def conclusion(self, word: str) -> str:
        """Whether the default follows from its claim's verdict."""
        if not self.claim:
            return "no claim is about it"
        if self.reads:
            return self.reads
        decided = word in (verdict.SUPPORTED, verdict.REFUTED)
        return "follows" if word == self.follows_if else "does not follow" if decided else "is open"


def _holds(found, value) -> bool:
    if isinstance(found, tuple):
        return value in found
    return found is not None if value == "set" else found == value


def load(path: pathlib.Path) -> list[Default]:
    """The defaults of a file, none if it is not there. Raises ValueError, with the file, for what is not one."""
    if not path.exists():
        return []
    try:
        return [Default(**fields) for fields in tomllib.loads(path.read_text(encoding="utf-8"))["defaults"]]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


@functools.cache
def experiments() -> dict[str, Config]:
    """{name: config} of the shipped experiments, without arguments."""
    return {path.stem: resolve(load_experiment(str(path)), check=False) for path in sorted(EXPERIMENTS.glob("*.py"))}
