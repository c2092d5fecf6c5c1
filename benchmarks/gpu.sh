#!/bin/sh
# Measures featstore on a CUDA device within ten minutes, and prints one table: see benchmarks/gpu.py.
#   sh benchmarks/gpu.sh            the exit code is not 0 if there is no device or a step fails
#   sh benchmarks/gpu.sh --quick    every step with tiny sizes, on the CPU where there is no device
# PYTHON is the interpreter; by default that of .venv, else python3.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi
exec "$PYTHON" -m benchmarks.gpu "$@"
