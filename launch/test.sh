#!/usr/bin/env bash
# Installs zsjax with what the tests need and runs them; arguments go to pytest.
#
#     bash launch/test.sh [tests/rl -k grpo ...]
#     bash launch/test.sh --quick        # lint, types, and the tests that take seconds
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0.2  # several tests run the same small programs
source launch/env.sh
bash launch/install.sh test docs release
if [[ "${1:-}" == --quick ]]; then
    shift
    .venv/bin/python -m ruff check .
    set -- -m "not long and not slow and not gpu and not tpu and not compiled and not browser" "$@"
fi
# Files stay whole, as their fixtures compile much; the longest begin first (tests/conftest.py).
exec .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
