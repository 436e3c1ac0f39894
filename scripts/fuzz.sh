#!/bin/sh
# Searches the native readers with libFuzzer, ASan and UBSan, one after the other: scripts/fuzz.sh [SECONDS] [NAME ...]
#
# SECONDS for each (600); NAME is one of manifest, bundle, trust, delta, index, state, chunks, minisign, plan, npy, y4m (the first
# seven). What was found stays in the cache and is where the next search starts. A crash ends it, and is kept.
set -eu
cd "$(dirname "$0")/.."
exec nice -n 19 "${PYTHON:-.venv/bin/python}" tests/benchmarks/fuzz.py "$@"
