"""What a baseline is played with, and the vote over several episodes of a question."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from zsjax import rewards
from zsjax.config.fields import Config
from zsjax.evaluate import failed_searches, play
from zsjax.rollout import make_rollout
from zsjax.types import Question


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a baseline is played with.

    Attributes:
      config: the run's.
      model, params: DecoderConfig and parameters of the policy.
      tokenizer: its tokenizer.
      engine: the evaluation's engine.
      questions: all of them are answered.
      key: a jax key.
      meter: (rollout, engine) -> a rollout that counts what it uses (`costs.Meter`).
      mesh: the questions are spread over it, see `make_rollout`.
      train_questions, train_engine, base_params, writer, directory: for `trajectory_sft` only.
    """

    config: Config
    model: Any
    params: Any
    tokenizer: Any
    engine: Any
    questions: Sequence[Question]
    key: Any
    meter: Callable = lambda rollout, engine: rollout
    mesh: Any = None
    train_questions: Callable[[], Sequence[Question]] = tuple
    train_engine: Callable[[], Any] = lambda: None
    base_params: Callable[[], Any] = lambda: None
    writer: Any = None
    directory: Any = None

    def rollout(self, engine=None, **changes):
        """A rollout of this policy. changes: of the config, as room__field=value."""
        config = self.config
        for name, value in changes.items():
            room, field = name.split("__")
            config = dataclasses.replace(config, **{room: dataclasses.replace(getattr(config, room), **{field: value})})
        engine = engine or self.engine
        return self.meter(make_rollout(self.model, engine, self.tokenizer, config, self.mesh), engine)

    def play(self, rollout, questions=None, params=None) -> list[dict]:
        records, _ = play(rollout, self.params if params is None else params, questions or self.questions, key=self.key,
                          batch_rows=self.config.evaluate.batch_rows)
        return records


def vote(records: Sequence[dict]) -> dict:
    """The first record with the answer that most of a question's records give (normalised); records without an answer do
    not vote. Searches, failed searches and tokens are sums over all records."""
    names = [rewards.normalize_answer(record["answer"] or "") for record in records]
    votes = collections.Counter(name for name in names if name)
    chosen = records[names.index(votes.most_common(1)[0][0])] if votes else records[0]
    return chosen | {"num_searches": sum(record["num_searches"] for record in records),
                     "failed_searches": sum(map(failed_searches, records)),
                     "tokens": sum(record["tokens"] for record in records), "episodes": len(records)}
