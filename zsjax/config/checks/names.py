"""The names that a config may choose from, field by field."""

ENGINES = ("simulator", "bm25", "empty", "dense", "http", "serpapi", "chat", "mixed")
EVAL_ENGINES = ("bm25", "empty", "dense", "http", "serpapi", "chat", "simulator")
REAL_ENGINES = ("bm25", "dense", "http", "serpapi")
MIX_SCHEDULES = ("zero_search", "constant", "linear", "cosine")
CURRICULA = (*MIX_SCHEDULES, "step", "adaptive")
RATES = ("constant", "linear", "cosine")
REDUCTIONS = ("token_mean", "sequence_mean", "fixed_length")
DTYPES = ("float32", "bfloat16", "float16")
TEMPLATES = ("default", "tiny_world")
ATTENTION = ("auto", "xla", "cudnn", "splash")
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
POLICY_TEMPLATES = (*TEMPLATES, "plain", "direct", "chain_of_thought", "rag", "search_agent")
SIMULATOR_TEMPLATES = (*TEMPLATES, "plain", "prompted", "tiny_world_prompted")
BASELINES = ("direct", "chain_of_thought", "rag", "interleaved", "search_agent", "no_search", "best_of_n", "tree_search",
             "trajectory_sft")
WORLDS = ("tiny_world:train", "tiny_world:eval")
# A shape that `init="random"` must give; vocab_size is the tokenizer's where it is left out.
SHAPE = ("embed_dim", "num_layers", "num_heads", "num_kv_heads", "head_dim", "mlp_dim")
SUPERVISED = ("pretrain", "pretrain_simulator", "tune_simulator", "trajectory_sft", "warm_start")
