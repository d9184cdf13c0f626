"""Checks of search, rollout and prompts; which engines a run searches with."""

import dataclasses
import os
import re

from zsjax.config.allowed import function_problem
from zsjax.config.options import check_options
from zsjax.config.read import known_name
from zsjax.search import registry


def check_rollout(found, config):
    from zsjax.rollout.actions import load_actions

    rollout = config.rollout
    _check_engines(found, config)
    need = rollout.max_prompt_tokens + rollout.max_turn_tokens
    if rollout.max_tokens < need:
        found.add("rollout.max_tokens", "smaller than a prompt and one turn "
                  f"(max_prompt_tokens {rollout.max_prompt_tokens} + max_turn_tokens {rollout.max_turn_tokens})",
                  f"give {need} or more")
    if config.search.max_document_tokens < 2 and uses_simulator(config):
        found.add("search.max_document_tokens", "a simulator ends each document with a newline, which is a token",
                  "give 2 or more")
    found.loads("rollout.actions", load_actions, 'give "search", "answer", or package.module:ACTION')
    _check_templates(found)


def _check_templates(found):
    from zsjax.rollout import policy_prompt
    from zsjax.search.engine import Document
    from zsjax.search.simulator import prompt

    def fill(line):
        prompt.format_document(line, 1, Document("title", "text"))
        if "\n" in line or re.search(r"[{}]", re.sub(r"\{(i|title|text)\}", "", line)):
            raise ValueError("a document is one line, and its only braces are those of slots")

    for field, template, carried in (
            ("prompts.policy", policy_prompt.PolicyTemplate, policy_prompt.TEMPLATES),
            ("prompts.simulator", prompt.SimulatorTemplate, prompt.TEMPLATES)):
        if found.files or found.value(field) in carried:
            found.loads(field, template.load, f"give {', '.join(carried)}, or a template file's path")
    found.loads("search.document_format", fill, "use the slots {i}, {title}, {text} only, and {text} in any case")


def _check_engines(found, config):
    """What the engines that are used need beside their names."""
    search, remote = config.search, config.search.remote
    used = [spec for name in used_engines(config) for spec in registry.specs(name, search)]
    needs = {need for spec in used for need in spec.needs}
    if search.rerank.candidates and not search.num_documents <= search.rerank.candidates <= 20:
        found.add("search.rerank.candidates", f"not between search.num_documents = {search.num_documents} and 20",
                  "give a number in this range, or 0")
    if "url" in needs and not remote.url:
        found.add("search.remote.url", "not the URL of a server", "give http://HOST:PORT")
    if remote.extra_body.keys() & {"model", "messages"}:
        found.add("search.remote.extra_body", "the request itself sets model and messages", "remove them")
    if "served_model" in needs and not remote.model:
        found.add("search.remote.model", "the chat server needs the name of its model", "give the name that the server uses")
    if "key" in needs:
        check_key(found, "search.remote.key_env", remote.key_env or max(spec.key_env for spec in used))
    if "embedder" in needs:
        _check_embedder(found, search.embedder)
    _check_options(found, search)


def _check_options(found, search):
    """config.search.options against the dataclasses of the engines that the config names."""
    for field in ("engine", "eval_engine", "mix.real"):
        found.loads(f"search.{field}", registry.find, "give package.module:factory of a module that imports")
    specs = [spec for name in dict.fromkeys((search.engine, search.eval_engine)) for spec in registry.specs(name, search)]
    kinds, known = [spec.options for spec in specs if spec.options is not None], set()
    for kind in kinds:
        known |= {field.name for field in dataclasses.fields(kind)}
        found.problems += check_options(kind, search.options)[1]
    for name in search.options.keys() - known:
        found.add("search.options", f"{name!r} is unknown",
                  known_name(name, sorted(known)) if known else "remove it: none of the named engines has options")


def _check_embedder(found, name):
    if not name:
        found.add("search.embedder", "dense retrieval needs one", "give a checkpoint, or package.module:function")
    elif ":" not in name or name.startswith(("asset:", "hf:")):
        found.is_path("search.embedder")
    elif reason := function_problem(name):
        found.add("search.embedder", reason, "give a checkpoint, or package.module:function of a module that imports")


def check_key(found, field, name):
    """The environment has the variable with a server's key, if one is named."""
    if found.files and name and "\0" not in name and not os.environ.get(name):
        found.add(field, f"the environment has no {name}", f"set the environment variable {name}")


def used_engines(config) -> set[str]:
    """Names of the engines that the config's stages search with."""
    used = {config.search.eval_engine} if {"train", "evaluate"} & set(config.stages) else set()
    if "train" in config.stages:
        used |= {spec.name for spec in registry.specs(config.search.engine, config.search) if not spec.parts(config.search)}
    return used


def uses_simulator(config):
    return "simulator" in used_engines(config) or (
        "tune_simulator" in config.stages and "simulator" in registry.needs(config.search.engine, config.search))
