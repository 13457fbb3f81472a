# Sourced by the scripts beside it: `environment EXTRAS` sets $python to an interpreter that has dit-usp and those extras.
# DIT_USP_PYTHON or an active virtual environment that has dit-usp is used as it is. Else .venv in the clone, made on first use and brought up to
# date when setup.cfg or pyproject.toml changed. Needs only Python >= 3.11 with venv. POSIX sh.

CPU_TORCH=2.13.0

environment() {
    if [ -n "${DIT_USP_PYTHON:-}" ]; then python=$DIT_USP_PYTHON; return; fi
    if [ -n "${VIRTUAL_ENV:-}" ] && "$VIRTUAL_ENV/bin/python" -P -c 'import importlib.metadata as m; m.version("dit-usp")' 2>/dev/null; then
        python=$VIRTUAL_ENV/bin/python; return
    fi
    python=$root/.venv/bin/python
    stamp=$root/.venv/.dit-usp-$(echo "$1" | tr , -)
    wanted=$(cat "$root/setup.cfg" "$root/pyproject.toml" | cksum)
    [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    install "$1" >&2 || { echo "dit-usp: the set-up of $root/.venv failed; see above, or set DIT_USP_PYTHON to an interpreter that has dit-usp." >&2; exit 1; }
    echo "$wanted" > "$stamp"
}

install() {
    echo "dit-usp: setting up $root/.venv (once; a few minutes)"
    if [ ! -x "$python" ]; then
        base=$(find_python) || { echo "dit-usp: needs Python 3.11 or newer with venv; none found on PATH."; return 1; }
        "$base" -m venv "$root/.venv" || return 1
    fi
    has_torch || install_torch || return 1
    # setuptools warns of a folder that could hide the package; the scripts start Python with -P, which looks into no folder
    PYTHONWARNINGS="ignore:Editable installation" "$python" -m pip install --quiet --disable-pip-version-check --editable "$root[$1]"
}

find_python() {
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        "$candidate" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$candidate"; return; }
    done
    return 1
}

has_torch() { "$python" -P -c 'import importlib.metadata as m; m.version("torch")' 2>/dev/null; }

# Without a GPU the CPU build: the default one for Linux brings gigabytes of CUDA.
install_torch() {
    [ "$(uname -s)" = Linux ] && [ ! -e /proc/driver/nvidia/version ] && [ ! -e /dev/nvidiactl ] || return 0
    # --no-deps: its dependencies come with the package's own, from the usual index
    "$python" -m pip install --quiet --disable-pip-version-check --retries 1 --no-deps "torch==$CPU_TORCH+cpu" \
        --extra-index-url https://download.pytorch.org/whl/cpu && return
    echo "dit-usp: no CPU build of torch $CPU_TORCH was found; taking the default build."
}
