# Sourced by the scripts beside it. Makes .venv hold what pdm.lock says, with a PDM of our own in
# .venv-pdm. Where that is done already, a start costs two file comparisons. Reports on stderr which
# parts it found and which it installed. No function here has the name of a command: the function
# would hide the command, also from `command -v`.
# shellcheck shell=sh

set -eu
cd -- "$(dirname -- "$0")/.."

report() { printf '%s\n' "$*" >&2; }

# environment GROUP...: have these dependency groups of pyproject.toml installed.
environment() {
    if made "$@"; then
        report "Found .venv: $(contents "$@")"
        return
    fi
    python=$(find_python)
    report "Found Python: $python"
    (
        lock_environment
        made "$@" || build_environment "$@"
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

contents() { printf '%s' "Python $(sed -n 's/^version = //p' .venv/pyvenv.cfg), groups: $*"; }

build_environment() {
    report "Setting up .venv for: $* (only when pyproject.toml or pdm.lock changed)"
    usable || "$python" -m venv --clear .venv
    recipe >.venv/recipe.new
    unchanged || rm -rf .venv/groups
    rm -f .venv/recipe
    mkdir -p .venv/groups
    run_pdm sync --quiet $(printf -- '--group %s ' "$@")
    for group; do : >".venv/groups/$group"; done
    mv .venv/recipe.new .venv/recipe
    report "Installed .venv: $(contents "$@")"
}

# Not if its making was interrupted, the project was moved, or its Python is gone or too old.
usable() {
    [ "$(head -n 1 .venv/recipe 2>/dev/null)" = "$PWD" ] && runs .venv/bin/python >/dev/null
}

run_pdm() {
    ensure_pdm &&
        VIRTUAL_ENV=$PWD/.venv PDM_USE_VENV=1 PDM_IGNORE_SAVED_PYTHON=1 PDM_CHECK_UPDATE=0 \
            .venv-pdm/bin/python -m pdm "$@"
}

# The steps are chained, as `set -e` does not stop a function whose failure its caller handles.
ensure_pdm() {
    if cmp -s scripts/pdm-requirements.txt .venv-pdm/requirements.txt &&
        runs .venv-pdm/bin/python >/dev/null; then
        report "Found PDM: .venv-pdm"
        return
    fi
    python=${python:-$(find_python)} &&
        "$python" -m venv --clear .venv-pdm &&
        .venv-pdm/bin/python -m pip install -qq --disable-pip-version-check \
            -r scripts/pdm-requirements.txt &&
        cp scripts/pdm-requirements.txt .venv-pdm/requirements.txt &&
        report "Installed PDM: .venv-pdm"
}

find_python() {
    versions=${PYENV_ROOT:-${HOME:-}/.pyenv}/versions
    for candidate in python3.14 python3.13 python3.12 python3 \
        "$versions"/3.14*/bin/python3 "$versions"/3.13*/bin/python3 "$versions"/3.12*/bin/python3
    do
        if runs "$candidate"; then return; fi
    done
    report "This needs Python 3.12 or newer with venv and sqlite3, and none was found. Install one:"
    report "  Debian, Ubuntu  apt-get install python3 python3-venv"
    report "  macOS           brew install python@3.13"
    report "  anywhere        pyenv install 3.13"
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
lock_environment() {
    "$python" -c '
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("Waiting for another start to set up .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)'
}

# Print the path of the browser, which tests/browser.py looks up under the same names.
find_chromium() {
    for name in chromium chromium-browser google-chrome google-chrome-stable \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
    do
        if command -v "$name"; then return; fi
    done
    return 1
}

# Find or install the browser of the browser tests. Fail where neither is possible.
ensure_chromium() {
    if browser=$(find_chromium); then
        report "Found Chromium: $browser"
        return
    fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        report "Installing Chromium with apt-get"
        if output=$(apt_install chromium fonts-dejavu-core) && browser=$(find_chromium); then
            report "Installed Chromium: $browser"
            return
        fi
        report "$output"
        report "apt-get could not install Chromium; its output is above."
    fi
    report "The browser tests need Chromium, and fail without it. Install it as root:"
    report "  Debian  apt-get install chromium fonts-dejavu-core"
    report "  Ubuntu  snap install chromium"
    report "  macOS   brew install --cask google-chrome"
    return 1
}

# One unreachable source fails an update, and does not matter if the package is in another.
apt_install() {
    {
        apt-get update -qq || :
        DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends "$@"
    } 2>&1
}
