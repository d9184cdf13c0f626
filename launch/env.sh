# Environment of a run, sourced by the scripts beside it before Python starts. Library code never sets any of this.
# The script that sources it says what it runs on: platform=gpu or platform=tpu; without it, nothing but the cache is set.
# Plans are compiled with the same flags (zsjax/plan/topology.py). They were checked to be known to jaxlib 0.10.2 (tests/test_launch_scripts.py) and libtpu 0.0.42; XLA stops at unknown ones.

# Compiled programs are kept between runs: the second start of a run needs seconds instead of a minute.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
# Programs that compile faster than this are not worth a file (seconds).
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"

add_xla_flag() { export XLA_FLAGS="${XLA_FLAGS:-} $1"; }
add_tpu_flag() { export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-} $1"; }

case "${platform:-}" in
gpu)
    # One pool of 92 % of the memory, taken at the start: no fragmentation between rollout and update, which `plan` counts
    # on; the rest is for NCCL and cuBLAS.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}"
    # Start gathering the next layer's weights (fsdp) while this layer is computed.
    add_xla_flag --xla_gpu_enable_latency_hiding_scheduler=true
    # Gather and reduce in pieces of up to 128 MB: a layer of Qwen2.5-7B is one or two of them instead of seven.
    add_xla_flag --xla_gpu_all_gather_combine_threshold_bytes=134217728
    add_xla_flag --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
    ;;
tpu)
    # Start gathering the next layer's weights while this layer is computed, and fuse gathers into it.
    add_tpu_flag --xla_tpu_enable_async_collective_fusion=true
    add_tpu_flag --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    add_tpu_flag --xla_tpu_overlap_compute_collective_tc=true
    # No product is cut into a loop that exchanges its operand piece by piece (mesh.tensor > 1). The results of all such loops of
    # an update are allocated at its start: 0.3 GB for each layer of Qwen2.5-3B.
    add_tpu_flag --xla_jf_spmd_threshold_for_windowed_einsum_mib=1000000
    ;;
esac
