import json
import re

import pytest

from tests.real_tokenizer import qwen2
from zsjax.rewards import extract_answer
from zsjax.rollout.policy_prompt import TEMPLATES, WITH_EXAMPLES, PolicyTemplate
from zsjax.tiny_world import world


@pytest.mark.parametrize("name", TEMPLATES)
def test_render_and_encode(name):
    template = PolicyTemplate.load(name)
    text = template.render(" Who is {question}? \n")
    assert text.endswith("Who is {question}?\n") and "Who" not in template.prompt
    assert template.encode(qwen2(), "who?") == qwen2().encode(template.render("who?"))
    # Documents are whole lines, and the policy goes on in a line of its own.
    assert template.information_open.endswith("\n") and template.information_close.endswith("\n")
    assert template.hint.endswith("\n") and "</" not in template.hint


def test_the_default_explains_every_tag():
    prompt = PolicyTemplate.load("default").prompt
    for tag in ("think", "search", "information", "answer"):
        assert f"<{tag}>" in prompt and f"</{tag}>" in prompt


def test_chat():
    template = PolicyTemplate.load("default")
    text = qwen2().decode(template.encode(qwen2(), "who?", chat=True))
    assert text.endswith(f"<|im_start|>user\n{template.render('who?')}<|im_end|>\n<|im_start|>assistant\n")


def test_the_tiny_world_has_the_prompt_of_its_pretraining():
    template = PolicyTemplate.load("tiny_world")
    assert template == PolicyTemplate(world.POLICY_PROMPT, world.DOCUMENTS_OPEN, world.DOCUMENTS_CLOSE,
                                      world.HINT, "tiny_world")


def test_files(tmp_path):
    text, fields = tmp_path / "prompt.txt", tmp_path / "prompt.json"
    text.write_text("Q: {question}\n")
    assert PolicyTemplate.load(text).render("x") == "Q: x\n"
    assert PolicyTemplate.load(text).hint == TEMPLATES["default"].hint
    fields.write_text(json.dumps({"prompt": "Q: {question}\n", "hint": "\nno.\n"}))
    assert PolicyTemplate.load(fields).hint == "\nno.\n"
    for content, message in (('{"prompt": "x"}', "the slot {question} 0 times; use it once"),
                             ('{"prompt": "{question} {golds}"}', "unknown slot {golds}"),
                             ('{"prompt": "{question}", "hints": ""}', "field 'hints' is ''; write a text, in one of"),
                             ('{"hint": ""}', "has no field 'prompt'"), ("{", "is not JSON"),
                             ('{"prompt": "{question}", "hint": ""}', "nothing stands between two generations; give hint")):
        fields.write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            PolicyTemplate.load(str(fields))
        assert "prompt.json" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no policy template 'nowhere'; give 'default', .*'tiny_world'"):
        PolicyTemplate.load("nowhere")


def test_the_form_of_the_prompt_is_logged_once(caplog):
    import logging

    from zsjax.rollout import rollout

    rollout._log_form.cache_clear()
    with caplog.at_level(logging.INFO):
        for chat in (True, True, False):
            rollout._log_form("default", chat)
    logged = [record.getMessage() for record in caplog.records]
    assert len(logged) == 2 and "chat template" in logged[0] and "plain text" in logged[1]


@pytest.mark.parametrize("name", ["direct", "chain_of_thought", "rag", "search_agent"])
def test_examples_are_two_whole_episodes(name):
    """A base model goes on as the text before: what the examples do, in the tags that a rollout reads, is what it does."""
    template = PolicyTemplate.load(name + WITH_EXAMPLES)
    before, *examples = re.split(r"^Question: ", template.prompt.replace("{question}", "Question: {question}")
                                 if name == "rag" else template.prompt, flags=re.MULTILINE)
    assert len(examples) == 3 and examples[2].strip() == "{question}"
    assert [extract_answer(example) for example in examples[:2]] == ["England", "iron"]
    searches = [re.findall("<search> (.*?) </search>\n<information>\nDoc 1: .*\n</information>\n", example)
                for example in examples[:2]]
    assert list(map(len, searches)) == ([2, 1] if name == "search_agent" else [0, 0])
    assert all(("<think>" in example) == (name == "chain_of_thought") for example in examples[:2])
    assert (before.count("Doc 1:") + examples[0].count("Doc 1:") >= 2) == (name in ("rag", "search_agent"))
