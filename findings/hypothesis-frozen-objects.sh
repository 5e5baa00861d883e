#!/usr/bin/env bash
# hypothesis 6.170.15 warns of trio's generator of random numbers where `gc.freeze()` came between their imports.
#
# A service calls `gc.freeze()` once its modules are imported, so that forked workers share their memory. Hypothesis asks
# `gc.get_referrers` then whether anything keeps the generator that trio 0.35.0 registers, and the collector no longer looks into
# frozen modules. With warnings as errors, no test module that uses Hypothesis can be collected. Seen:
#   frozen between the imports: HypothesisWarning
#   frozen after the imports: nothing
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check hypothesis==6.170.15 trio==0.35.0 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
import gc
import sys
import warnings

import trio

if sys.argv[1] == "between":
    gc.freeze()
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import hypothesis
gc.freeze()
print(f"frozen {sys.argv[1]} the imports:", ", ".join(warning.category.__name__ for warning in seen) or "nothing")
PYTHON
for moment in between after; do "$folder/venv/bin/python" "$folder/seen.py" "$moment"; done | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
