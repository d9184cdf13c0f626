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
        for field, text in (("hint", self.hint), ("information_open", self.information_open + self.information_close)):
            if not text:
                raise InputError(f"policy template {self.name!r}: nothing stands between two generations; give {field}")

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

# The same with two worked examples, for a model that was never taught to follow instructions. Their facts are from none of
# the data sets.
_DIRECT_EXAMPLES = """\
Answer each question in a few words, in this form: <answer> answer </answer>.

Question: In which country was the author of Emma born?
<answer> England </answer>

Question: Which metal has the symbol Fe?
<answer> iron </answer>

Question: {question}
"""
_CHAIN_OF_THOUGHT_EXAMPLES = """\
Think each question through between <think> and </think>. Then write the answer: <answer> answer </answer>.

Question: In which country was the author of Emma born?
<think> Emma was written by Jane Austen. Jane Austen was born in Steventon. Steventon is a village in England. </think>
<answer> England </answer>

Question: Which metal has the symbol Fe?
<think> Fe stands for ferrum. Ferrum is the Latin word for iron. </think>
<answer> iron </answer>

Question: {question}
"""
_RAG_EXAMPLES = """\
Answer each question with the help of the documents above it, in a few words: <answer> answer </answer>.

Doc 1: Jane Austen. Jane Austen, the author of Emma, was born in Steventon, a village in England.
Doc 2: Emma. Emma is the second name of a queen of Hawaii.
Question: In which country was the author of Emma born?
<answer> England </answer>

Doc 1: Symbol. A chemical symbol has one or two letters.
Doc 2: Iron. Iron is a metal with the symbol Fe, from the Latin ferrum.
Question: Which metal has the symbol Fe?
<answer> iron </answer>

{question}
"""
_SEARCH_AGENT_EXAMPLES = """\
Answer each question. Search for what is missing: <search> query </search>. End with <answer> answer </answer>.

Question: In which country was the author of Emma born?
The author of Emma must be known first. <search> author of Emma </search>
<information>
Doc 1: Emma. Emma is a novel by Jane Austen.
</information>
The author is Jane Austen. <search> Jane Austen birthplace </search>
<information>
Doc 1: Jane Austen. Jane Austen was born in Steventon, a village in England.
</information>
Steventon is in England. <answer> England </answer>

Question: Which metal has the symbol Fe?
The metal must be looked up. <search> metal with the symbol Fe </search>
<information>
Doc 1: Iron. Iron is a metal with the symbol Fe, from the Latin ferrum.
</information>
The metal is iron. <answer> iron </answer>

Question: {question}
"""
WITH_EXAMPLES = "_examples"  # the end of the names of a baseline's prompt with worked examples

TEMPLATES = {
    "default": PolicyTemplate(_DEFAULT),
    # For a policy that learns the form of an episode from examples (the stage warm_start).
    "plain": PolicyTemplate("Question: {question}\n", hint="\nSearch or answer.\n", name="plain"),
    "direct": PolicyTemplate(_DIRECT, name="direct"),
    "chain_of_thought": PolicyTemplate(_CHAIN_OF_THOUGHT, name="chain_of_thought"),
    "rag": PolicyTemplate(_RAG, name="rag"),
    "search_agent": PolicyTemplate(_SEARCH_AGENT, name="search_agent"),
    **{name + WITH_EXAMPLES: PolicyTemplate(prompt, name=name + WITH_EXAMPLES) for name, prompt in (
        ("direct", _DIRECT_EXAMPLES), ("chain_of_thought", _CHAIN_OF_THOUGHT_EXAMPLES), ("rag", _RAG_EXAMPLES),
        ("search_agent", _SEARCH_AGENT_EXAMPLES))},
    # Of the carried models' pretraining; a test holds it equal to zsjax.tiny_world.world.
    "tiny_world": PolicyTemplate("{question}\n", hint="\nSearch or answer.\n", name="tiny_world"),
}
