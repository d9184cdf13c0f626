"""Chat templates: Jinja texts of tokenizers, compiled once and rendered as transformers renders them."""

import datetime
import functools
import json
from collections.abc import Mapping, Sequence

from zsjax.errors import InputError, reason_of

# The date that templates read (Llama 3's default): a prompt must not change when a run is resumed the next day.
_TODAY = datetime.datetime(2024, 7, 26)
_MARK = "\N{OBJECT REPLACEMENT CHARACTER}"


class ChatTemplate:
    """A compiled chat template.

    Args:
      source: the Jinja text.
      names: values of its variables bos_token, eos_token and so on.
      where: its file, for errors.

    Raises:
      ValueError: not a Jinja template.
    """

    def __init__(self, source: str, names: Mapping[str, str], where):
        self._names, self._where = dict(names), where
        try:
            self._template = _environment().from_string(source)
        except Exception as error:  # jinja2's own kinds
            raise InputError(f"{where}: chat_template is not a Jinja template: {reason_of(error)}; copy the model's "
                             "file again") from error

    def render(self, messages: Sequence[dict], *, add_generation_prompt: bool) -> str:
        """The conversation as text. Raises ValueError where the template refuses it."""
        try:
            return self._template.render(messages=list(messages), tools=None, documents=None,
                                         add_generation_prompt=add_generation_prompt, **self._names)
        except Exception as error:  # whatever the template's code does
            raise InputError(f"{self._where}: chat_template cannot render {len(messages)} messages: "
                             f"{reason_of(error)}; correct the template or set prompts.chat = False") from error

    def turn_end(self) -> str:
        """The text after an assistant's message; after a user's where the template shows no assistant; "" for neither."""
        user, marked = {"role": "user", "content": "u"}, {"content": _MARK}
        for messages in ([user, {"role": "assistant"} | marked], [user | marked]):
            try:
                text = self.render(messages, add_generation_prompt=False)
            except ValueError:  # a template for other conversations
                continue
            if _MARK in text:
                return text.rpartition(_MARK)[2]
        return ""


@functools.cache
def _environment():
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's text for training; here it changes nothing."""

        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return nodes.Scope(body, lineno=line)

    def refuse(message):
        raise InputError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                                extensions=[Generation, "jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals |= {"raise_exception": refuse, "strftime_now": _TODAY.strftime}
    return environment
