"""docs/object-format.md against both readers of it: its tables are parsed, so that it cannot say what is not so."""

import hashlib
import io
import json
import re
import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
from botocore.stub import Stubber
from Crypto.Cipher import AES
from Crypto.Hash import CMAC

from testing import oracle
from testing.sealing import SALT, content_key_of, each_suite, plaintext_of, sealed_object
from vault.core.aws_access import AwsAccess
from vault.encryption.eax import Eax
from vault.encryption.errors import AuthenticationFailed
from vault.encryption.header import (
    HEADER_SIZE,
    LG_RANGE,
    ContentDigest,
    FileKeys,
    Header,
    SealedFor,
    Suite,
    open_digest,
    open_keys,
    seal_digest,
    staging_keys,
)
from vault.encryption.keyring import KeyRing, LocalKeyProvider, WrappedKey
from vault.encryption.kms import KmsKeyProvider, KmsOptions
from vault.encryption.running_hash import STATE_SIZE, RunningHash
from vault.encryption.segments import MAX_SEGMENTS, ContentKey, Covering, Geometry, open_stream, plaintext_size
from vault.encryption.staging import Kind, Place, Staging
from vault.objects.models import SealedObject
from vault.resumable.models import ResumableUpload
from vault.storage import object_key

ROOT: Final = Path(__file__).parents[3]
DOCUMENT: Final = (ROOT / "docs/object-format.md").read_text()
LG: Final = 18

Row = dict[str, str]


def section(title: str) -> str:
    """The text under one heading, down to the next of any level."""
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##+ |\Z)", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def table(title: str, *columns: str) -> list[Row]:
    """The rows of the section's table with these columns, without the backticks around cells."""
    head = f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}\n"
    text = section(title)
    assert text.count(head) == 1, columns
    lines = text[text.index(head) + len(head) :].split("\n\n")[0].splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split(" | ")] for line in lines]
    assert rows
    return [dict(zip(columns, cells, strict=True)) for cells in rows]


def facts(title: str, *columns: str) -> dict[str, str]:
    """A table of two columns as names and values."""
    return {row[columns[0]]: row[columns[1]] for row in table(title, *columns)}


def number(cell: str) -> int:
    return int(cell.replace(",", ""))


def span(cell: str) -> tuple[int, int]:
    first, last = cell.split("-")
    return int(first), int(last)


SUITES: Final = table("Suites", "suite", "name", "nonce", "tag", "O", "P for C = 262144")
FIELDS: Final = table("Header", "offset", "length", "field")
CASES: Final = table("Offsets", "suite", "N", "read", "n", "L", "i0-i1", "lo-hi", "skip", "take")
INPUTS: Final = facts("Known answers", "input", "value")
DERIVED: Final = table("Known answers", "suite", "value", "hex")
OBJECTS: Final = table("Known answers", "suite", "N", "L", "SHA-256 of the object")
FINAL_SEGMENTS: Final = facts("Known answers", "suite", "segment")
RESUMED: Final = table("Known answers", "suite", "N", "SHA-256 of the resumed object")
RESUMED_SEGMENTS: Final = facts("Known answers", "suite", "resumed segment")
STAGED: Final = table("Known answers", "suite", "kind", "offset", "seq", "epoch", "staged")
KINDS: Final = table("Staging", "kind", "content", "offset", "seq, epoch", "where")
DIGESTS: Final = table("Known answers", "suite", "form", "sealed_digest")
WRAPPED: Final = facts("Known answers", "column", "value")
EAX: Final = {name: bytes.fromhex(value) for name, value in facts("Known answers", "name", "hex").items()}

DEK: Final = bytes.fromhex(INPUTS["DEK"])
OBJECT_ID: Final = uuid.UUID(INPUTS["object_id"])
DIGEST_5: Final = bytes.fromhex(re.findall(r"whose SHA-256 is\s+`([0-9a-f]{64})`", DOCUMENT)[0])
CRC_5: Final = int(re.findall(r"whose CRC-32 is\s+`([0-9a-f]{8})`", DOCUMENT)[0], 16)
DIGEST_NONCE: Final = bytes.fromhex(re.findall(r"with nonce ([0-9a-f]{2}), 16\s+times", DOCUMENT)[0]) * 16
ROW_ID, ENTRY_ID, OWNER_ID = (
    uuid.UUID(re.findall(rf"\b{name}\s+`([0-9a-f-]{{36}})`", section("Known answers"))[0])
    for name in ("id", "entry_id", "owner_id")
)

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['suite']}-{case['N']}-{case['read']}")
each_digest = pytest.mark.parametrize("case", DIGESTS, ids=lambda case: f"{case['suite']}-{case['form']}")
each_resumed = pytest.mark.parametrize("case", RESUMED, ids=lambda case: f"{case['suite']}-{case['N']}")
each_staged = pytest.mark.parametrize("case", STAGED, ids=lambda case: f"{case['suite']}-{case['kind']}")
each_object = pytest.mark.parametrize("case", OBJECTS, ids=lambda case: f"{case['suite']}-{case['N']}")


def suite_of(row: Row) -> Suite:
    return Suite(int(row["suite"], 16))


def code_of(suite: Suite) -> str:
    return f"{suite:02x}"


def key_of(suite: Suite) -> ContentKey:
    return content_key_of(suite, LG, dek=DEK, object_id=OBJECT_ID)


def header_of(suite: Suite) -> Header:
    return key_of(suite).header


def keys_of(suite: Suite) -> FileKeys:
    return open_keys(DEK, header_of(suite))


def document_object(suite: Suite, size: int) -> bytes:
    """The object that the document describes, as the vault writes it."""
    return sealed_object(key_of(suite), plaintext_of(size))


def resumed_object(suite: Suite, size: int) -> bytes:
    """The object of an upload that can be resumed."""
    out = memoryview(bytearray(Geometry(suite, LG, size).object_size))
    plaintext = memoryview(bytearray(plaintext_of(size)))
    used = Staging(DEK, header_of(suite)).seal_part(0, plaintext, out, RunningHash(), is_final=True)
    assert used == len(out)
    return bytes(out)


def entry_of(digest: Row) -> uuid.UUID:
    """The file of the row that has this sealed digest."""
    return ROW_ID if digest["form"] == "first" else ENTRY_ID


def row_of(digest: Row) -> oracle.OracleRow:
    """The row of the document's file with N = 5 and this sealed digest, by the document's values alone."""
    suite = suite_of(digest)
    lengths = {case["suite"]: number(case["L"]) for case in OBJECTS if case["N"] == "5"}
    derived = {row["value"]: bytes.fromhex(row["hex"]) for row in DERIVED if suite_of(row) is suite}
    return oracle.OracleRow(
        id=ROW_ID,
        entry_id=entry_of(digest),
        owner_id=OWNER_ID,
        object_id=OBJECT_ID,
        header=derived["header[0:32]"] + SALT + derived["commitment"],
        encrypted_data_key=WRAPPED["encrypted_data_key"],
        key_provider=WRAPPED["key_provider"],
        key_ref=WRAPPED["key_ref"],
        size_bytes=5,
        object_size_bytes=lengths[code_of(suite)],
        sealed_digest=bytes.fromhex(digest["sealed_digest"]),
    )


class TestLayout:
    def test_names_the_suites_with_their_sizes(self) -> None:
        documented = [(suite_of(r), r["name"], *(int(r[c]) for c in ("nonce", "tag", "O"))) for r in SUITES]
        capacities = [number(r["P for C = 262144"]) for r in SUITES]

        assert SALT.hex() == INPUTS["salt"]
        assert [Suite.named(suite.cipher_name) for suite in Suite] == list(Suite)
        assert documented == [
            (suite, f"{suite.cipher_name} with HKDF-SHA256", suite.nonce_size, 16, suite.overhead) for suite in Suite
        ]
        assert [oracle.overhead(suite) for suite in Suite] == [suite.overhead for suite in Suite]
        assert capacities == [Geometry(suite, LG, 0).capacity for suite in Suite]
        assert capacities == [oracle.OracleGeometry(suite, LG, 0).P for suite in Suite]

    def test_header_fields_follow_each_other_and_fill_96_bytes(self) -> None:
        spans = [(int(field["offset"]), int(field["length"])) for field in FIELDS]

        ends = [offset + length for offset, length in spans]
        assert [offset for offset, _ in spans] == [0, *ends[:-1]]
        assert ends[-1] == HEADER_SIZE == 96

    @each_suite
    def test_header_fields_are_where_the_vault_writes_them_and_the_oracle_reads_them(self, suite: Suite) -> None:
        raw = header_of(suite).to_bytes()
        values = [raw[int(f["offset"]) :][: int(f["length"])] for f in FIELDS]
        magic = bytes.fromhex(re.findall(r"magic `([0-9a-f ]+)`", section("Header"))[0])

        parsed = oracle.parse_header(raw)

        assert [re.split(r"[ ,]", field["field"])[0] for field in FIELDS] == [
            "magic", "version", "suite", "lg", "flags", "reserved", "object_id", "salt", "commitment",
        ]  # fmt: skip
        assert values[:6] == [magic, b"\1", bytes([suite]), bytes([LG]), b"\0", bytes(4)]
        assert values[6:] == [OBJECT_ID.bytes, SALT, keys_of(suite).commitment]
        assert values[6:] == [parsed.object_id.bytes, parsed.salt, parsed.commitment]

    def test_limits_are_the_vaults(self) -> None:
        limits = facts("Limits", "limit", "value")

        assert f"lg {LG_RANGE[0]} to {LG_RANGE[-1]}" in section("Suites")
        assert limits["lg"].startswith(f"{LG_RANGE[0]} to {LG_RANGE[-1]}:")
        assert limits["segments of an object"].startswith("2^32,")
        assert MAX_SEGMENTS == 2**32
        sizes = [int(size) for size in re.findall(r"\b(\d{3})\b", limits["smallest object"])]
        assert sizes == [Geometry(suite, LG, 0).object_size for suite in Suite]

    def test_object_key_is_where_the_vault_puts_the_object(self) -> None:
        example = re.findall(r"Example:\s+`([^`]+)`", section("Where an object lies"))

        assert example == [object_key(OBJECT_ID)]

    def test_names_columns_that_the_table_has(self) -> None:
        columns = facts("Row", "column", "content")

        assert set(columns) == set(oracle.OracleRow.__dataclass_fields__)
        assert set(columns) <= set(SealedObject.__table__.columns.keys())

    def test_has_every_section_that_the_code_refers_to(self) -> None:
        code = [path.read_text() for folder in ("vault", "testing", "tests") for path in (ROOT / folder).rglob("*.py")]

        titles = {title for text in code for title in re.findall(r"object-format\.md, \"([^\"]+)\"", text)}

        assert titles
        for title in titles:
            assert section(title)


class TestOffsets:
    @each_case
    def test_worked_case_is_computed_by_the_vault_and_by_the_oracle(self, case: Row) -> None:
        suite, size = suite_of(case), number(case["N"])
        ours, theirs = Geometry(suite, LG, size), oracle.OracleGeometry(suite, LG, size)
        documented = (*span(case["i0-i1"]), *span(case["lo-hi"]), number(case["skip"]), number(case["take"]))

        if case["read"] == "whole":
            coverings = (ours.whole(), theirs.whole())
        else:
            coverings = (ours.covering(*span(case["read"])), theirs.range(*span(case["read"])))

        assert (ours.segments, ours.object_size) == (theirs.n, theirs.L) == (number(case["n"]), number(case["L"]))
        assert plaintext_size(suite, LG, ours.object_size) == size
        assert oracle.OracleGeometry.of_object(suite, LG, theirs.L) == theirs
        assert [numbers_of(covering) for covering in coverings] == [documented, documented]

    def test_worked_cases_are_of_both_suites_and_both_kinds_of_read(self) -> None:
        kinds = Counter((suite_of(case), case["read"] == "whole") for case in CASES)

        assert kinds.keys() == {(suite, whole) for suite in Suite for whole in (True, False)}

    @each_suite
    @pytest.mark.parametrize("lg", LG_RANGE)
    def test_oracle_and_vault_agree_on_every_length_and_range_around_the_edges(self, suite: Suite, lg: int) -> None:
        capacity = Geometry(suite, lg, 0).capacity
        edges = [count * capacity - HEADER_SIZE for count in (1, 2, 3)]
        sizes = [0, 1, *(edge + step for edge in edges for step in (-1, 0, 1))]

        for size in sizes:
            ours, theirs = Geometry(suite, lg, size), oracle.OracleGeometry(suite, lg, size)
            assert (ours.segments, ours.object_size) == (theirs.n, theirs.L)
            assert numbers_of(ours.whole()) == numbers_of(theirs.whole())
            places = sorted({0, size // 2, size - 1, *(edge + step for edge in edges for step in (-1, 0))})
            places = [place for place in places if 0 <= place < size]
            for start in places:
                for end in places:
                    if start <= end:
                        assert numbers_of(ours.covering(start, end)) == numbers_of(theirs.range(start, end))

    @each_suite
    def test_oracle_refuses_lengths_that_no_object_has(self, suite: Suite) -> None:
        full, shortest = 1 << LG, suite.overhead
        refused = [-1, 0, HEADER_SIZE, HEADER_SIZE + shortest - 1, (full << 32) + shortest]
        refused += [count * full + rest for count in (1, 2, 7) for rest in (0, 1, shortest - 1)]
        accepted = [HEADER_SIZE + shortest, full - 1, full + shortest, 7 * full + shortest, (full << 32) - 1]

        for length in refused:
            with pytest.raises(ValueError, match="no object"):
                oracle.OracleGeometry.of_object(suite, LG, length)
        lengths = [oracle.OracleGeometry.of_object(suite, LG, length).L for length in accepted]
        assert lengths == accepted


def numbers_of(covering: Covering | oracle.OracleCovering) -> tuple[int, ...]:
    if isinstance(covering, Covering):
        return covering.first, covering.last, covering.lo, covering.hi, covering.skip, covering.take
    return covering.i0, covering.i1, covering.lo, covering.hi, covering.skip, covering.take


class TestKnownAnswers:
    @each_suite
    def test_derived_keys_are_the_documents(self, suite: Suite) -> None:
        documented = {row["value"]: row["hex"] for row in DERIVED if suite_of(row) is suite}
        header, ours = header_of(suite), keys_of(suite)

        parsed = oracle.parse_header(header.to_bytes())
        theirs = oracle.derive_keys(parsed, DEK)

        assert {
            "header[0:32]": header.prefix.hex(),
            "PRK": oracle.extract(parsed.salt, DEK).hex(),
            "K_enc": ours.encryption.hex(),
            "commitment": ours.commitment.hex(),
            "K_meta": ours.metadata.hex(),
            "K_stage": staging_keys(DEK, header)[0].hex(),
            "K_n": staging_keys(DEK, header)[1].hex(),
        } == documented
        assert oracle.staging_keys(parsed, DEK) == staging_keys(DEK, header)
        assert header.commitment == ours.commitment == theirs.commitment
        assert (theirs.encryption, theirs.metadata) == (ours.encryption, ours.metadata)

    @each_object
    def test_object_is_what_the_vault_seals_and_both_open(self, case: Row) -> None:
        suite, size = suite_of(case), number(case["N"])
        geometry, key = Geometry(suite, LG, size), key_of(suite)

        stored = document_object(suite, size)
        opened = open_stream(key, geometry, io.BytesIO(stored[HEADER_SIZE:]).read, 0, geometry.segments - 1)

        assert len(stored) == number(case["L"])
        assert hashlib.sha256(stored).hexdigest() == case["SHA-256 of the object"]
        assert oracle.read_object(stored, DEK) == b"".join(opened) == plaintext_of(size)

    @each_suite
    def test_final_segment_is_the_documents(self, suite: Suite) -> None:
        stored = document_object(suite, 5)

        assert stored[HEADER_SIZE:].hex() == FINAL_SEGMENTS[code_of(suite)]
        assert plaintext_of(5).hex() in section("Known answers")

    @each_resumed
    def test_resumed_object_is_what_the_vault_seals_and_both_open(self, case: Row) -> None:
        suite, size = suite_of(case), number(case["N"])
        geometry, key = Geometry(suite, LG, size), key_of(suite)

        stored = resumed_object(suite, size)
        opened = open_stream(key, geometry, io.BytesIO(stored[HEADER_SIZE:]).read, 0, geometry.segments - 1)

        assert hashlib.sha256(stored).hexdigest() == case["SHA-256 of the resumed object"]
        assert oracle.read_object(stored, DEK) == b"".join(opened) == plaintext_of(size)

    @each_suite
    def test_final_resumed_segment_is_the_documents_with_the_nonce_of_its_formula(self, suite: Suite) -> None:
        documented = bytes.fromhex(RESUMED_SEGMENTS[code_of(suite)])
        parsed = oracle.parse_header(header_of(suite).to_bytes())

        nonce = oracle.resumable_nonce(parsed, DEK, 0, plaintext_of(5), final=True)

        assert resumed_object(suite, 5)[HEADER_SIZE:] == documented
        assert documented[: suite.nonce_size] == nonce

    @each_staged
    def test_what_is_staged_is_opened_by_both(self, case: Row) -> None:
        suite, documented = suite_of(case), bytes.fromhex(case["staged"])
        kind, offset, seq, epoch = (int(case[name]) for name in ("kind", "offset", "seq", "epoch"))
        digests = DIGEST_5 + CRC_5.to_bytes(4, "big")

        ours = Staging(DEK, header_of(suite)).open(Kind(kind), Place(offset, seq, epoch), documented)
        parsed = oracle.parse_header(header_of(suite).to_bytes())
        theirs = oracle.open_staged(documented, parsed, DEK, kind, offset, seq, epoch)

        assert ours == theirs == {1: plaintext_of(5), 4: digests}[kind]

    def test_kinds_are_the_vaults_and_their_columns_the_tables(self) -> None:
        columns = {row["where"] for row in KINDS[1:]}

        assert [int(row["kind"]) for row in KINDS] == list(Kind)
        assert columns == {"sealed_state", "sealed_part_state", "sealed_final"}
        assert columns <= set(ResumableUpload.__table__.columns.keys())
        assert f"Running digests are {STATE_SIZE} bytes" in section("Staging")

    @each_digest
    def test_sealed_digest_is_opened_by_both(self, case: Row) -> None:
        keys, documented = keys_of(suite_of(case)), bytes.fromhex(case["sealed_digest"])
        digests = DIGEST_5 if case["form"] == "first" else DIGEST_5 + CRC_5.to_bytes(4, "big")

        ours = open_digest(keys, documented, SealedFor(OBJECT_ID, entry_of(case), OWNER_ID), allows_first_form=True)
        theirs = oracle.open_digest(documented, keys.metadata, (OBJECT_ID, entry_of(case), OWNER_ID))

        assert oracle.digests_of(plaintext_of(5)) == DIGEST_5 + CRC_5.to_bytes(4, "big")
        assert ours == ContentDigest(DIGEST_5, CRC_5 if case["form"] == "second" else None)
        assert theirs == digests

    @each_suite
    def test_sealed_digest_of_the_second_form_is_what_the_vault_seals(self, suite: Suite) -> None:
        bound_to = SealedFor(OBJECT_ID, ENTRY_ID, OWNER_ID)

        sealed = seal_digest(keys_of(suite), DIGEST_5, CRC_5, bound_to, nonce=DIGEST_NONCE)

        documented = {case["form"]: case["sealed_digest"] for case in DIGESTS if suite_of(case) is suite}
        assert documented.keys() == {"first", "second"}
        assert sealed.hex() == documented["second"]

    @each_suite
    def test_sealed_digest_of_the_first_form_is_refused_where_the_row_is_not_the_file(self, suite: Suite) -> None:
        (case,) = (case for case in DIGESTS if suite_of(case) is suite and case["form"] == "first")
        stored, documented = document_object(suite, 5), bytes.fromhex(case["sealed_digest"])

        with pytest.raises(AuthenticationFailed):
            open_digest(keys_of(suite), documented, SealedFor(OBJECT_ID, ROW_ID, OWNER_ID), allows_first_form=False)
        with pytest.raises(ValueError, match="first form"):
            oracle.read_file(replace(row_of(case), entry_id=ENTRY_ID), stored, [WRAPPED["MASTER_KEY"]])

    def test_wrapped_data_key_is_unwrapped_by_both(self) -> None:
        master, key_ref, blob = (WRAPPED[name] for name in ("MASTER_KEY", "key_ref", "encrypted_data_key"))
        ring = KeyRing({"local": LocalKeyProvider([master])}, primary="local")

        ours = ring.unwrap(WrappedKey(WRAPPED["key_provider"], key_ref, blob), OBJECT_ID)
        theirs = oracle.unwrap_local(blob, key_ref, [master])

        assert ours == theirs == DEK
        assert ring.primary.current_ref() == key_ref

    @each_digest
    def test_the_documents_row_opens_the_documents_object(self, case: Row) -> None:
        stored, row = document_object(suite_of(case), 5), row_of(case)

        assert oracle.read_file(row, stored, [WRAPPED["MASTER_KEY"]]) == plaintext_of(5)

    def test_eax_answer_is_given_by_the_definition_by_the_vault_and_by_pycryptodome(self) -> None:
        theirs = AES.new(DEK, AES.MODE_EAX, nonce=EAX["nonce"], mac_len=16).update(EAX["aad"])

        omac = [
            CMAC.new(DEK, bytes(15) + bytes([t]) + EAX[message], ciphermod=AES).digest()
            for t, message in enumerate(["nonce", "aad", "ciphertext"])
        ]
        counters = b"".join(((int.from_bytes(omac[0], "big") + j) % 2**128).to_bytes(16, "big") for j in range(2))
        keystream = AES.new(DEK, AES.MODE_ECB).encrypt(counters)

        assert omac == [EAX["OMAC_0(nonce)"], EAX["OMAC_1(aad)"], EAX["OMAC_2(ciphertext)"]]
        assert bytes(p ^ k for p, k in zip(EAX["plaintext"], keystream, strict=False)) == EAX["ciphertext"]
        assert bytes(a ^ b ^ c for a, b, c in zip(*omac, strict=True)) == EAX["tag"]
        assert Eax(DEK).seal(EAX["nonce"], EAX["plaintext"], EAX["aad"]) == EAX["ciphertext"] + EAX["tag"]
        assert theirs.encrypt_and_digest(EAX["plaintext"]) == (EAX["ciphertext"], EAX["tag"])


def test_kms_is_asked_with_the_documents_encryption_context() -> None:
    arn, blob = "arn:aws:kms:eu-central-1:123456789012:key/abc", b"a blob"
    provider = KmsKeyProvider(KmsOptions(arn, "eu-central-1", access=AwsAccess("none", "none")))
    context = json.loads(re.findall(r"```json\n(.*?)```", section("aws-kms"), re.DOTALL)[0])

    with Stubber(provider.client) as stubbed:
        stubbed.add_response(
            "decrypt",
            {"KeyId": arn, "Plaintext": DEK},
            {"KeyId": arn, "CiphertextBlob": blob, "EncryptionContext": context},
        )
        dek = provider.unwrap(blob, arn, OBJECT_ID)

    assert dek == DEK
