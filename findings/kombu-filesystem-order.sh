#!/usr/bin/env bash
# kombu 5.7.0: the filesystem transport delivers messages out of order when the uptime of the machine gets another digit.
#
# A message is a file whose name begins with the monotonic clock in milliseconds, and files are taken in the order of their
# names as text: "100000100" comes before "99999900". So messages of before a change of digits, at 10, 100 or 1000 million
# milliseconds (2.8 hours, 27.8 hours, 11.6 days), wait for all later ones. Seen (the clock is replaced):
#   at 99999.9 s and 99999.95 s: first, second
#   at 99999.9 s and 100000.1 s: second, first
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check kombu==5.7.0 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
import tempfile
from pathlib import Path
from unittest import mock

from kombu import Connection
from kombu.transport import filesystem


def received(name, *seconds):
    with tempfile.TemporaryDirectory() as folder:
        for part in ("queue", "control"):
            Path(folder, part).mkdir()
        options = {
            "data_folder_in": f"{folder}/queue", "data_folder_out": f"{folder}/queue",
            "control_folder": f"{folder}/control",
        }
        with Connection("filesystem://", transport_options=options) as connection:
            queue = connection.SimpleQueue(name)
            for moment, text in zip(seconds, ("first", "second")):
                with mock.patch.object(filesystem, "monotonic", lambda: moment):
                    queue.put(text)
            return ", ".join(queue.get(timeout=5).payload for _ in seconds)


print("at 99999.9 s and 99999.95 s:", received("same-digits", 99_999.9, 99_999.95))
print("at 99999.9 s and 100000.1 s:", received("more-digits", 99_999.9, 100_000.1))
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
