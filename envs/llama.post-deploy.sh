#!/usr/bin/env bash
# Runs once after conda has made the environment: llama.cpp's converter, from the runtime's own source distribution.
set -euo pipefail
python "${BITPLAN_SCRIPTS:-scripts}/set_up.py" --converter-only
