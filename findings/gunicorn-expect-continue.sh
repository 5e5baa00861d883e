#!/usr/bin/env bash
# gunicorn 27.0.1 answers `Expect: 100-continue` before it calls the application.
#
# A client asks so that it need not send a body that will be refused. gunicorn tells it to send in any case, also where the
# application refuses without reading the body: the application can neither withhold nor time that answer. Seen (the
# application sleeps for a second before it refuses):
#   after less than half a second: HTTP/1.1 100 Continue
#   then: HTTP/1.1 413 Content Too Large
set -euo pipefail
folder=$(mktemp -d)
trap '[ -z "${server:-}" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gunicorn==27.0.1 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/app.py" <<'PYTHON'
import time

def app(environ, start_response):
    time.sleep(1)
    start_response("413 Content Too Large", [("Content-Length", "0"), ("Connection", "close")])
    return []
PYTHON
cat >"$folder/ask.py" <<'PYTHON'
import socket, sys, time

deadline = time.monotonic() + 20
while True:
    try:
        connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10)
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\nExpect: 100-continue\r\n\r\n")
begun = time.monotonic()
first = connection.recv(4096).decode().splitlines()[0]
when = "after less than half a second" if time.monotonic() - begun < 0.5 else "late"
print(f"{when}: {first}")
print("then:", connection.recv(4096).decode().splitlines()[0])
PYTHON
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# In the folder, since it reads a gunicorn.conf.py from where it is started.
(cd "$folder" && exec venv/bin/gunicorn --bind "127.0.0.1:$port" --log-level error --no-control-socket app:app) &
server=$!
"$folder/venv/bin/python" "$folder/ask.py" "$port" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
