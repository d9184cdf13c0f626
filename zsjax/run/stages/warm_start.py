"""The policy's warm start: supervised training on episodes, before reinforcement learning."""

import numpy as np

from zsjax import supervised
from zsjax.errors import UserError
from zsjax.parallel import hosts
from zsjax.parallel.mesh import TRAIN_RULES
from zsjax.rl import roles
from zsjax.run import build
from zsjax.run.stages.context import Run
from zsjax.search import registry
from zsjax.tuning import demonstrations
from zsjax.tuning.dataset import make_batches


def warm_start(run: Run):
    if run.done("warm_start", "models/warm_start"):
        return
    config, options = run.config, run.config.warm_start
    shown = demonstrations.Shown(config, run.tokenizer)
    episodes = find_episodes(run, shown)
    tokens, token_roles = demonstrations.encode(episodes, shown, options.max_tokens)
    run.writer.note(f"warm_start: {len(tokens)} of {len(episodes)} episodes fit the budgets of rollout, search and "
                    f"warm_start.max_tokens = {options.max_tokens}")
    if not len(tokens):
        raise UserError("warm_start.max_tokens and rollout: no episode fits their budgets; raise warm_start.max_tokens, "
                        "rollout.max_tokens or rollout.max_turn_tokens")
    weights = np.asarray(roles.loss_mask(token_roles)).astype(np.float32)
    batches = make_batches(tokens, weights, batch_rows=options.batch_rows, seed=config.seed)
    model, params = run.policy("base", rules=TRAIN_RULES)
    params = supervised.fit(options, model, params, batches, writer=run.writer, stage="warm_start",
                              directory=run.path("checkpoints") / "warm_start", config_json=run.config_json,
                              lora=config.policy.lora, seed=config.seed, mesh=run.mesh)
    run.save_model("warm_start", model, params)


def find_episodes(run: Run, shown: demonstrations.Shown) -> list[demonstrations.Demonstration]:
    """The episodes of config.warm_start.episodes; without a file, made once of training questions and the real engine.

    Raises:
      UserError: the file cannot be read, or no question's answer was found.
    """
    config, made = run.config, run.path("episodes.jsonl")
    given = config.warm_start.episodes
    if not given and not hosts.agree(made.exists()):
        name = registry.real_or(config.search.eval_engine, "bm25")
        engine = run.engine(name, config.data.corpus)  # on all hosts, which make an index together
        hosts.from_lead(lambda: _write_episodes(run, shown, name, engine, made))
    try:
        return hosts.together(lambda: demonstrations.read_demonstrations(given or made))
    except (OSError, ValueError) as error:
        raise UserError(f"warm_start: {error}") from error


def _write_episodes(run, shown, name, engine, path):
    """Writes episodes of the training questions, with documents of the engine called `name`."""
    source = run.config.data.train
    questions = build.supervised_questions(run.config)
    options, titles = run.config.warm_start, ()
    if options.bridges:
        titles = [document.title for document in build.corpus(run.config, run.config.data.corpus)]
    episodes = demonstrations.thin_named(demonstrations.make_demonstrations(questions, engine, shown, titles),
                                         options.named_share)
    searches = sum(len(episode.turns) for episode in episodes)
    run.writer.note(f"warm_start: {len(episodes)} of {len(questions)} questions have their answer in documents of "
                    f"{name}, after {searches / max(len(episodes), 1):.2f} searches on average")
    if limit := run.config.warm_start.episode_documents:
        shorter = (demonstrations.shorten(episode, shown, limit) for episode in episodes)
        episodes = [episode for episode in shorter if episode is not None]
    if not episodes:
        raise UserError(f"data.train = {source!r}: no document that {name} finds holds a gold "
                        "answer; use a corpus that holds the answers, or give warm_start.episodes")
    demonstrations.write_demonstrations(path, episodes)
