"""What a config may say beyond its types: ranges, names, combinations, files. Every problem is found, none is raised.

Nothing here touches a device: `find_problems` runs before jax has looked for one, and `find_device_problems` is asked
once their number is known.
"""

import dataclasses
import inspect
import math
import os
import pathlib

from zsjax.config import STAGES, Config, Problem

ENGINES = ("simulator", "bm25", "empty", "dense", "http", "serpapi", "chat", "mixed")
EVAL_ENGINES = ("bm25", "empty", "dense", "http", "serpapi", "chat", "simulator")
REAL_ENGINES = ("bm25", "dense", "http", "serpapi")
ADVANTAGES = ("grpo", "rloo", "reinforce", "reinforce_plus_plus")
CURRICULA = ("zero_search", "constant", "linear", "cosine")
RATES = ("constant", "linear", "cosine")
REDUCTIONS = ("token_mean", "sequence_mean", "fixed_length")
DTYPES = ("float32", "bfloat16", "float16")
TEMPLATES = ("default", "tiny_world")
POLICY_TEMPLATES = (*TEMPLATES, "direct", "chain_of_thought", "rag", "search_agent")
SIMULATOR_TEMPLATES = (*TEMPLATES, "prompted")
BASELINES = ("direct", "chain_of_thought", "rag", "interleaved", "search_agent", "no_search", "best_of_n", "tree_search",
             "trajectory_sft")
WORLDS = ("tiny_world:train", "tiny_world:eval")
# A shape that `init="random"` must give; vocab_size is the tokenizer's where it is left out.
SHAPE = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
SUPERVISED = ("pretrain", "pretrain_simulator", "tune_simulator", "trajectory_sft")


def find_problems(config: Config) -> list[Problem]:
    """All that is wrong with a config of the right types, in the order of its fields."""
    found = _Found(config)
    _check_stages(found, config)
    _check_models(found, config)
    _check_data(found, config)
    _check_rollout(found, config)
    _check_algorithm(found, config)
    _check_train(found, config)
    _check_supervised(found, config)
    _check_rest(found, config)
    return found.problems


def find_device_problems(config: Config, num_devices: int) -> list[Problem]:
    """What is wrong once the number of devices is known: the mesh, and rows that do not divide over it."""
    found = _Found(config)
    axes = {name: getattr(config.mesh, name) for name in ("data", "fsdp", "tensor")}
    fixed = math.prod(size for size in axes.values() if size > 0)
    free = [name for name, size in axes.items() if size == -1]
    if num_devices % fixed or (not free and fixed != num_devices):
        name = free[0] if free else "data"
        found.add(f"mesh.{name}", f"{axes} does not fit {num_devices} devices",
                  f"the sizes must multiply to {num_devices}; one may be -1 for what is left")
        return found.problems
    left = num_devices // fixed
    shards = math.prod(left if axes[name] == -1 else axes[name] for name in ("data", "fsdp"))
    rows = config.train.questions_per_step * config.train.group_size // config.train.minibatches
    if "train" in config.stages and rows % shards:
        found.add("train.questions_per_step",
                  f"{rows} rows a minibatch (questions_per_step x group_size / minibatches) do not divide over "
                  f"{shards} devices", f"make the rows a multiple of {shards}, or set mesh")
    if config.evaluate.batch_rows % shards:
        found.add("evaluate.batch_rows", f"does not divide over {shards} devices", f"give a multiple of {shards}")
    for stage in SUPERVISED:
        if stage in config.stages and getattr(config, stage).batch_rows % shards:
            found.add(f"{stage}.batch_rows", f"does not divide over {shards} devices", f"give a multiple of {shards}")
    return found.problems


class _Found:
    """Problems of one config, and the few ways to look for them. Fields are dotted names."""

    def __init__(self, config):
        self.config = config
        self.problems: list[Problem] = []

    def value(self, field):
        value = self.config
        for name in field.split("."):
            value = value[name] if isinstance(value, dict) else getattr(value, name)
        return value

    def add(self, field, reason, mend):
        self.problems.append(Problem(field, self.value(field), reason, mend))

    def one_of(self, field, names):
        if self.value(field) not in names:
            self.add(field, "unknown", f"give one of {', '.join(names)}")

    def at_least(self, low, *fields):
        for field in fields:
            value = self.value(field)
            if value is not None and not value >= low:  # so that NaN is refused
                self.add(field, "too small", f"give {low} or more")

    def within(self, low, high, *fields):
        for field in fields:
            value = self.value(field)
            if value is not None and not low <= value <= high:
                self.add(field, "out of range", f"give {low} to {high}")

    def positive(self, *fields):
        for field in fields:
            value = self.value(field)
            if value is not None and not 0 < value < math.inf:
                self.add(field, "not positive", "give a number above 0")


def _check_stages(found, config):
    if not config.stages:
        found.add("stages", "nothing to do", f"name some of {', '.join(STAGES)}")
    unknown = [stage for stage in config.stages if stage not in STAGES]
    if unknown:
        found.add("stages", f"{unknown[0]!r} is unknown", f"name some of {', '.join(STAGES)}")
    elif list(config.stages) != sorted(set(config.stages), key=STAGES.index):
        found.add("stages", "repeated or out of order", f"give each once, in the order {', '.join(STAGES)}")


def _check_models(found, config):
    _check_path(found, "tokenizer")
    for name, needed in (("policy", True), ("simulator", _uses_simulator(config))):
        model = getattr(config, name)
        found.one_of(f"{name}.dtype", DTYPES)
        found.one_of(f"{name}.param_dtype", DTYPES)
        if model.init == "random":
            if needed:
                _check_shape(found, f"{name}.shape", model.shape)
        else:
            if needed:
                _check_path(found, f"{name}.init")
            if model.shape:
                found.add(f"{name}.shape", f"the shape is read from {model.init}", f"remove it, or set {name}.init to "
                          "'random'")
            if model.positional_bias_init:
                found.add(f"{name}.positional_bias_init", "only random weights can be given a start",
                          f"set it to false, or {name}.init to 'random'")


def _check_shape(found, field, shape):
    from zsjax.models.layers import DecoderConfig

    known = {f.name: f.type for f in dataclasses.fields(DecoderConfig)}
    unknown = [name for name in shape if name not in known or name == "dtype"]
    missing = [name for name in SHAPE if name not in shape]
    if unknown:
        found.add(field, f"{unknown[0]!r} is unknown here", f"known: {', '.join(n for n in known if n != 'dtype')}")
    elif missing:
        found.add(field, f"random weights need {', '.join(missing)}", "give them, or name a checkpoint as init")
    else:
        bad = [name for name in (*SHAPE, "vocab_size")
               if not isinstance(shape.get(name, 1), int) or shape.get(name, 1) < 1]
        if bad:
            found.add(field, f"{bad[0]}={shape[bad[0]]!r} is no count", "give a whole number above 0")
            return
        try:
            DecoderConfig(**({"vocab_size": 1} | shape))
        except (TypeError, ValueError) as error:
            found.add(field, str(error), "change the shape")


def _check_path(found, field):
    from zsjax.data.assets import asset_path

    try:
        path = asset_path(found.value(field))
    except FileNotFoundError as error:
        found.add(field, "no such asset", str(error).partition("; ")[2] or str(error))
        return
    if not path.exists():
        found.add(field, f"no file or folder there (looked in {os.getcwd()})", "check the path")


def _check_data(found, config):
    for field in ("data.train", "data.eval"):
        _check_source(found, field, (".jsonl", ".jsonl.gz", ".parquet"), tfds=True)
    for field in ("data.corpus", "data.eval_corpus"):
        _check_source(found, field, (".jsonl", ".jsonl.gz", ".parquet"), tfds=False)
    for name in config.data.benchmarks:
        if "." in name or "/" in name:
            found.add("data.benchmarks", f"{name!r} is no name", "give names without '.' and '/'")
            continue
        _check_source(found, f"data.benchmarks.{name}", (".jsonl", ".jsonl.gz", ".parquet"), tfds=True)
    found.at_least(1, "data.eval_limit")
    if config.world:
        _check_world(found, config)


def _check_source(found, field, endings, *, tfds):
    source = str(found.value(field)).partition("#")[0]
    known = f"a path that ends in {', '.join(endings)}, {' or '.join(WORLDS)}" + (", or tfds:NAME" if tfds else "")
    if source in WORLDS or (tfds and source.startswith("tfds:") and len(source) > 5):
        return
    if source.startswith(("tiny_world:", "tfds:")) or not source.endswith(endings):
        found.add(field, "not a source", f"give {known}")
    elif not pathlib.Path(source).is_file():
        found.add(field, f"no such file (looked in {os.getcwd()})", "check the path")


def _check_world(found, config):
    from zsjax.data import tiny_world

    known = [name for function in (tiny_world.resolve, tiny_world.make_world)
             for name, parameter in inspect.signature(function).parameters.items()
             if parameter.kind == parameter.KEYWORD_ONLY and name != "taken"]
    for name in config.world:
        if name not in known:
            found.add("world", f"{name!r} is unknown", f"known: {', '.join(known)}")


def _check_rollout(found, config):
    search, rollout = config.search, config.rollout
    found.one_of("search.engine", ENGINES)
    found.one_of("search.eval_engine", EVAL_ENGINES)
    found.within(1, 20, "search.num_documents")
    found.at_least(1, "search.max_document_tokens", "search.max_query_tokens", "rollout.max_turns",
                   "rollout.max_turn_tokens", "rollout.max_prompt_tokens")
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
    search, used = config.search, _used_engines(config)
    remote = search.remote
    found.one_of("search.reveal_gold", ("always", "on_target", "never"))
    found.one_of("search.mix.real", REAL_ENGINES)
    found.one_of("search.mix.schedule", CURRICULA)
    found.within(0, 1, "search.mix.start", "search.mix.end")
    found.positive("search.mix.base", "search.remote.timeout")
    found.at_least(0, "search.remote.retries", "search.remote.budget")
    found.at_least(1, "search.remote.concurrency", "search.remote.max_bytes")
    if used & {"http", "chat"} and not remote.url.startswith(("http://", "https://")):
        found.add("search.remote.url", "is no address of a server", "give http://HOST:PORT of the server")
    if "chat" in used and not remote.model:
        found.add("search.remote.model", "the chat server must be told which model", "give the name the server knows it by")
    key = remote.key_env or ("SERPAPI_API_KEY" if "serpapi" in used else "")
    if used & {"serpapi", "chat"} and key and not os.environ.get(key):
        found.add("search.remote.key_env", f"the environment has no {key}", f"set the environment variable {key}")
    if "dense" in used:
        if not search.embedder:
            found.add("search.embedder", "dense retrieval needs one", "give a checkpoint, or package.module:function")
        elif ":" not in search.embedder.removeprefix("asset:"):
            _check_path(found, "search.embedder")


def _used_engines(config) -> set[str]:
    """Names of the engines that the config's stages search with."""
    used = {config.search.eval_engine} if {"train", "evaluate"} & set(config.stages) else set()
    if "train" in config.stages:
        used |= {config.search.mix.real, "simulator"} if config.search.engine == "mixed" else {config.search.engine}
    return used


def _check_algorithm(found, config):
    algorithm = config.algorithm
    found.one_of("algorithm.advantage", ADVANTAGES)
    found.one_of("algorithm.reduction", REDUCTIONS)
    found.at_least(0, "algorithm.kl_coef", "algorithm.entropy_coef", "algorithm.clip_low", "algorithm.clip_high")
    if algorithm.kl_kind == "k1":
        found.add("algorithm.kl_kind", "as a loss, k1 has an expected gradient of zero", "give k2 or k3")
    else:
        found.one_of("algorithm.kl_kind", ("k2", "k3"))
    from zsjax.rl.update import load_loss

    try:
        if not callable(load_loss(algorithm.loss)):
            found.add("algorithm.loss", "is no function", "name a function as package.module:function")
    except Exception as error:  # importing a user's module may raise anything
        found.add("algorithm.loss", str(error).split("\n")[0] or type(error).__name__,
                  "give ppo_clip, or package.module:function of a module that imports")
    found.one_of("curriculum.schedule", CURRICULA)
    found.within(0, 1, "curriculum.start", "curriculum.end")
    found.positive("curriculum.base")


def _check_optimizer(found, prefix):
    found.one_of(f"{prefix}.schedule", RATES)
    found.positive(f"{prefix}.learning_rate")
    found.at_least(0, f"{prefix}.warmup_steps", f"{prefix}.weight_decay", f"{prefix}.clip_norm")
    found.within(0, 1, f"{prefix}.final_fraction")
    for name in ("b1", "b2"):
        if not 0 <= found.value(f"{prefix}.{name}") < 1:
            found.add(f"{prefix}.{name}", "out of range", "give 0 up to, but not, 1")


def _check_train(found, config):
    train = config.train
    _check_optimizer(found, "optimizer")
    counts = [f"train.{name}" for name in ("questions_per_step", "group_size", "minibatches", "logprob_chunk",
                                           "checkpoint_every", "keep_checkpoints", "trajectories_every", "eval_every")]
    found.at_least(1 if "train" in config.stages else 0, "train.steps")
    found.at_least(1, *counts)
    found.at_least(0, "train.microbatch_rows", "train.eval_questions")
    if config.algorithm.advantage in ("grpo", "rloo") and train.group_size == 1:
        found.add("train.group_size", f"{config.algorithm.advantage} compares the episodes of a group",
                  "give 2 or more, or another algorithm.advantage")
    rows = train.questions_per_step * train.group_size
    product = f"questions_per_step x group_size = {train.questions_per_step} x {train.group_size} = {rows} rows"
    if train.minibatches > 0 and rows % train.minibatches:
        found.add("train.minibatches", f"does not divide {product}", f"give a divisor of {rows}")
        return
    rows //= max(train.minibatches, 1)
    if train.microbatch_rows > 0 and rows % train.microbatch_rows:
        found.add("train.microbatch_rows", f"does not divide the {rows} rows of a minibatch",
                  f"give a divisor of {rows}")
    shards = max(config.mesh.data, 1) * max(config.mesh.fsdp, 1)
    if rows > 0 and rows % shards:
        found.add("mesh.data", f"{shards} shards (data x fsdp) do not divide the {rows} rows of a minibatch",
                  f"give a divisor of {rows}, or change train.questions_per_step or train.group_size")


def _check_supervised(found, config):
    for stage in SUPERVISED:
        _check_optimizer(found, f"{stage}.optimizer")
        found.at_least(1, f"{stage}.batch_rows", f"{stage}.max_tokens", f"{stage}.checkpoint_every")
        found.at_least(0, f"{stage}.steps")
        if stage in config.stages and getattr(config, stage).steps == 0:
            found.add(f"{stage}.steps", f"the stage {stage!r} would do nothing",
                      "give its steps, or take it from stages")


def _check_rest(found, config):
    found.at_least(1, "collect.episodes", "evaluate.batch_rows", "evaluate.samples")
    if config.evaluate.samples > 1 and config.evaluate.temperature == 0:
        found.add("evaluate.samples", "at temperature 0 every sample is the same", "set evaluate.temperature, or give 1")
    found.within(0, 10, "evaluate.temperature")
    for name in config.evaluate.baselines:
        if name not in BASELINES:
            found.add("evaluate.baselines", f"{name!r} is unknown", f"name some of {', '.join(BASELINES)}")
    found.at_least(2, "evaluate.baseline_samples")
    if "trajectory_sft" in config.evaluate.baselines and "evaluate" in config.stages and not config.trajectory_sft.steps:
        found.add("trajectory_sft.steps", "the baseline would learn nothing", "give its steps")
    found.one_of("collect.label", ("ranking", "answer", "contains"))
    found.within(0, 0.5, "collect.hold_out")
    found.within(0, 1, "evaluate.drop_best", "gates.reading", "gates.useful", "gates.noisy", "gates.leak")
    for axis in ("data", "fsdp", "tensor"):
        size = getattr(config.mesh, axis)
        if size < 1 and size != -1:
            found.add(f"mesh.{axis}", "no size", "give a number of devices, or -1 for what is left")
    if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
        found.add("mesh.data", "more than one axis is -1", "only one axis can take what is left")


def _uses_simulator(config):
    return "simulator" in _used_engines(config) or (
        "tune_simulator" in config.stages and config.search.engine in ("simulator", "mixed"))
