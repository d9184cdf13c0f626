"""The policy's prompt, and the texts that the environment inserts.

Prompts are data: `PolicyTemplate.load` takes a name or a path, so a published policy can use the prompt it was trained
on. Tags are searched for in the policy's own tokens only, so a prompt may explain them.
"""

import dataclasses
import pathlib
import re

from zsjax.errors import InputError
from zsjax.search.simulator.prompt import template_fields

_SLOT = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class PolicyTemplate:
    """The policy's prompt and the environment's texts.

    Attributes:
      prompt: text with the slot {question}.
      information_open, information_close: around the documents of a search, which are a line each.
      hint: the answer to an invalid action.
      name: where it was loaded from, a name or a path.
    """

    prompt: str
    information_open: str = "\n<information>\n"
    information_close: str = "</information>\n"
    hint: str = "\nThat was no action. Begin a search with <search> or the answer with <answer>, and close the tag.\n"
    name: str = "default"

    def __post_init__(self):
        found = _SLOT.findall(self.prompt)
        for slot in found:
            if slot != "question":
                raise InputError(f"policy template {self.name!r}: unknown slot {{{slot}}}; use {{question}}")
        if found != ["question"]:
            raise InputError(f"policy template {self.name!r} has the slot {{question}} {len(found)} times; use it once")

    @classmethod
    def load(cls, name_or_path: str | pathlib.Path) -> "PolicyTemplate":
        """"default", "tiny_world", or a path: a .json file with these fields, or a text file with the prompt.

        Raises:
          FileNotFoundError: neither a name nor a file.
          ValueError: not a template; the message names the file and the field.
        """
        name = str(name_or_path)
        if name in TEMPLATES:
            return TEMPLATES[name]
        fields = template_fields(name, TEMPLATES, "policy", ("prompt", "information_open", "information_close", "hint"))
        return cls(**fields, name=name)

    def render(self, question: str) -> str:
        """The prompt for a question, as text."""
        return self.prompt.replace("{question}", question.strip())

    def encode(self, tokenizer, question: str, chat: bool = False) -> list[int]:
        """The prompt for a question, as ids.

        chat: as the user's message in the tokenizer's chat template; without it the tokenizer's `bos_ids` come first.
        """
        text = self.render(tokenizer.plain(question))
        if chat:
            return tokenizer.apply_chat_template([{"role": "user", "content": text}])
        return tokenizer.encode_prompt(text)


_DEFAULT = """\
You are given a question and must find its answer. You have a search engine.
Before everything you do, think it through between <think> and </think>: what do you know, what is missing, what comes \
next?
To look something up, write one short query: <search> query </search>. Documents that were found then appear between \
<information> and </information>. They may be useful, beside the point or wrong, so check whether they really tell \
what you asked. Search as often as you need, for one fact at a time.
Once you are sure, write the answer alone, a few words without explanation: <answer> answer </answer>.

Question: {question}
"""

# Of baselines (zsjax.evaluation.baselines).
_DIRECT = """\
Answer the question in a few words. Write nothing but the answer, in this form: <answer> answer </answer>.

Question: {question}
"""
_CHAIN_OF_THOUGHT = """\
Answer the question. First think it through step by step between <think> and </think>. Then write the answer alone, a few \
words without explanation: <answer> answer </answer>.

Question: {question}
"""
_RAG = """\
Answer the question below with the help of the documents above it, which a search engine found; they may be useful, beside \
the point or wrong. Write the answer alone, a few words without explanation: <answer> answer </answer>.

{question}
"""
_SEARCH_AGENT = """\
You reason step by step and can use a search engine whenever a fact is missing or uncertain.
To search, write one short query: <search> query </search>. The documents that were found then appear between \
<information> and </information>. Read them, say in one sentence what in them matters for the question, and go on \
reasoning from there; if nothing does, search with other words.
An example. Question: In which country was the author of Emma born? You write: The author of Emma must be known first. \
<search> author of Emma </search>. From the documents: Jane Austen. Then: <search> Jane Austen birthplace </search>. From \
the documents: Steventon, England. Then: <answer> England </answer>.
Search at most a few times, and end with the answer alone: <answer> answer </answer>.

Question: {question}
"""

TEMPLATES = {
    "default": PolicyTemplate(_DEFAULT),
    # For a policy that learns the form of an episode from examples (the stage warm_start).
    "plain": PolicyTemplate("Question: {question}\n", hint="\nSearch or answer.\n", name="plain"),
    "direct": PolicyTemplate(_DIRECT, name="direct"),
    "chain_of_thought": PolicyTemplate(_CHAIN_OF_THOUGHT, name="chain_of_thought"),
    "rag": PolicyTemplate(_RAG, name="rag"),
    "search_agent": PolicyTemplate(_SEARCH_AGENT, name="search_agent"),
    # Of the carried models' pretraining; a test holds it equal to zsjax.tiny_world.world.
    "tiny_world": PolicyTemplate("{question}\n", hint="\nSearch or answer.\n", name="tiny_world"),
}
