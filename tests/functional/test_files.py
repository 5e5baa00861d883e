"""Files through HTTP: stored, listed, looked at, read and deleted, and what of them lies where."""

import base64
import hashlib
import unicodedata
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from email.message import Message
from io import BytesIO

import pytest
from cryptography.fernet import Fernet

from testing import oracle
from testing.content import CAPACITY, CLOSE, FORM, HEADER, MIB, part, pattern
from testing.vault import FILES, Person, Vault
from vault.core.errors import StorageUnavailable
from vault.encryption.keyring import generate_master_key
from vault.storage import object_key

pytestmark = [pytest.mark.one_database, pytest.mark.uncounted]

MARKER = b"a plaintext that must not be found anywhere in the store "

NAMES = {
    "plain": "notes.txt",
    "spaces": "  my notes .txt ",
    "dots": "...",
    "umlauts": "Größe.txt",
    "Chinese": "机密文件.pdf",
    "Arabic": "ملف سري.docx",
    "Hindi": "गोपनीय.txt",
    "emoji": "🦀👩\u200d👩\u200d👧.png",
    "quotes": "a\"b'c\\d;e=f,g%41.txt",
    "markup": "<script>alert(1)<script>.html",
    "formula": "=cmd|' _C calc'!A0",
    "Windows": "CON:\\x|y?*<>.txt",
    "bidi": "exe\u202efdp.pdf",
    "longest": "x" * 251 + ".txt",
    "longest, four bytes each": "𝔵" * 255,
    "two code points": unicodedata.normalize("NFD", "Ångström é.txt"),
}


def repr_digest(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


# Storing


def test_a_raw_body_is_stored_and_described(vault: Vault, anna: Person) -> None:
    answer = anna.post(
        FILES, query_string={"name": "notes.txt"}, data=b"hello", content_type="Text/PLAIN; charset=utf-8"
    )

    assert answer.status_code == 201
    stored = answer.json
    assert stored.keys() == {
        "id", "kind", "name", "parent_id", "path", "content_type", "size", "created_at", "modified_at", "updated_at",
        "trashed_at", "version_no", "etag", "cipher", "key_provider", "sha256",
    }  # fmt: skip
    assert (stored["kind"], stored["path"], stored["version_no"], stored["trashed_at"]) == ("file", [], 1, None)
    assert (stored["name"], stored["content_type"], stored["size"]) == ("notes.txt", "text/plain; charset=utf-8", 5)
    assert (stored["cipher"], stored["key_provider"]) == ("AES-256-EAX", "local")
    assert stored["sha256"] == hashlib.sha256(b"hello").hexdigest()
    assert stored["id"] != stored["etag"]
    assert datetime.fromisoformat(stored["created_at"]).utcoffset() == timedelta(0)
    assert answer.headers["Location"] == f"{FILES}/{stored['id']}"
    assert anna.get(answer.headers["Location"]).json == stored
    assert anna.download(stored["id"]) == b"hello"


def test_a_form_is_stored_and_described_alike(vault: Vault, anna: Person) -> None:
    by_client = anna.post(FILES, data={"file": (BytesIO(b"hello"), "a.txt")})
    by_hand = [anna.post(FILES, data=body + CLOSE, content_type=FORM) for body in (part(), part(lines=()))]

    assert [answer.status_code for answer in (by_client, *by_hand)] == [201] * 3
    assert [(answer.json["name"], answer.json["content_type"]) for answer in (by_client, *by_hand)] == [
        *[("a.txt", "text/plain"), ("notes.txt", "text/plain")],
        ("notes (2).txt", "application/octet-stream"),
    ]
    for answer in (by_client, *by_hand):
        assert answer.json["sha256"] == hashlib.sha256(b"hello").hexdigest()
        assert anna.download(answer.json["id"]) == b"hello"


def test_names_in_any_script_come_back_in_nfc(anna: Person) -> None:
    stored = {what: anna.upload(b"x", name) for what, name in NAMES.items()}
    body = part(filename="机密 файл.txt".encode()) + CLOSE
    in_form = anna.post(FILES, data=body, content_type=FORM)
    header = {"Content-Disposition": "attachment; filename=a.txt; filename*=UTF-8''%E2%82%AC%20rates.txt"}
    in_header = anna.post(FILES, query_string={"name": "q.txt"}, data=b"x", headers=header)

    expected = {what: unicodedata.normalize("NFC", name) for what, name in NAMES.items()}
    assert {what: file["name"] for what, file in stored.items()} == expected
    assert (in_form.json["name"], in_header.json["name"]) == ("机密 файл.txt", "€ rates.txt")
    listed = {item["name"] for item in anna.get(FILES, query_string={"limit": 200}).json["items"]}
    assert listed == {*expected.values(), "机密 файл.txt", "€ rates.txt"}


def test_a_downloads_disposition_tells_the_name_and_nothing_more(anna: Person) -> None:
    for what, name in NAMES.items():
        file_id = anna.upload(b"x", name)["id"]

        header = anna.get(f"{FILES}/{file_id}/content").headers["Content-Disposition"]

        assert header.isascii(), what
        assert header.isprintable(), what
        message = Message()
        message["Content-Disposition"] = header
        (kind, _), *parameters = message.get_params([], "content-disposition")
        assert kind == "attachment"
        assert [key for key, _ in parameters] == ["filename", "filename"], what
        plain = next(value for _, value in parameters if isinstance(value, str))
        charset, _, raw = next(value for _, value in parameters if isinstance(value, tuple))
        assert (charset, raw.encode("latin-1").decode()) == ("UTF-8", unicodedata.normalize("NFC", name)), what
        assert plain, what
        assert not set(plain) & set("\"\\/%;<>:|?*'"), what
        assert not plain.startswith("."), what
        assert not plain.endswith((".", " ")), what


@pytest.mark.parametrize("cipher", CAPACITY)
def test_every_size_around_a_segments_edge_comes_back(make_vault: Callable[..., Vault], cipher: str) -> None:
    vault = make_vault(FILE_CIPHER=cipher)
    anna = vault.member()
    edge = CAPACITY[cipher] - HEADER
    # The last is above what is verified whole before its first byte.
    sizes = [0, 1, edge - 1, edge, edge + 1, edge + CAPACITY[cipher], 5 * CAPACITY[cipher], 9 * MIB + 17]

    for size in sizes:
        content = pattern(size)
        raw = anna.send(content, length=size)
        chunked = anna.send(content, length=None)
        in_form = anna.post(FILES, data=part(content) + CLOSE, content_type=FORM)

        for answer in (raw, chunked, in_form):
            assert (answer.status_code, answer.json["size"], answer.json["cipher"]) == (201, size, cipher)
            assert answer.json["sha256"] == hashlib.sha256(content).hexdigest()
            assert anna.download(answer.json["id"]) == content
    assert vault.accounts_balance()
    assert vault.account().used_bytes == 3 * sum(sizes)


def test_right_digests_are_accepted(anna: Person) -> None:
    content = pattern(300_000)
    body = part(content) + CLOSE
    of_file = [
        repr_digest(content),
        f"sha-512=:{'A' * 86}==:, {repr_digest(content)}",
        f"unixsum=:YQ==:,{repr_digest(content)}",
        "sha-512=:AAAA:",
    ]

    answers = [anna.send(content, length=len(content), headers={"Repr-Digest": header}) for header in of_file]
    answers += [
        anna.send(content, length=len(content), headers={"Content-Digest": repr_digest(content)}),
        anna.send(content, length=None, headers={"Content-Digest": repr_digest(content)}),
        anna.send(b"", length=0, headers={"Content-Digest": repr_digest(b"")}),
        anna.post(FILES, data=body, content_type=FORM, headers={"Content-Digest": repr_digest(body)}),
    ]

    assert [answer.status_code for answer in answers] == [201] * 8


def test_a_wrong_digest_keeps_nothing(vault: Vault, anna: Person) -> None:
    content = pattern(300_000)
    body = part(content) + CLOSE
    wrong = {"Repr-Digest": repr_digest(content + b"x")}

    answers = [
        anna.send(content, length=len(content), headers=wrong),
        anna.send(content, length=None, headers=wrong),
        anna.post(FILES, data=body, content_type=FORM, headers=wrong),
    ]
    malformed = anna.send(content, length=len(content), headers={"Repr-Digest": "sha-256=:AAAA:"})

    of_body = {"Content-Digest": repr_digest(content)}
    answers += [
        anna.send(content + b"x", length=len(content) + 1, headers=of_body),
        anna.send(content + b"x", length=None, headers=of_body),
        # A form's is of the form, not of the file in it.
        anna.post(FILES, data=body, content_type=FORM, headers=of_body),
        anna.send(content, length=len(content), headers={**of_body, "Repr-Digest": repr_digest(b"x")}),
    ]

    assert {(a.status_code, a.json["code"]) for a in answers} == {(422, "digest_mismatch")}
    assert (malformed.status_code, list(malformed.json["errors"])) == (422, ["Repr-Digest"])
    assert vault.leftovers() == {}


# What lies where


@pytest.mark.parametrize("cipher", CAPACITY)
def test_the_stored_object_opens_with_row_and_master_key_alone(make_vault: Callable[..., Vault], cipher: str) -> None:
    master = generate_master_key()
    vault = make_vault(FILE_CIPHER=cipher, MASTER_KEY=f"{master},{generate_master_key()}")
    anna = vault.member()
    content = MARKER * 10_000

    stored = anna.upload(content, name="a name that must not be found")

    row = vault.file(stored["id"])
    sealed = vault.store.objects[object_key(row.object_id)]
    assert row.encrypted_data_key is not None
    dek = Fernet(master).decrypt(row.encrypted_data_key)
    keys = oracle.derive_keys(oracle.parse_header(sealed[:HEADER]), dek)
    ids = (row.object_id, row.entry_id, row.owner_id)
    assert len(dek) == 32
    assert oracle.read_object(sealed, dek) == content
    assert row.header == sealed[:HEADER]
    assert oracle.open_digest(row.sealed_digest or b"", keys.metadata, ids) == oracle.digests_of(content)
    assert hashlib.sha256(content).hexdigest() == stored["sha256"]
    assert row.key_ref.startswith("local:")


def test_neither_store_nor_database_tells_what_a_file_contains(vault: Vault, anna: Person) -> None:
    stored = [anna.upload(MARKER * 10_000, name="secret-name.txt") for _ in range(2)]

    everything = b"".join(key.encode() + content for key, content in vault.store.objects.items())
    rows = [vault.file(file["id"]) for file in stored]
    row = rows[0]
    assert MARKER[:16] not in everything
    assert b"secret-name" not in everything
    assert (row.encrypted_data_key or "").encode() not in everything
    assert row.id.bytes not in everything
    assert row.owner_id.bytes not in everything
    first, second = (vault.store.objects[object_key(uuid.UUID(file["etag"]))] for file in stored)
    assert len(first) == len(second)
    assert not any(first[i : i + 16] == second[i : i + 16] for i in range(HEADER, len(first), 16))
    digest = hashlib.sha256(MARKER * 10_000).digest()
    assert rows[0].sealed_digest != rows[1].sealed_digest
    assert all(digest not in (row.sealed_digest or b"") for row in rows)
    assert rows[0].encrypted_data_key != rows[1].encrypted_data_key


# Looking


def test_one_files_etag_names_the_file_and_the_version_of_its_facts(vault: Vault, anna: Person) -> None:
    stored = anna.upload(b"hello")

    answer = anna.get(f"{FILES}/{stored['id']}")

    assert answer.status_code == 200
    assert answer.headers["ETag"] == f'"{stored["id"]}.{vault.entry(stored["id"]).version}"'
    assert answer.json == stored


# Reading


def test_content_comes_with_every_header_of_the_contract(vault: Vault, anna: Person) -> None:
    content = pattern(300_000)
    stored = anna.upload(content, "Größe.html", "text/html; charset=utf-8")

    answer = anna.get(f"{FILES}/{stored['id']}/content")

    assert (answer.status_code, answer.data) == (200, content)
    assert {name: answer.headers[name] for name in set(answer.headers.keys()) - {"X-Request-ID"}} == {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Length": "300000",
        "Content-Disposition": "attachment; filename=\"Gro_e.html\"; filename*=UTF-8''Gr%C3%B6%C3%9Fe.html",
        "ETag": f'"{stored["etag"]}"',
        "Repr-Digest": repr_digest(content),
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-store, no-transform",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox; default-src 'none'",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
    }


@pytest.mark.parametrize("size", [0, 5, 9 * MIB])
def test_head_says_what_get_says_and_touches_neither_store_nor_audit(vault: Vault, anna: Person, size: int) -> None:
    path = f"{FILES}/{anna.upload(pattern(size))['id']}/content"
    vault.store.calls.clear()

    head = anna.head(path)
    calls, events = list(vault.store.calls), vault.audit_trail("file.download_started")
    got = anna.get(path)

    assert (head.status_code, head.data) == (200, b"")
    same = set(head.headers.keys()) - {"X-Request-ID"}
    assert {name: head.headers[name] for name in same} == {name: got.headers[name] for name in same}
    assert head.headers["Content-Length"] == str(size)
    assert (calls, events) == ([], [])


def test_a_store_that_is_down_is_not_taken_for_damage(vault: Vault, anna: Person) -> None:
    stored = anna.upload(b"hello")
    vault.store.failures["open"] = StorageUnavailable()

    content = anna.get(f"{FILES}/{stored['id']}/content")
    facts, listed = anna.get(f"{FILES}/{stored['id']}"), anna.get(FILES)
    deleted = anna.delete(f"{FILES}/{stored['id']}")

    assert (content.status_code, content.json["code"]) == (502, "storage_unavailable")
    assert "Retry-After" in content.headers
    assert (facts.json["sha256"], len(listed.json["items"]), deleted.status_code) == (stored["sha256"], 1, 204)
    assert vault.audit_trail("file.integrity_failed") == []


def test_both_ciphers_stay_readable_whatever_is_set(vault: Vault, anna: Person) -> None:
    people = [anna.at(vault.rotated(FILE_CIPHER=cipher)) for cipher in CAPACITY]
    stored = [person.upload(MARKER) for person in people]

    assert [file["cipher"] for file in stored] == list(CAPACITY)
    for person in people:
        assert [person.download(file["id"]) for file in stored] == [MARKER, MARKER]


# Deleting


def test_a_deleted_file_is_gone_immediately_and_its_object_after_the_queue(vault: Vault, anna: Person) -> None:
    kept, doomed = anna.upload(b"12345"), anna.upload(b"1234567")

    answer = anna.delete(f"{FILES}/{doomed['id']}")

    row = vault.file(doomed["id"])
    assert (answer.status_code, answer.data) == (204, b"")
    assert (row.state, row.encrypted_data_key, row.sealed_digest) == ("shredded", None, None)
    assert len(vault.objects()) == 2
    assert vault.account().used_bytes == 5
    for send, path in ((anna.get, ""), (anna.get, "/content"), (anna.head, "/content"), (anna.delete, "")):
        assert send(f"{FILES}/{doomed['id']}{path}").status_code == 404
    assert [item["id"] for item in anna.get(FILES).json["items"]] == [kept["id"]]

    vault.run_queue()

    assert vault.objects() == [object_key(uuid.UUID(kept["etag"]))]
    assert [str(row.id) for row in vault.files()] == [kept["id"]]
    assert vault.accounts_balance()
    assert anna.download(kept["id"]) == b"12345"


def test_an_object_that_cannot_be_removed_now_is_removed_by_a_later_pass(vault: Vault, anna: Person) -> None:
    file_id = anna.upload(b"hello")["id"]
    vault.store.failures["delete"] = StorageUnavailable()

    deleted = anna.delete(f"{FILES}/{file_id}")
    vault.run_queue()
    vault.reap()
    states = [row.state for row in vault.files()]
    vault.store.failures.clear()

    assert (deleted.status_code, states) == (204, ["shredded"])
    assert vault.leftovers() == {}
