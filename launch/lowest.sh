#!/usr/bin/env bash
# The lowest versions of dependencies that setup.py allows, in an environment of their own, and the tests with them.
#
#     bash launch/lowest.sh [--list] [pytest's arguments; default: the quick tier]
#
# --list prints the pins and ends. LOWEST=/folder is where the environment is kept (.venv-lowest by default).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 2; }

# The lowest versions have wheels for these only.
find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "the lowest versions need Python 3.11 or 3.12, and none was found; set PYTHON=/path/to/python"
}

# "name>=1.2,<3" of install_requires and of the extra "test" becomes "name==1.2".
pins() {
    "$python" - <<'PY'
import ast, re
call = next(node for node in ast.walk(ast.parse(open("setup.py").read()))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup")
fields = {keyword.arg: keyword.value for keyword in call.keywords}
needed = ast.literal_eval(fields["install_requires"]) + ast.literal_eval(fields["extras_require"])["test"]
for need in needed:
    print(re.sub(r">=\s*([^,]+).*", r"==\1", need))
PY
}

python="$(find_python)"
if [[ "${1:-}" == --list ]]; then
    pins
    exit
fi
folder="${LOWEST:-.venv-lowest}"
if ! "$folder/bin/python" -m pip --version >/dev/null 2>&1; then  # none, or one that was interrupted
    [[ ! -e "$folder" || -e "$folder/pyvenv.cfg" ]] || fail "$folder is not a virtual environment; give another LOWEST"
    "$python" -m venv --clear "$folder"
fi
pins > "$folder/lowest.txt"
"$folder/bin/python" -m pip install --quiet --requirement "$folder/lowest.txt"
"$folder/bin/python" -m pip install --quiet --no-deps --editable .
(( $# )) || set -- -m "not long and not slow and not gpu and not tpu and not compiled and not browser"
exec "$folder/bin/python" -m pytest -n 2 --dist loadfile "$@"
