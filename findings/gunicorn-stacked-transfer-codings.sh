#!/usr/bin/env bash
# gunicorn 27.0.1 accepts `Transfer-Encoding: gzip, chunked` (valid by RFC 9112, 6.1), undoes `chunked` alone and hands the
# compressed bytes to the application as if they were the body. RFC 9112 wants 501 for a coding that a server does not
# understand; only HTTP_TRANSFER_ENCODING tells the application. Seen:
#   HTTP/1.1 200 OK
#   coding: gzip, chunked
#   the body begins as gzip does: True
set -euo pipefail
folder=$(mktemp -d)
trap '[ -z "${server:-}" ] || kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check gunicorn==27.0.1 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/app.py" <<'PYTHON'
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    text = f"coding: {environ['HTTP_TRANSFER_ENCODING']}\nthe body begins as gzip does: {body[:2] == bytes([31, 139])}\n"
    return [text.encode()]
PYTHON
cat >"$folder/ask.py" <<'PYTHON'
import gzip, socket, sys, time
body = gzip.compress(b"hello")
deadline = time.monotonic() + 20
while True:
    try:
        connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10)
        break
    except OSError:
        if time.monotonic() > deadline:
            raise
        time.sleep(0.05)
connection.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"
                   + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
answer = b""
while piece := connection.recv(65536):
    answer += piece
head, _, rest = answer.partition(b"\r\n\r\n")
print(head.decode().splitlines()[0])
print("\n".join(line for line in rest.decode().splitlines() if ":" in line))
PYTHON
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# In the folder, since it reads a gunicorn.conf.py from where it is started.
(cd "$folder" && exec venv/bin/gunicorn --bind "127.0.0.1:$port" --log-level error --no-control-socket app:app) &
server=$!
"$folder/venv/bin/python" "$folder/ask.py" "$port" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
