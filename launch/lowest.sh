#!/usr/bin/env bash
# The lowest versions of dependencies that setup.py allows, in an environment of their own, and the tests with them.
#
#     bash launch/lowest.sh [--list] [pytest's arguments; default: the quick tier]
#
# --list prints the pins and ends. LOWEST=/folder is where the environment is kept (.venv-lowest by default).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# "name>=1.2,<3" of install_requires and of the extra "test" becomes "name==1.2".
pins() {
    "${PYTHON:-python3}" - <<'PY'
import ast, re
call = next(node for node in ast.walk(ast.parse(open("setup.py").read()))
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup")
fields = {keyword.arg: keyword.value for keyword in call.keywords}
needed = ast.literal_eval(fields["install_requires"]) + ast.literal_eval(fields["extras_require"])["test"]
for need in needed:
    print(re.sub(r">=\s*([^,]+).*", r"==\1", need))
PY
}

if [[ "${1:-}" == --list ]]; then
    pins
    exit
fi
folder="${LOWEST:-.venv-lowest}"
[[ -x "$folder/bin/python" ]] || "${PYTHON:-python3}" -m venv "$folder"
pins > "$folder/lowest.txt"
"$folder/bin/python" -m pip install --quiet --requirement "$folder/lowest.txt"
"$folder/bin/python" -m pip install --quiet --no-deps --editable .
(( $# )) || set -- -m "not long and not slow and not gpu and not tpu and not compiled and not browser"
exec "$folder/bin/python" -m pytest -n 2 --dist loadfile "$@"
