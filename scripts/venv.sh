#!/bin/sh
# Creates .venv and installs grit-mlx into it in editable mode: scripts/venv.sh [EXTRA]
# Called by the Makefile. If PYTHON is set, it is the interpreter to use.
set -eu
cd "$(dirname "$0")/.."
extra=${1:-}
# Silence warnings that do not concern this project.
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PYTHONWARNINGS='ignore:Editable installation'
needs='grit-mlx needs Python 3.10 or newer (on a Mac: built for Apple silicon)'

fail() {
    echo "$1" >&2
    exit 1
}

# Whether the version of interpreter $1 is between 3.10 and $2. On a Mac, mlx has no wheels for x86 Pythons.
suits() {
    "$1" -c '
import platform, sys
newest = tuple(map(int, sys.argv[1].split(".")))
rosetta = sys.platform == "darwin" and platform.machine() != "arm64"
sys.exit(rosetta or not (3, 10) <= sys.version_info[:2] <= newest)' "$2" >/dev/null 2>&1
}

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        suits "$PYTHON" 3.99 || fail "$needs. PYTHON=$PYTHON is not suitable."
        echo "$PYTHON"
        return
    fi
    # Prefer the versions that are tested, then accept newer ones.
    for newest in 3.13 3.99; do
        for python in python3 python3.13 python3.12 python3.11 python3.10; do
            if suits "$python" "$newest"; then
                echo "$python"
                return
            fi
        done
    done
    fail "$needs, but none was found on PATH. Install one, or run make PYTHON=/path/to/python3."
}

make_venv() {
    python=$(find_python)
    rm -rf .venv
    mkdir .venv
    : >.venv/unfinished
    if "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -m venv .venv
    elif "$python" -m pip --version >/dev/null 2>&1; then
        # Debian ships ensurepip separately, in python3-venv. Its pip can still install pip into the environment.
        "$python" -m venv --without-pip .venv
        site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        "$python" -m pip install --quiet --target "$site" pip
    else
        fail "$python has neither ensurepip nor pip. Install them (Debian and Ubuntu: apt install python3-venv) and run make again."
    fi
}

# An interrupted install leaves `unfinished` behind and is started again.
if [ -e .venv/unfinished ] || ! suits .venv/bin/python 3.99 || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    make_venv
fi
: >.venv/unfinished
rm -f .venv/installed .venv/installed-dev
echo "Installing grit-mlx${extra:+[$extra]} and its dependencies into .venv (once; this can take a few minutes)"
.venv/bin/python -m pip install --quiet \
    --constraint constraints.txt --editable ".${extra:+[$extra]}" ||
    fail 'Installing into .venv failed; see the message from pip above. Fix the problem and run make again.'
rm .venv/unfinished
: >.venv/installed
[ -z "$extra" ] || : >".venv/installed-$extra"
