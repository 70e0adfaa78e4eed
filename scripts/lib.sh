# Sourced by the scripts beside it. Makes .venv hold what pdm.lock says, with a PDM of our own in
# .venv-pdm. Where that is done already, a start costs two file comparisons.
# shellcheck shell=sh

set -eu
cd -- "$(dirname -- "$0")/.."

say() { printf '%s\n' "$*" >&2; }

# environment GROUP...: have these dependency groups of pyproject.toml installed.
environment() {
    if made "$@"; then return; fi
    python=$(find_python)
    (
        lock
        made "$@" || make "$@"
    ) 9>.venv.lock
}

# What .venv is made from. A copy of it in .venv is written last and says: whole, and made here.
recipe() { pwd && cat pyproject.toml pdm.lock; }

unchanged() { recipe | cmp -s - .venv/recipe; }

made() {
    unchanged || return 1
    for group; do
        [ -e ".venv/groups/$group" ] || return 1
    done
}

make() {
    say "Setting up .venv for: $* (only when pyproject.toml or pdm.lock changed)"
    usable || "$python" -m venv --clear .venv
    recipe >.venv/recipe.new
    unchanged || rm -rf .venv/groups
    rm -f .venv/recipe
    mkdir -p .venv/groups
    pdm sync --quiet $(printf -- '--group %s ' "$@")
    for group; do : >".venv/groups/$group"; done
    mv .venv/recipe.new .venv/recipe
}

# Not if its making was interrupted, the project was moved, or its Python is gone or too old.
usable() {
    [ "$(head -n 1 .venv/recipe 2>/dev/null)" = "$PWD" ] && runs .venv/bin/python >/dev/null
}

pdm() {
    if ! cmp -s scripts/pdm-requirements.txt .venv-pdm/requirements.txt ||
        ! runs .venv-pdm/bin/python >/dev/null; then
        "${python:=$(find_python)}" -m venv --clear .venv-pdm
        .venv-pdm/bin/python -m pip install -qq --disable-pip-version-check \
            -r scripts/pdm-requirements.txt
        cp scripts/pdm-requirements.txt .venv-pdm/requirements.txt
    fi
    VIRTUAL_ENV=$PWD/.venv PDM_USE_VENV=1 PDM_IGNORE_SAVED_PYTHON=1 PDM_CHECK_UPDATE=0 \
        .venv-pdm/bin/python -m pdm "$@"
}

find_python() {
    versions=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
    for candidate in python3.14 python3.13 python3.12 python3 \
        "$versions"/3.14*/bin/python3 "$versions"/3.13*/bin/python3 "$versions"/3.12*/bin/python3
    do
        if runs "$candidate"; then return; fi
    done
    say "This needs Python 3.12 or newer with venv and sqlite3, and none was found. Install one:"
    say "  Debian, Ubuntu  apt-get install python3 python3-venv"
    say "  macOS           brew install python@3.13"
    say "  anywhere        pyenv install 3.13"
    return 1
}

# Print the interpreter itself (not a shim or a virtual environment's) if it runs and will do.
runs() {
    "$1" -c '
import ensurepip, sqlite3, ssl, sys, venv
sys.exit(print(sys._base_executable) if sys.version_info >= (3, 12) else 1)' 2>/dev/null
}

# Two starts at once: one makes .venv, the other waits. The lock belongs to the open file, so it
# lasts until this shell closes descriptor 9 or dies.
lock() {
    "$python" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Waiting for another start to set up .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)'
}

# Have a Chromium for the browser tests; where we may not install one, they say what is missing.
chromium() {
    for name in chromium chromium-browser google-chrome; do
        if command -v "$name" >/dev/null; then return; fi
    done
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "Installing Chromium for the browser tests"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends \
            chromium fonts-dejavu-core >/dev/null
    else
        say "The browser tests need Chromium, and will fail. Install it:"
        say "  Debian  apt-get install chromium    macOS  brew install --cask google-chrome"
    fi
}
