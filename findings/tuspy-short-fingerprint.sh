#!/usr/bin/env bash
# tuspy 1.1.0 takes two files of the same size for one if their first 64 KiB are the same, and sends the second one not at all.
#
# With store_url=True it looks for an earlier upload of the file by a fingerprint: the size, and the MD5 of the first block of
# 65,536 bytes. Upload addresses stay in the store after the upload, so the second file finds that of the first, HEAD says that
# all of it has arrived, and upload() returns as after a success. Disk images, databases, and logs or media with a common
# head are such files. Seen with tuspy 1.1.0:
#   first.img: sent 100000 bytes
#   second.img: sent 0 bytes
#   the server has 1 file
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check tuspy==1.1.0 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

from tusclient.client import TusClient
from tusclient.storage.filestorage import FileStorage

folder = sys.argv[1]
files = {}


class Tus(BaseHTTPRequestHandler):
    def do_POST(self):
        path = f"/{len(files)}"
        files[path] = b""
        self.answer(201, Location=path)

    def do_HEAD(self):
        self.answer(200, **{"Upload-Offset": str(len(files[self.path]))})

    def do_PATCH(self):
        files[self.path] += self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(204, **{"Upload-Offset": str(len(files[self.path]))})

    def answer(self, status, **headers):
        self.send_response(status)
        for name, value in {"Tus-Resumable": "1.0.0", "Content-Length": "0", **headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Tus)
threading.Thread(target=server.serve_forever, daemon=True).start()
client, storage = TusClient(f"http://127.0.0.1:{server.server_port}/"), FileStorage(os.path.join(folder, "urls.json"))
for name, end in (("first.img", b"1"), ("second.img", b"2")):
    path = os.path.join(folder, name)
    with open(path, "wb") as file:
        file.write(bytes(99_999) + end)
    before = sum(map(len, files.values()))
    client.uploader(path, store_url=True, url_storage=storage).upload()
    print(f"{name}: sent {sum(map(len, files.values())) - before} bytes")
print(f"the server has {len(files)} file")
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" "$folder" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
