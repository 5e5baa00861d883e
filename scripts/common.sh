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

# venv_is_usable: whether the programs in .venv find the Python beside them, and that one its packages. They name it by
# its full path, and packages belong to one version of Python: neither outlives a move or another Python.
venv_is_usable() {
    local here
    here=$(cd .venv 2>/dev/null && pwd -P) || return 1
    grep -qsF "$here/bin/python" .venv/bin/pip && .venv/bin/python -c 'import pip' 2>/dev/null
}

# wanted_stamp: what the packages in .venv depend on: the requirements, the Python, and the place
wanted_stamp() {
    cat requirements*.txt | .venv/bin/python -c 'import hashlib, os, sys
print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), sys.version.split()[0], os.path.realpath(sys.prefix))'
}

# ensure_venv REQUIREMENTS: afterwards .venv/bin has the packages of that file.
ensure_venv() {
    local python stamp=.venv/.installed-$1
    if ! venv_is_usable; then
        python=$(find_python) || exit 1
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            fail "This Python has no venv module; on Debian and Ubuntu: apt install python3-venv"
        [ ! -e .venv ] && [ ! -L .venv ] ||
            echo 'Making .venv again: it was made in another folder, or for a Python that is not here any more.'
        rm -rf .venv
        "$python" -m venv .venv || fail 'The virtual environment could not be made.'
    fi
    [ "$(cat "$stamp" 2>/dev/null)" != "$(wanted_stamp)" ] || return 0
    printf 'Installing packages from %s into .venv (once; about a minute) …\n' "$1"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r "$1" ||
        fail 'The packages could not be installed; the lines above say why.'
    wanted_stamp >"$stamp"
}

# use_var_dir: VAR_DIR of the environment, where it is set, as a full path. A relative one starts where the caller is.
use_var_dir() {
    case ${VAR_DIR-unset} in
        unset) return ;;
        "") fail 'VAR_DIR is set but empty: name a folder or unset it.' ;;
        /*) ;;
        var) VAR_DIR=$PWD/var ;;
        *) VAR_DIR=$started_in/$VAR_DIR ;;
    esac
    export VAR_DIR
}
