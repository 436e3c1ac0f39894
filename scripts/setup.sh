#!/usr/bin/env bash
# Makes .venv with edgebuild and all that its tests need. Run by `make setup`.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"

fail() {
  printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
  exit 9
}

command -v "$python" >/dev/null || fail "$python is not there" "apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old: 3.11 or later is needed" "name another one: make setup PYTHON=python3.12"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python comes without venv" "apt-get install python3-venv"

[ -x .venv/bin/python ] || "$python" -m venv .venv
echo "installing dependencies into .venv (minutes on a first run)"
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet)
# torch first and alone: its version is pinned, and nothing else may pull another one in.
"${pip[@]}" install "$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)"
"${pip[@]}" install --editable '.[dev]'
