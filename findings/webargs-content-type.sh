#!/usr/bin/env bash
# webargs 8.7.1 reads a JSON body that has another content type as if there were none.
#
# Where every field has a default or is optional, as for a partial change, the request succeeds and does nothing: a client
# that forgot its Content-Type gets 200. Seen with Flask 3.1.3, marshmallow 4.4.0:
#   application/json: 200 {"name": "new"}
#   text/plain: 200 {}
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check webargs==8.7.1 Flask==3.1.3 marshmallow==4.4.0 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
import json

import marshmallow as ma
from flask import Flask
from webargs.flaskparser import use_args

app = Flask("app")


class ChangeSchema(ma.Schema):
    name = ma.fields.String()


@app.patch("/")
@use_args(ChangeSchema())
def change(fields):
    return fields


for content_type in ("application/json", "text/plain"):
    answer = app.test_client().patch("/", data=json.dumps({"name": "new"}), content_type=content_type)
    print(f"{content_type}: {answer.status_code} {json.dumps(answer.json)}")
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
