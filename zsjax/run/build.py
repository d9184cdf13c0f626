"""Objects from their names in a config: tokenizer, models, questions, corpora, engines, simulator."""

import dataclasses
import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp

from zsjax.config import Config, ModelConfig
from zsjax.config.named import load_object
from zsjax.config.options import read_options
from zsjax.data import load_corpus, load_questions, load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.data.playable import keep_playable
from zsjax.data.questions import draw_questions
from zsjax.errors import UserError, reading
from zsjax.evaluation.baselines import PROMPT_TOKENS
from zsjax.models import attention
from zsjax.models.checkpoints import hub
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.models.placement import param_shardings
from zsjax.parallel import hosts
from zsjax.parallel.mesh import reshard
from zsjax.rewards import answer_kind
from zsjax.rollout.policy_prompt import TEMPLATES, PolicyTemplate
from zsjax.search import Document, DropBest, Limits, decoder_embedder, registry
from zsjax.search.engine import chance
from zsjax.search.engines.dense import QUERY_FORMAT
from zsjax.search.passages import Passages
from zsjax.search.simulator.prompt import JudgeTemplate, SimulatorTemplate
from zsjax.search.simulator.simulator import Simulator
from zsjax.types import Question

TINY_WORLD = "tiny_world:"


def tokenizer(config: Config):
    return load_tokenizer(local_path(config.tokenizer, weights=False))


def local_path(name: str, *, weights: bool = False) -> pathlib.Path:
    """The path of "asset:NAME", "hf:OWNER/NAME" or a path."""
    return hub.local_folder(name, weights=weights) if name.startswith(hub.PREFIX) else asset_path(name)


def model(config: ModelConfig, tokenizer, *, seed: int, path=None, mesh=None, rules=None) -> tuple[DecoderConfig, dict]:
    """(DecoderConfig, params) of a model: random, or loaded from `path`, else from `config.init`.

    Activations get `config.dtype`, parameters `config.param_dtype`, whatever the checkpoint's dtype. A mesh of several
    devices shards parameters under `rules` (`zsjax.parallel.mesh`).

    Raises:
      ValueError, FileNotFoundError: of `load_hf`, or for an attention kernel that cannot run.
    """
    path = path or config.init
    mesh = None if mesh is None or mesh.size == 1 else mesh
    if str(path) == "random":
        shape = DecoderConfig(**({"vocab_size": tokenizer.vocab_size} | dict(config.shape)), dtype=config.dtype,
                              attention=config.attention).for_tokenizer(tokenizer)
        attention.choose(shape)
        params = init_params(shape, jax.random.key(seed), jnp.dtype(config.param_dtype))
        if config.positional_bias_init:
            from zsjax.tiny_world.positional import positional_bias_init

            params = positional_bias_init(params, shape, jax.random.key(seed))
        return shape, params if mesh is None else reshard(params, param_shardings(shape, mesh, rules))
    from zsjax.models.checkpoints.hf import load_hf, read_config

    folder = local_path(str(path), weights=True)
    shape = dataclasses.replace(read_config(folder), dtype=config.dtype, attention=config.attention)
    attention.choose(shape)
    loaded, params = load_hf(folder, dtype=config.param_dtype, mesh=mesh, rules=rules, tokenizer=tokenizer,
                        check_finite=config.check_finite)
    return dataclasses.replace(shape, num_ids=loaded.num_ids), params


def worlds(config: Config, name: str):
    """The tiny worlds of "tiny_world:train" or "tiny_world:eval"."""
    from zsjax.tiny_world import world

    return world.worlds_of(name, **config.world)


def questions(config: Config, source: str, limit: int | None = None) -> list[Question]:
    """The questions of a source, "PATH#SPLIT" for one split. Of more than `limit` a sample, the same in every run, so that
    runs can be compared; of the tiny world's, which are in random order, the first."""
    if source.startswith(TINY_WORLD):
        from zsjax.tiny_world import world

        return list(world.questions(worlds(config, source)))[:limit]
    source, _, split = source.partition("#")
    return draw_questions(load_questions(source, split=split or None), limit)


def supervised_questions(config: Config) -> list[Question]:
    """The questions of data.train that the warm start and the simulator's searches take. Raises UserError for none."""
    share = config.data.supervised_share
    return _any_left(config, [question for question in questions(config, config.data.train)
                              if not share or chance("supervised", question.key) < share])


def reinforced_questions(config: Config) -> list[Question]:
    """The questions of data.train that reinforcement plays: without `supervised_questions` where data.supervised_share
    sets them apart, and without those of data.leave_out.

    Raises UserError for none.
    """
    data = config.data
    found = [question for question in questions(config, data.train)
             if not data.supervised_share or chance("supervised", question.key) >= data.supervised_share]
    if data.leave_out:
        found = [question for question in found
                 if answer_kind(question.question, question.golden_answers) not in data.leave_out]
    return _any_left(config, found)


def _any_left(config, found):
    data = config.data
    if not found and (data.supervised_share or data.leave_out):
        raise UserError(f"data.train = {data.train!r}: data.supervised_share = {data.supervised_share} and data.leave_out = "
                        f"{data.leave_out} leave no question to one of the stages; set a share nearer to 0.5, or leave out "
                        "fewer")
    return found


def benchmarks(config: Config) -> list[Question]:
    """The questions of an evaluation: of every benchmark, under its name, or of config.data.eval."""
    limit = config.data.eval_limit
    if not config.data.benchmarks:
        return questions(config, config.data.eval, limit)
    # The ids of FlashRAG's files all begin at "test_0": the name makes keys unique.
    return [dataclasses.replace(question, metadata={**question.metadata, "data_set": name}, key=f"{name}:{question.key}")
            for name, source in config.data.benchmarks.items() for question in questions(config, source, limit)]


def playable(config: Config, questions: list[Question], source: str, tokenizer, *, baselines=()) -> list[Question]:
    """The questions whose prompts fit, the policy's and those of `baselines` (names). data.overlong says whether others are
    dropped or refused. Raises InputError as `zsjax.data.playable.keep_playable`."""
    names = [config.prompts.policy, *(name for name in baselines if name in TEMPLATES and name != "rag")]
    policy, *others = (PolicyTemplate.load(name) for name in dict.fromkeys(names))

    def encode(text):
        """The longest prompt, those of baselines without the tokens that their budget has more."""
        prompts = [template.encode(tokenizer, text, chat=config.prompts.chat)[PROMPT_TOKENS:] for template in others]
        return max([policy.encode(tokenizer, text, chat=config.prompts.chat), *prompts], key=len)

    return keep_playable(questions, encode, max_prompt_tokens=config.rollout.max_prompt_tokens,
                         overlong=config.data.overlong, source=source)


def corpus(config: Config, source: str) -> list[Document]:
    if source.startswith(TINY_WORLD):
        from zsjax.tiny_world import world

        return world.documents(worlds(config, source))
    return load_corpus(source)


def engine(name: str, config: Config, source: str, *, workdir=".", drop_best: float = 0.0, misinformation: float = 0.0,
           simulator: Callable[[], Simulator] | None = None):
    """An engine by name, see `zsjax.search.registry`.

    Args:
      name: as of config.search.engine.
      source: the corpus, for engines that have one.
      workdir: config.search.index_dir and .remote.cache_dir are relative to it.
      drop_best: probability that a search loses its best document.
      misinformation: probability that a search's best document names a wrong object; for the tiny world's corpora.
      simulator: makes the simulator, for engines that use it (`stages.context.Run.engine`).

    Raises:
      UserError: an unknown engine, or something that it needs is missing.
      ConfigError: its options in config.search.options are wrong.
    """
    spec, workdir = registry.find(name), pathlib.Path(workdir)
    setting = registry.EngineSetting(
        config=config, workdir=workdir, limits=_limits(config), simulator=simulator,
        documents=functools.partial(corpus, config, source), embedder=functools.partial(embedder, config),
        index=functools.partial(_index, config, source, workdir),
        engine=lambda other: engine(other, config, source, workdir=workdir, simulator=simulator))
    options = [] if spec.options is None else [read_options(spec.options, config.search.options)]
    try:
        found = spec.factory(setting, *options)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"the search engine {name!r} cannot start: {error}; check config.search.options") from error
    if "simulator" in registry.needs(name, config.search):
        return found
    found = DropBest(found, drop_best, seed=config.seed) if drop_best else found
    if misinformation:
        from zsjax.tiny_world.misinformation import Misinformed

        found = Misinformed(found, corpus(config, source), misinformation, seed=config.seed)
    return Passages(found, config.search.passage_words) if config.search.passage_words else found


def _index(config, source, workdir, name, build, load, *what):
    """An index over a corpus. That of a file is built once and kept under the hash of its inputs."""
    if source.startswith(TINY_WORLD) or not config.search.index_dir:
        return build()
    key = hashlib.sha256(repr([name, *what]).encode())
    with reading(source), open(source, "rb") as file:
        while block := file.read(1 << 20):
            key.update(block)
    folder = workdir / config.search.index_dir / f"{name}-{key.hexdigest()[:16]}"
    if not hosts.agree(folder.exists()):
        if hosts.is_lead():
            logging.info("building the %s index of %s", name, source)
            build().save(folder)
        hosts.wait("index")
    return load(folder)  # memory-mapped, even when it has just been built


def embedder(config: Config):
    """(embed documents, embed queries) of config.search.embedder: list[str] -> float32[N, D]."""
    name = config.search.embedder
    if ":" in name and not name.startswith(("asset:", hub.PREFIX)):
        embed = load_object(name, "embedder")
        return embed, embed
    from zsjax.models.checkpoints.hf import load_hf

    folder = local_path(name, weights=True)
    shape, params = load_hf(folder, head=False)
    its_tokenizer = load_tokenizer(folder)
    return tuple(decoder_embedder(shape, params, its_tokenizer, text_format=text_format)
                 for text_format in ("{query}", QUERY_FORMAT))


def _limits(config):
    remote = config.search.remote
    return Limits(timeout=remote.timeout, retries=remote.retries, concurrency=remote.concurrency,
                  max_bytes=remote.max_bytes)


def simulator(config: Config, model_config: DecoderConfig, params, tokenizer) -> Simulator:
    search, template = config.search, SimulatorTemplate.load(config.prompts.simulator)
    if config.prompts.simulator_chat:
        template = template.in_chat(tokenizer)
    _log_form(template.name, config.prompts.simulator_chat)
    return Simulator(
        config=model_config, params=params, tokenizer=tokenizer, template=template, num_documents=search.num_candidates,
        max_document_tokens=search.max_document_tokens, max_query_tokens=search.max_query_tokens,
        max_question_tokens=config.rollout.max_prompt_tokens, temperature=search.temperature, top_p=search.top_p,
        # A mixed engine's documents are reranked on the host afterwards, so they must come in the order of writing.
        shuffle_documents=search.shuffle_documents and not (search.rerank.candidates and search.engine == "mixed"),
        reveal_gold=search.reveal_gold, cache_dtype=config.simulator.cache_dtype)


def judge(config: Config):
    """The judge of config.collect.judge."""
    from zsjax.tuning.judge import ChatJudge, DecoderJudge

    options = config.collect.judge
    template = JudgeTemplate.load(options.template)
    if options.url:
        return ChatJudge(options.url, model=options.model, template=template, key_env=options.key_env,
                         extra_body=options.extra_body, limits=_limits(config))
    its_tokenizer = load_tokenizer(local_path(options.tokenizer or options.init, weights=False))
    shape, params = model(ModelConfig(init=options.init, dtype=options.dtype, param_dtype=options.dtype), its_tokenizer,
                          seed=config.seed)
    return DecoderJudge(shape, params, its_tokenizer, template, chat=options.chat, batch_rows=options.batch_rows,
                        max_tokens=options.max_tokens)


@functools.cache  # once a run
def _log_form(template: str, chat: bool):
    form = "in the tokenizer's chat template" if chat else "as plain text"
    logging.info("simulator prompts: template %r %s", template, form)


def frozen(config: ModelConfig, simulator: Simulator) -> Simulator:
    """The simulator as rollouts use it: quantized as config.quantize says, no longer trainable."""
    if config.quantize == "none":
        return simulator
    from zsjax.models.quant import quantize

    return dataclasses.replace(simulator, params=quantize(simulator.params))


_BASES = {"policy": "asset:tiny_world/base", "simulator": "asset:tiny_world/simulator_base"}


def carried(config: Config, name: str) -> pathlib.Path | None:
    """The folder of the trained "policy" or "simulator" that the package carries, where `config` begins from the carried
    base of the tiny world or from random weights; else None."""
    tiny_world = config.tokenizer == "asset:tiny_world/tokenizer"
    begins = getattr(config, name).init in (_BASES[name], "random")
    return asset_path(f"asset:tiny_world/{name}") if tiny_world and begins else None


def checkpoint_exists(path: pathlib.Path) -> bool:
    """Whether a folder holds a whole model: `save_hf` renames it into place when it is complete."""
    return (path / "config.json").exists()
