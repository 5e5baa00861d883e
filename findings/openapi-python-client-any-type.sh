#!/usr/bin/env bash
# openapi-python-client 0.29.1 makes a client of an answer whose only content type is `*/*` (valid OpenAPI: a range of media
# types), leaves that answer out with a warning and ends with status 0; the function then returns None for a 200. With
# `application/octet-stream` beside `*/*` it returns the bytes. Seen:
#   any: status 0, bytes are returned: False
#   both: status 0, bytes are returned: True
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check openapi-python-client==0.29.1 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
make() {
    cat >"$folder/$1.json" <<JSON
{"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": {"/f": {"get": {"operationId": "get_f", "responses":
{"200": {"description": "bytes", "content": {$2}}}}}}}
JSON
    local status=0 bytes=False
    (cd "$folder" && PATH="$folder/venv/bin:$PATH" openapi-python-client generate --path "$1.json" --output-path "$1") \
        >"$folder/log" 2>&1 || status=$?
    grep --quiet --recursive 'File(payload' "$folder/$1" && bytes=True
    printf '%s: status %s, bytes are returned: %s\n' "$1" "$status" "$bytes"
}
bytes='{"schema": {"type": "string", "format": "binary"}}'
{
    make any "\"*/*\": $bytes"
    make both "\"application/octet-stream\": $bytes, \"*/*\": $bytes"
} | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
