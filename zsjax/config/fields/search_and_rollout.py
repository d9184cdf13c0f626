"""Fields of playing an episode: questions, prompts, search, rollout and the curriculum of the noise."""

import dataclasses

from zsjax.config.declare import COUNT, CURRICULA, SHARE, TOKENS, fast, field, free, group, later, limit


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Questions and the corpus that real engines search.

    Questions: a .jsonl[.gz] or .parquet path, "tfds:NAME", or "tiny_world:train" / "tiny_world:eval". "#SPLIT" after a
    file or TFDS name takes that split only. A corpus: a path of {id, title, text}, or the tiny world's.
    """

    train: str = field("tiny_world:train", "questions of training", names="path")
    supervised_share: float = field(0.0, "share of train's questions, by a hash of their keys, that warm_start and collect "
                                    "take, and train leaves to them; 0: both take all", "[0, 1)")
    leave_out: tuple[str, ...] = field(
        (), 'questions that train does not play, as they can be answered without reading: "yes_no": a gold answer is yes or '
        'no; "named": the question names a gold answer', choices=("yes_no", "named"))
    eval: str = later("tiny_world:eval", "questions of evaluations", names="path")
    corpus: str = field("tiny_world:train", "what real engines search in training", names="path")
    eval_corpus: str = later("tiny_world:eval", "what real engines search in evaluations", names="path")
    eval_limit: int | None = later(None, "questions of an evaluation (of each benchmark), the same sample in every run; "
                                   "None: all", COUNT, unit="questions")
    benchmarks: dict = later({}, 'name -> source: evaluations take each of these instead of data.eval, as '
                             '{"nq": "nq.jsonl"}')
    overlong: str = field("error", "what happens to a question whose prompt is longer than rollout.max_prompt_tokens, or "
                          "that has no gold answer", choices=("error", "drop"))


@dataclasses.dataclass(frozen=True)
class PromptsConfig:
    """Prompt templates: names of carried ones, or paths of files. Instruct models want the chat template."""

    policy: str = field("default", "the policy's prompt", names="path")
    simulator: str = field("default", "the simulator's prompt", names="path")
    chat: bool = field(False, "put the policy's prompt into the tokenizer's chat template")
    baseline_examples: bool = later(False, "baselines by prompt have two worked examples in it, which a base model needs")
    simulator_chat: bool = field(False, "put the simulator's prompt into the tokenizer's chat template")


@dataclasses.dataclass(frozen=True)
class RemoteConfig:
    """Engines behind a network. A key comes from the environment variable named here and is never written."""

    url: str = free("", 'of the /retrieve server ("http") or the OpenAI-style chat server ("chat")', names="url")
    model: str = field("", "the chat server's name of its model", engines=("chat",))
    key_env: str = free("", 'environment variable with the key; "": SERPAPI_API_KEY for "serpapi", no key for "chat"',
                        names="variable")
    web_engine: str = field("google", 'the web search that SerpApi asks: "google", "bing", ...', engines=("serpapi",))
    cache_dir: str = free("web_search", "SerpApi's results and account, relative to the run's folder; an absolute path is "
                          "shared between runs", names="folder")
    budget: float | None = free(None, "limit on the cost of web search, restarts included; the run stops before it is "
                                "exceeded; None: no limit", "[0, 1e9]", unit="dollars")
    timeout: float = free(30.0, "of one attempt", "(0, 86400]", unit="seconds")
    retries: int = free(3, "further attempts", "[0, 1000]")
    concurrency: int = free(8, "requests at a time", "[1, 10000]")
    max_bytes: int = free(8 << 20, "of a reply", "[1, 1e12]", unit="bytes")
    max_tokens: int | None = field(None, "of a chat reply, thoughts included; None: 100 a document", COUNT, unit="tokens",
                                   engines=("chat",))
    extra_body: dict = field({}, 'further fields of a chat request, such as {"chat_template_kwargs": {"enable_thinking": '
                             'False}}; a field that is None here is not sent', engines=("chat",))


@dataclasses.dataclass(frozen=True)
class MixConfig:
    """engine = "mixed": each search asks the simulator or a real engine; P(real) follows a schedule over training."""

    real: str = field("bm25", "the real engine", choices=("zsjax.search.registry:real_names",), names="function")
    schedule: str = field("linear", "as curriculum.schedule", names="function", choices=(CURRICULA,))
    start: float = field(0.0, "P(real) at first", SHARE)
    end: float = field(0.5, "P(real) at the end", SHARE)
    base: float = field(4.0, "as curriculum.base", "(0, 1e9]")


@dataclasses.dataclass(frozen=True)
class RerankConfig:
    """In training, more documents are written or found than are shown, and a linear scorer chooses among them.

    The scorer learns from the rewards of the episodes that saw a document (zsjax.search.rerank). It shows the best, or for
    a noisy search the most misleading. A simulator is tuned to write all candidates. Evaluations show what the engine
    ranks first.
    """

    candidates: int = field(0, "documents per search to choose from, search.num_documents to 20; 0: off", "[0, 1000]")
    learning_rate: float = field(0.01, "of the scorer's Adam, one update a step; 0, an ablation, shows the first ones",
                                 "[0, 100]")
    buckets: int = field(1024, "the scorer's weights of hashed tokens, twice", "[1, 1e8]")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How documents are found or made."""

    engine: str = field(
        "simulator", 'of training: a name of a search engine, or "package.module:factory" (zsjax.search.registry)',
        choices=("zsjax.search.registry:training_names",), names="function")
    eval_engine: str = later("bm25", "of evaluations", choices=("zsjax.search.registry:evaluation_names",), names="function")
    options: dict = field({}, "options of an engine of your own, by the fields of its dataclass (zsjax.search.registry)")
    num_documents: int = field(5, "documents shown per search", "[1, 20]")
    max_document_tokens: int = field(64, "a longer document is cut", TOKENS, unit="tokens")
    max_query_tokens: int = field(64, "a longer query is cut", TOKENS, unit="tokens")
    temperature: float = field(0.8, "of the simulator's sampling", "[0, 10]")
    top_p: float = field(1.0, "of the simulator's sampling", "(0, 1]")
    shuffle_documents: bool = field(False, "a simulator's documents are shown in random order")
    document_format: str = field("Doc {i}: {title}. {text}", "one line per document")
    passage_words: int = field(0, "real engines show the window of this many words that matches the query best "
                               "(zsjax.search.passages); 0: the document's beginning", "[0, 1e6]", unit="words")
    noise_per: str = field(
        "search", 'what one noise draw is for; "document" doubles the simulator\'s work: it writes a useful and a noisy '
        'reply, which are mixed; "question": the searches of a turn in all episodes of a question, so that luck does not '
        'enter their advantages', choices=("search", "document", "question"))
    remote: RemoteConfig = group(RemoteConfig)
    mix: MixConfig = group(MixConfig, engines=("mixed",))
    embedder: str = field("", 'of "dense": a checkpoint (pooled at the last token, as Qwen3-Embedding) or '
                          '"package.module:function", list of texts -> float32[N, D]', names="path", engines=("dense",))
    index_dir: str = free("indexes", 'built indexes of corpus files, relative to the run\'s folder; "": kept in memory',
                          names="folder")
    reveal_gold: str = field(
        "always", 'when the simulator is shown the gold answers; "on_target": if at least half of the query\'s tokens (of a '
        'chat server: words) occur in the question; "useful": if useful documents are asked for; "useful_on_target": both',
        choices=("always", "on_target", "useful", "useful_on_target", "never"))
    rerank: RerankConfig = group(RerankConfig)

    @property
    def num_candidates(self) -> int:
        """Documents that are written or found for a search in training; the shown ones are chosen among them."""
        return self.rerank.candidates or self.num_documents


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Turns and budgets, in tokens."""

    max_turns: int = field(4, "searches plus invalid actions; after them one last generation may only answer", "[1, 1000]")
    actions: tuple[str, ...] = field(
        ("search", "answer"), 'what the policy can do: names in zsjax.rollout.actions, or "package.module:ACTION"')
    max_turn_tokens: int = field(128, "budget of one generation", TOKENS, unit="tokens")
    max_tokens: int = limit(2048, "T, the whole row: prompt, policy, documents", TOKENS, unit="tokens")
    max_prompt_tokens: int = limit(512, "a longer prompt is an error, never cut", TOKENS, unit="tokens")
    # At temperature 0 the episodes of a group are all equal and the advantages vanish.
    temperature: float = field(1.0, "of the policy's sampling in training", "(0, 10]")
    rows: int = fast(0, "episodes that each device plays at a time; a row that ends takes the next episode; 0: all",
                     "[0, 1e7]", unit="rows")
    simulator_slots: int = fast(0, "requests that the simulator answers at a time; 0: a quarter of the rows, or as many as "
                                "episodes if rows is 0", "[0, 1e7]", unit="requests")
    decode_threshold: float = fast(
        0.0, "the policy decodes while more than this share of its rows can sample; below it, refills and searches come "
        "first", SHARE, was="busy")
    prefill_batch: int = fast(0, "rows whose prompts and documents are read at a time; 0: all", "[0, 1e7]", unit="rows",
                              was="lanes")
    visit_every: int = fast(
        16, "decode steps between two checks for searches outside of the compiled rollout (real engines, "
        "mesh.simulator_devices)", "[1, 1e7]", unit="steps")
    search_batches: int = fast(1, "batches of such searches at a time; above 1, several threads ask a real engine",
                               "[1, 1000]")
    capacities: int = fast(1, "sizes in which a compiled rollout allocates the policy's cache: max_tokens last, each half "
                           "of the next; each compiles a program; 1: max_tokens at once", "[1, 20]")


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """P(noisy) over training. The schedule's length is the number of steps that really run."""

    schedule: str = field(
        "zero_search", 'a name in zsjax.rl.curricula: from start to end; "constant": end; "step": values, changing at '
        'boundaries; "adaptive": from start, up to end while the recent reward is above target, down while it is below '
        '(zsjax.schedules.follow_reward)', names="function", choices=(CURRICULA, "adaptive"))
    start: float = field(0.0, "P(noisy) at first", SHARE)
    end: float = field(0.5, "P(noisy) at the end", SHARE)
    base: float = field(4.0, 'of "zero_search": above 1 rises late, below early', "(0, 1e9]")
    values: tuple[float, ...] = field((), 'of "step"', SHARE)
    boundaries: tuple[int, ...] = field((), 'of "step"', "[0, 1e9]", unit="steps")
    reverse: bool = field(False, "the schedule runs backwards: hard first")
    target: float = field(0.7, 'of "adaptive": the reward to hold', "[-1e6, 1e6]")
    rate: float = field(0.05, 'of "adaptive": change of the noise per step and unit of reward', "[0, 1e6]")
    decay: float = field(0.9, 'of "adaptive": share of the mean reward that a step keeps', "[0, 1)")
