# Sourced by the other scripts: makes .venv beside them and installs precompute with what development needs.
# Safe to repeat; where pyproject.toml has not changed since the last time nothing is installed.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON=${PYTHON:-python3}
if ! "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    echo "$PYTHON is missing or older than 3.11. Install Python 3.11 or newer, or name one: PYTHON=python3.12 $0" >&2
    exit 1
fi

[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv || {
    echo "Could not make .venv. On Debian and Ubuntu: apt install python3-venv" >&2
    exit 1
}

wanted=$(cksum pyproject.toml)
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    echo "Installing precompute into .venv (about 3 GB with torch; a few minutes, once) ..." >&2
    # The stamp goes first: an installation that stops half-way is done again.
    rm -f .venv/installed
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' || exit 1
    echo "$wanted" > .venv/installed
fi
