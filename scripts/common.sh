# Shared by the scripts beside it: the virtual environment, made once and brought up to date when requirements change.
# shellcheck shell=bash

fail() {
    printf '%s: %s\n' "${0##*/}" "$1" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null 2>&1 &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    command -v python3 >/dev/null 2>&1 || fail 'Python 3.11 or later is needed, and there is no python3 here.'
    fail "Python 3.11 or later is needed; python3 here is $(python3 -c 'import platform; print(platform.python_version())')."
}

# ensure_venv REQUIREMENTS: afterwards .venv/bin has the packages of that file.
ensure_venv() {
    local python stamp wanted
    python=$(find_python) || exit 1
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "This Python has no venv module; on Debian and Ubuntu: apt install python3-venv"
    stamp=.venv/.installed-$1
    wanted=$(cat requirements*.txt | "$python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    printf 'Installing packages from %s into .venv (once; about a minute) …\n' "$1"
    [ -x .venv/bin/python ] || "$python" -m venv .venv || fail 'The virtual environment could not be made.'
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$1" ||
        fail 'The packages could not be installed; the lines above say why.'
    printf '%s\n' "$wanted" >"$stamp"
}
