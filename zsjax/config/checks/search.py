"""Checks of search, rollout and prompts; which engines a run searches with."""

import os
import pathlib

from zsjax.config.checks.names import (
    ENGINES,
    EVAL_ENGINES,
    MIX_SCHEDULES,
    POLICY_TEMPLATES,
    REAL_ENGINES,
    SIMULATOR_TEMPLATES,
)


def check_rollout(found, config):
    search, rollout = config.search, config.rollout
    found.one_of("search.engine", ENGINES)
    found.one_of("search.eval_engine", EVAL_ENGINES)
    found.one_of("search.noise_per", ("search", "document"))
    found.within(1, 20, "search.num_documents")
    found.at_least(1, "search.max_document_tokens", "search.max_query_tokens", "rollout.max_turns",
                   "rollout.max_turn_tokens", "rollout.max_prompt_tokens", "rollout.capacities")
    found.at_least(0, "search.passage_words", "rollout.rows", "rollout.simulator_slots", "rollout.lanes")
    found.at_least(1, "rollout.visit_every", "rollout.search_batches")
    found.within(0, 1, "rollout.busy")
    found.within(0, 10, "search.temperature")
    if not 0 < search.top_p <= 1:
        found.add("search.top_p", "out of range", "give a probability above 0, up to 1")
    # At temperature 0 every episode of a group is the same one and the advantages vanish.
    found.positive("rollout.temperature")
    _check_engines(found, config)
    need = rollout.max_prompt_tokens + rollout.max_turn_tokens
    if rollout.max_tokens < need:
        found.add("rollout.max_tokens", "smaller than a prompt and one turn "
                  f"(max_prompt_tokens {rollout.max_prompt_tokens} + max_turn_tokens {rollout.max_turn_tokens})",
                  f"give {need} or more")
    for field, templates in (("prompts.policy", POLICY_TEMPLATES), ("prompts.simulator", SIMULATOR_TEMPLATES)):
        name = found.value(field)
        if name not in templates and not pathlib.Path(name).is_file():
            found.add(field, "no such template or file", f"give {', '.join(templates)}, or a template file's path")
    try:
        line = search.document_format.format(i=1, title="", text="text")
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        found.add("search.document_format", f"cannot be filled ({type(error).__name__}: {error})",
                  "use the slots {i}, {title}, {text} only")
    else:
        if "text" not in line or "\n" in line:
            found.add("search.document_format", "a document is one line that holds {text}", "see the default")


def _check_engines(found, config):
    """What the engines that are used need beside their names."""
    search, used = config.search, used_engines(config)
    remote = search.remote
    found.one_of("search.reveal_gold", ("always", "on_target", "never"))
    if search.rerank.candidates and not search.num_documents <= search.rerank.candidates <= 20:
        found.add("search.rerank.candidates", f"are not between search.num_documents = {search.num_documents} and 20",
                  "give so many, or 0 for none")
    found.at_least(0, "search.rerank.learning_rate")
    found.at_least(1, "search.rerank.buckets")
    found.one_of("search.mix.real", REAL_ENGINES)
    found.one_of("search.mix.schedule", MIX_SCHEDULES)
    found.within(0, 1, "search.mix.start", "search.mix.end")
    found.positive("search.mix.base", "search.remote.timeout")
    found.at_least(0, "search.remote.retries", "search.remote.budget")
    found.at_least(1, "search.remote.concurrency", "search.remote.max_bytes")
    if used & {"http", "chat"} and not remote.url.startswith(("http://", "https://")):
        found.add("search.remote.url", "is no address of a server", "give http://HOST:PORT of the server")
    if "chat" in used and not remote.model:
        found.add("search.remote.model", "the chat server must be told which model", "give the name the server knows it by")
    key = remote.key_env or ("SERPAPI_API_KEY" if "serpapi" in used else "")
    if found.files and used & {"serpapi", "chat"} and key and not os.environ.get(key):
        found.add("search.remote.key_env", f"the environment has no {key}", f"set the environment variable {key}")
    if "dense" in used:
        if not search.embedder:
            found.add("search.embedder", "dense retrieval needs one", "give a checkpoint, or package.module:function")
        elif ":" not in search.embedder.removeprefix("asset:"):
            found.is_path("search.embedder")


def used_engines(config) -> set[str]:
    """Names of the engines that the config's stages search with."""
    used = {config.search.eval_engine} if {"train", "evaluate"} & set(config.stages) else set()
    if "train" in config.stages:
        used |= {config.search.mix.real, "simulator"} if config.search.engine == "mixed" else {config.search.engine}
    return used


def uses_simulator(config):
    return "simulator" in used_engines(config) or (
        "tune_simulator" in config.stages and config.search.engine in ("simulator", "mixed"))
