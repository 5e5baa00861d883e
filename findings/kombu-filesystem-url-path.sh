#!/usr/bin/env bash
# kombu 5.7.0: the filesystem transport ignores the path of its URL.
#
# `filesystem:///srv/queue` looks like a folder, but folders come from transport_options alone; without them messages go to
# data_out and come from data_in under the current folder, which are two. Seen (all folders are there):
#   messages in wanted: 0
#   messages in data_out: 1
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kombu==5.7.0 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
import os
import tempfile
from pathlib import Path

from kombu import Connection

with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    for name in ("wanted", "data_in", "data_out", "control"):
        Path(name).mkdir()
    with Connection(f"filesystem://{folder}/wanted") as connection:
        connection.SimpleBuffer("queue").put("a message")
    for name in ("wanted", "data_out"):
        print(f"messages in {name}: {len([*Path(name).rglob('*.msg')])}")
    os.chdir("/")
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
