# shellcheck shell=bash
# What the scripts share. Source it after `cd` to the repository's root.

say() { printf '%s\n' "$*" >&2; }

# The environment that every script works in, also when it is not called by make.
ROOT=$(pwd)
export PYTHON_ENV="$ROOT/.venv"
export PYO3_PYTHON="$ROOT/.venv/bin/python"
export PATH="$ROOT/.venv/bin:$ROOT/.cache/tools/bin:$PATH"
LOGS="$ROOT/.cache/logs"
mkdir -p "$LOGS"
