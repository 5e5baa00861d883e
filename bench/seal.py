"""Sealing and opening a buffer in one process, in MB per CPU-second, beside OpenSSL alone on the same buffer.

OpenSSL alone is AES-256-CTR and CMAC for EAX, and AES-256-GCM: one context over the whole buffer, in pieces as large as
a segment, into memory that is there. The vault's own way adds a nonce, a tag and a check for each segment. In turn.
"""

import argparse
import os
import uuid
from collections.abc import Callable, Iterator
from time import process_time
from typing import Any, Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

from bench.charts import GOAL, OURS, PEER, Figure
from bench.measuring import MIB, Spread, progress, summary, table
from testing.sealing import seal_stream
from vault.encryption.header import HEADER_SIZE, Suite, create_keys, open_keys
from vault.encryption.segments import ContentKey, Geometry, open_stream

_GOAL: Final = 0.9
_PIECE: Final = 256 * 1024
_PART: Final = 8 * MIB
_SUITES: Final = {"EAX": Suite.AES_256_EAX, "GCM": Suite.AES_256_GCM}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=64, metavar="MIB", help="of the buffer, in MiB")
    parser.add_argument("--rounds", type=int, default=11, metavar="N")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    plaintext = os.urandom(MIB) * arguments.size
    results, lines = [], []
    for name, suite in _SUITES.items():
        progress(name)
        vault, openssl = _Vault(suite, plaintext), _OpenSsl(name, plaintext)
        pairs = {"seal": (vault.seal, openssl.seal), "open": (vault.open, openssl.open)}
        for what, (ours, theirs) in pairs.items():
            ours(), theirs()
            rates = [(_rate(ours, plaintext), _rate(theirs, plaintext)) for _ in range(arguments.rounds)]
            shares = Spread.of(mine / other for mine, other in rates)
            mine, other = (Spread.of(column) for column in zip(*rates, strict=True))
            lines.append([f"{what} {name}", mine, other, shares])
            results.append(
                {
                    "what": what,
                    "cipher": name,
                    "ours": vars(mine),
                    "openssl": vars(other),
                    "share": summary(mine / other for mine, other in rates),
                }
            )
    table(["", "vault, MB per CPU-s", "OpenSSL", "share"], lines)
    return {"size_mib": arguments.size, "goal": _GOAL, "results": results}


def draw(result: dict[str, Any], figure: Figure) -> None:
    axes = figure.subplots()
    rows = result["results"]
    for position, row in enumerate(rows):
        for offset, who, color in ((-0.2, "ours", OURS), (0.2, "openssl", PEER)):
            rate = row[who]
            bounds = [[rate["median"] - rate["min"]], [rate["max"] - rate["median"]]]
            axes.bar(position + offset, rate["median"], 0.38, color=color, yerr=bounds, ecolor="#333333")
        axes.plot([position - 0.4, position], [row["openssl"]["median"] * result["goal"]] * 2, color=GOAL, linewidth=2)
    axes.set_xticks(
        range(len(rows)), [f"{r['what']} {r['cipher']}\n{r['share']['median']:.0%} of OpenSSL" for r in rows]
    )
    axes.set_ylabel("MB per CPU-second, one thread (more is better)")
    least = min(row["share"]["median"] for row in rows)
    axes.set_title(f"Segments keep {least:.0%} or more of OpenSSL's own speed")
    handles = [axes.bar([0], [0], color=color) for color in (OURS, PEER)]
    (line,) = axes.plot([], [], color=GOAL, linewidth=2)
    axes.legend([*handles, line], ["Secure Vault's segments", "OpenSSL alone", f"goal: {result['goal']:.0%}"])


def _rate(act: Callable[[], object], plaintext: bytes) -> float:
    began = process_time()
    act()
    return len(plaintext) / 1e6 / (process_time() - began)


class _Vault:
    def __init__(self, suite: Suite, plaintext: bytes) -> None:
        dek, object_id = os.urandom(32), uuid.uuid4()
        header = create_keys(dek, suite, object_id)[0]
        self._key = ContentKey(open_keys(dek, header), header)
        self._plaintext = memoryview(plaintext)
        self._geometry = Geometry(suite, header.lg, len(plaintext))
        # A used buffer, as from the store's budget.
        self._part = memoryview(bytearray(_PART))
        self._sealed = b"".join(bytes(part[:length]) for part, length in self._parts())

    def seal(self) -> None:
        for _ in self._parts():
            pass

    def open(self) -> None:
        sealed, at = memoryview(self._sealed), HEADER_SIZE

        def read(length: int) -> Any:
            nonlocal at
            at += length
            return sealed[at - length : at]

        for _ in open_stream(self._key, self._geometry, read, 0, self._geometry.segments - 1):
            pass

    def _parts(self) -> Iterator[tuple[memoryview, int]]:
        at = 0

        def read(length: int) -> Any:
            nonlocal at
            at += length
            return self._plaintext[at - length : at]

        return seal_stream(self._key, read, lambda: self._part)


class _OpenSsl:
    def __init__(self, name: str, plaintext: bytes) -> None:
        self._is_eax = name == "EAX"
        self._aes = algorithms.AES(os.urandom(32))
        self._plaintext = memoryview(plaintext)
        self._part = bytearray(_PART + 16)

    def seal(self) -> None:
        mac = CMAC(self._aes)
        encryptor = Cipher(self._aes, modes.CTR(bytes(16)) if self._is_eax else modes.GCM(bytes(12))).encryptor()
        part = memoryview(self._part)
        for at in range(0, len(self._plaintext), _PIECE):
            # Into a part of that size, as the vault does; a single piece would stay in the core's cache.
            out = part[at % _PART : at % _PART + _PIECE + 16]
            count = encryptor.update_into(self._plaintext[at : at + _PIECE], out)
            if self._is_eax:
                mac.update(out[:count])
        encryptor.finalize()
        if self._is_eax:
            mac.finalize()

    def open(self) -> None:
        # Opens other bytes than were sealed: the work is the same, and no tag is compared.
        mac = CMAC(self._aes)
        decryptor = Cipher(self._aes, modes.CTR(bytes(16)) if self._is_eax else modes.GCM(bytes(12))).decryptor()
        out = memoryview(self._part)[: _PIECE + 16]
        for at in range(0, len(self._plaintext), _PIECE):
            piece = self._plaintext[at : at + _PIECE]
            if self._is_eax:
                mac.update(piece)
            decryptor.update_into(piece, out)
        if self._is_eax:
            decryptor.finalize()
            mac.finalize()
