#!/usr/bin/env bash
# Flask-JWT-Extended 4.7.4 refuses `Authorization: bearer …`: it compares the scheme with its case.
#
# Schemes are case-insensitive (RFC 9110, 11.1), and some clients send "bearer". JWT_HEADER_TYPE can only name another
# spelling. Seen with Flask 3.1.3:
#   Bearer: 200
#   bearer: 401
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check Flask-JWT-Extended==4.7.4 Flask==3.1.3 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
from flask import Flask
from flask_jwt_extended import JWTManager, create_access_token, jwt_required

app = Flask("app")
app.config["JWT_SECRET_KEY"] = "a key of more than thirty-two bytes"
JWTManager(app)


@app.get("/")
@jwt_required()
def view():
    return "ok"


with app.app_context():
    token = create_access_token("somebody")
for scheme in ("Bearer", "bearer"):
    print(f"{scheme}:", app.test_client().get("/", headers={"Authorization": f"{scheme} {token}"}).status_code)
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
