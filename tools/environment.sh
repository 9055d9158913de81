#!/usr/bin/env bash
# Build or update .venv/ from requirements.lock; called by make when one of its inputs is newer than the stamp.
# Needs Python 3.11 and a package index that pip and uv find by their own configuration.
set -euo pipefail
cd "$(dirname "$0")/.."
uv_version=0.13.9
needed_mb=6000 # the environment is 3.6 GB, uv's cache about as much when it is on another disk

fail() {
    printf 'make env: %s\n' "$*" >&2
    exit 1
}

find_python() {
    for candidate in python3.11 python3 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "no Python 3.11 found (looked for python3.11, python3, python on PATH; python3 is $(python3 --version 2>&1 | head -1))." \
        "Install Python 3.11 with its venv module and call make again."
}

free_mb=$(df -Pm . | awk 'NR == 2 {print $4}')
if [ ! -e .venv/.synced ] && [ "$free_mb" -lt "$needed_mb" ]; then
    fail "only $free_mb MB free on this disk. Expected $needed_mb MB for the environment. Free some space and call make again."
fi

python=$(find_python) || exit 1
if ! .uv/bin/uv --version 2>/dev/null | grep -qF "uv $uv_version"; then
    echo "environment: installing uv $uv_version into .uv/"
    rm -rf .uv
    "$python" -m venv .uv || fail "$python cannot create a virtual environment. Install its venv module (python3.11-venv on Debian)."
    .uv/bin/python -m pip install --quiet --disable-pip-version-check "uv==$uv_version" ||
        fail "pip could not install uv. Expected a reachable package index. Check the network or pip's configuration, then call make again."
fi

export UV_PYTHON_DOWNLOADS=never
here=$(pwd -P)
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
    ! grep -qsF "$here/.venv" .venv/bin/activate; then # absent, broken, or copied from elsewhere
    .uv/bin/uv venv --quiet --clear --python "$python" .venv
fi
rm -f .venv/.synced
echo "environment: $(grep -c '==' requirements.lock) packages from requirements.lock into .venv/"
.uv/bin/uv pip sync --quiet --python .venv/bin/python requirements.lock ||
    fail "uv could not install the locked packages (see above). Check the network and the free disk space, then call make again."
.uv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --no-build-isolation -e .
touch .venv/.synced
echo "environment: ready"
