"""Trajectories as conversations, to be trained on elsewhere: TRL's messages, or ShareGPT's form as LLaMA-Factory reads it.

    trl        {"messages": [{"role": "user" | "assistant" | "tool", "content": text}, ...]}
    sharegpt   {"conversations": [{"from": "human" | "gpt" | "observation", "value": text}, ...]}

What the environment wrote between two texts of the policy, documents and the tags around them, is one message.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Iterator

from zsjax.errors import InputError, InputExists
from zsjax.parallel.files import remove_abandoned, write_jsonl
from zsjax.report.trajectory_index import Filters, TrajectoryIndex, score_of


@dataclasses.dataclass(frozen=True)
class Form:
    """How a conversation is written: the list's field, a message's two fields, and the speakers' names."""

    field: str
    speaker: str
    text: str
    names: dict[str, str]


FORMS = {
    "trl": Form("messages", "role", "content", {"prompt": "user", "policy": "assistant", "environment": "tool"}),
    "sharegpt": Form("conversations", "from", "value", {"prompt": "human", "policy": "gpt", "environment": "observation"}),
}


def conversation(record: dict, form: Form, prompt: Callable[[str], str] | None = None) -> dict | None:
    """A record as a conversation, with its "id", "score", "golden_answers" and "status".

    Args:
      record: a trajectory, as `rollout.transcript.records` has it.
      form: one of `FORMS`.
      prompt: the question's text -> the first message; None takes the tokens' text. A prompt in a chat template must be
        written without it, as the other trainer adds its own.

    Returns:
      None where the policy wrote nothing. The last message is the policy's: what came after it, nobody answered.
    """
    turns: list[tuple[str, str]] = []
    for segment in record.get("segments", ()):
        speaker = segment["role"] if segment["role"] in ("prompt", "policy") else "environment"
        if turns and turns[-1][0] == speaker:
            turns[-1] = (speaker, turns[-1][1] + segment["text"])
        else:
            turns.append((speaker, segment["text"]))
    while turns and turns[-1][0] != "policy":
        turns.pop()
    if not turns:
        return None
    if prompt is not None and turns[0][0] == "prompt":
        turns[0] = ("prompt", prompt(record["question"]))
    messages = [{form.speaker: form.names[speaker], form.text: text} for speaker, text in turns]
    return {form.field: messages, "id": record.get("key") or record.get("id"), "score": score_of(record),
            "golden_answers": record.get("golden_answers"), "status": record.get("status")}


def write_conversations(workdir, out, *, form: str = "trl", filters: Filters | None = None,
                        prompt: Callable[[str], str] | None = None) -> int:
    """Writes the trajectories of a run that pass the filters to a .jsonl file, one after the other; how many.

    The log says how many lines are not trajectories and were left out.

    Raises:
      InputError: nothing passes the filters, or there is no run. InputExists: the file is there.
    """
    out, count = pathlib.Path(out), 0
    if out.exists():
        raise InputExists(f"{out} exists already; choose another file or remove it")

    index, filters = TrajectoryIndex(workdir), filters or Filters()
    for name, file in index.files.items():
        if file.damaged and name.startswith(filters.file):
            logging.warning("%s.jsonl: left out, as not trajectories: %d", name, file.damaged)

    def rows() -> Iterator[dict]:
        nonlocal count
        for found in index.records(filters):
            if (row := conversation(found.record, FORMS[form], prompt)) is not None:
                count += 1
                yield row
        if not count:
            raise InputError(f"{workdir} has no trajectory for {out}; lower --low or choose another --file")

    remove_abandoned(out)
    write_jsonl(out, rows())
    return count
