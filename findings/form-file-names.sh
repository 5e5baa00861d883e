#!/usr/bin/env bash
# aiohttp 3.14.5 percent-encodes all of a file's name in a form, "%" too (a%41 b.txt becomes a%2541%20b.txt), and puts
# Content-Type before Content-Disposition. httpx 0.28.1, like curl, Node and browsers, escapes a quote and line ends by
# percents and sends any other "%" as it is, so that `%20` in a name cannot be told apart by the value alone. httpx
# doubles backslashes as well, which the others do not. Seen:
#   aiohttp: Content-Disposition: form-data; name="file"; filename="a%2541%20b%5Cc%22d.txt" (after Content-Type: True)
#   httpx: Content-Disposition: form-data; name="file"; filename="a%41 b\\c%22d.txt" (after Content-Type: False)
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check aiohttp==3.14.5 httpx==0.28.1 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
import asyncio
import httpx
from aiohttp import FormData

NAME = 'a%41 b\\c"d.txt'

async def by_aiohttp():
    form = FormData()
    form.add_field("file", b"x", filename=NAME)
    pieces = []
    class Writer:
        async def write(self, piece):
            pieces.append(bytes(piece))
    await form().write(Writer())
    return b"".join(pieces)

def told(client, body):
    head = body.partition(b"\r\n\r\n")[0].decode().splitlines()
    line = next(line for line in head if line.startswith("Content-Disposition"))
    before = [other.partition(":")[0] for other in head[: head.index(line)]]
    print(f"{client}: {line} (after Content-Type: {'Content-Type' in before})")

told("aiohttp", asyncio.run(by_aiohttp()))
told("httpx", httpx.Request("POST", "http://127.0.0.1/", files={"file": (NAME, b"x")}).read())
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
