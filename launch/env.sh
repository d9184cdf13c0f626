# Environment of a run, sourced by the scripts beside it before Python starts. Library code never sets any of this.

# Compiled programs are kept between runs: the second start of a run needs seconds instead of a minute.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.jax_cache}"
# Programs that compile faster than this are not worth a file (seconds).
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"
