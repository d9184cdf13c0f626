#!/usr/bin/env bash
# Makes .venv and installs zsjax into it with the extra that fits this machine. Called by quickstart.sh and test.sh.
#
#     bash launch/install.sh [EXTRA ...]          e.g. test, notebooks
#
# ZSJAX_EXTRA=cpu|cuda12|cuda13|tpu overrides the detection, PYTHON=/path/to/python the interpreter.
# What was installed once is not installed again until setup.py changes, so a second call needs no network.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 2; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "zsjax needs Python 3.11, 3.12 or 3.13, and none was found; set PYTHON=/path/to/python"
}

# cuda13 needs driver 580 or newer, cuda12 525 or newer.
detect_accelerator() {
    local driver major
    driver="$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 || true)"
    major="${driver%%.*}"
    if [[ "$major" =~ ^[0-9]+$ ]]; then
        if (( major >= 580 )); then echo cuda13; return; fi
        if (( major >= 525 )); then echo cuda12; return; fi
        echo "note: NVIDIA driver $driver is older than 525, which jax needs; installing for the CPU" >&2
    fi
    # A TPU shows as /dev/accel0, or as a VFIO device of Google's (PCI vendor 0x1ae0).
    if compgen -G '/dev/accel[0-9]*' >/dev/null; then echo tpu; return; fi
    if compgen -G '/dev/vfio/[0-9]*' >/dev/null && grep -qs 0x1ae0 /sys/bus/pci/devices/*/vendor; then echo tpu; return; fi
    echo cpu
}

accelerator="${ZSJAX_EXTRA:-$(detect_accelerator)}"
case "$accelerator" in
    cpu) extras=("$@") ;;
    cuda12 | cuda13 | tpu) extras=("$accelerator" "$@") ;;
    *) fail "ZSJAX_EXTRA=$accelerator is unknown; cpu, cuda12, cuda13 or tpu" ;;
esac
wanted="$(IFS=,; echo "${extras[*]+"${extras[*]}"}")"  # bash 3.2 calls an empty array unbound

python=.venv/bin/python
if ! "$python" -c '' 2>/dev/null; then
    host="$(find_python)"
    rm -rf .venv
    # Some distributions leave ensurepip out of venv: then the host's pip puts one in.
    if ! "$host" -m venv .venv >/dev/null 2>&1; then
        rm -rf .venv
        "$host" -m venv --without-pip .venv || fail "$host cannot make a virtual environment (Debian: apt install python3-venv)"
        "$host" -m pip --python "$python" install --quiet pip || fail "$host has neither ensurepip nor pip"
    fi
fi

stamp=".venv/installed-${wanted:-plain}-$("$python" -c 'import hashlib; print(hashlib.sha256(open("setup.py", "rb").read()).hexdigest()[:16])')"
if [[ -e "$stamp" ]]; then exit 0; fi
echo "installing zsjax${wanted:+[$wanted]} into .venv ..."
if [[ " $* " == *" test "* ]]; then
    # First and alone, so that pip settles torch's own large dependencies before anything else is resolved beside them.
    "$python" -m pip install --quiet torch==2.13.0
fi
"$python" -m pip install --quiet --editable ".${wanted:+[$wanted]}"
touch "$stamp"
