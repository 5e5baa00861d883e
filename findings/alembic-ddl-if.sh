#!/usr/bin/env bash
# alembic 1.20.1 reports an index that another database is to have as missing, each time.
#
# `Index(...).ddl_if(dialect="postgresql")` is SQLAlchemy's way to keep an index from other databases: create_all leaves it
# out on SQLite. Alembic's comparison does not ask for the condition, so `alembic check` fails there and autogenerate writes
# a migration that adds the index. An `include_object` that filters it is needed. Seen with SQLAlchemy 2.1.9:
#   SQLite has: ['plain']
#   differences: [('add_index', 'only_on_postgresql')]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check alembic==1.20.1 SQLAlchemy==2.1.9 2>"$folder/pip" || { cat "$folder/pip"; exit 2; }
cat >"$folder/seen.py" <<'PYTHON'
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

metadata = sa.MetaData()
table = sa.Table("texts", metadata, sa.Column("text", sa.Text))
sa.Index("plain", table.c.text)
sa.Index("only_on_postgresql", table.c.text).ddl_if(dialect="postgresql")
with sa.create_engine("sqlite://").connect() as connection:
    metadata.create_all(connection)
    print("SQLite has:", [index["name"] for index in sa.inspect(connection).get_indexes("texts")])
    differences = compare_metadata(MigrationContext.configure(connection), metadata)
    print("differences:", [(kind, index.name) for kind, index in differences])
PYTHON
"$folder/venv/bin/python" "$folder/seen.py" | tee "$folder/seen"
diff "$folder/seen" <(sed -n 's/^#   //p' "$0")
