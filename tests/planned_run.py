"""A config of random models for eight devices, small enough to be compiled in a test of `plan`."""

SHAPE = dict(vocab_size=4096, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48)
SMALL = dict(
    policy=dict(init="random", shape=SHAPE), simulator=dict(init="random", shape=SHAPE | dict(num_layers=1)),
    tokenizer="asset:real/tokenizer", train=dict(questions_per_step=8, group_size=2, logprob_chunk=8),
    search=dict(num_documents=2, max_document_tokens=8),
    rollout=dict(max_turns=2, max_turn_tokens=16, max_tokens=64, max_prompt_tokens=24),
    mesh=dict(data=2, fsdp=2, tensor=2))
