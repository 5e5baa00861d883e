#!/usr/bin/env bash
# SQLAlchemy: a connection that was detached from its pool cannot change its isolation level.
#
# `Connection.detach()` is the documented way to keep a connection whose settings a pool must not get back. After it,
# `execution_options(isolation_level=...)` raises AttributeError: it registers what resets the level with the record of
# the pool, and there is none any more. Alembic's `autocommit_block()`, which PostgreSQL needs for CREATE INDEX
# CONCURRENTLY, does the same call, so a migration over a detached connection fails there. `invalidate()` at the end
# keeps the connection out of the pool as well, and works.
#
# Seen with SQLAlchemy 2.1.9, Python 3.11:
#   pooled: no error
#   detached: AttributeError: 'NoneType' object has no attribute 'finalize_callback'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check 'SQLAlchemy==2.1.9'
"$folder/venv/bin/python" - <<'EOF'
import sys

import sqlalchemy as sa

engine = sa.create_engine("sqlite://")
with engine.connect() as connection:
    connection.execution_options(isolation_level="AUTOCOMMIT")
    print("pooled: no error")
with engine.connect() as connection:
    connection.detach()
    try:
        connection.execution_options(isolation_level="AUTOCOMMIT")
    except AttributeError as exc:
        print("detached: AttributeError:", exc)
        sys.exit("finalize_callback" not in str(exc))
sys.exit("It works now: the behaviour has changed.")
EOF
