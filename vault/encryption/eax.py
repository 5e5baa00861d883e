"""AES-EAX of OpenSSL's AES-CTR and CMAC (Bellare, Rogaway, Wagner 2004, "The EAX Mode of Operation"). pycryptodome's
EAX has a third of the speed; it is the oracle in `check_known_answer`."""

import hmac
from typing import Final, TypeAlias

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.cmac import CMAC

from vault.encryption.errors import AuthenticationFailed

Buffer: TypeAlias = bytes | bytearray | memoryview

TAG_SIZE: Final = 16


class Eax:
    """AES-EAX with 16-byte tags under one key of 16, 24 or 32 bytes. Thread-safe."""

    tag_size = TAG_SIZE

    def __init__(self, key: bytes) -> None:
        self._aes = algorithms.AES(key)
        self._omac = tuple(self._prefixed(t) for t in range(3))

    def seal_into(self, nonce: Buffer, plaintext: Buffer, aad: Buffer, out: memoryview) -> None:
        """Write ciphertext || tag into out, whose length is len(plaintext) + 16."""
        if len(out) != len(plaintext) + TAG_SIZE:
            raise ValueError("out must hold the ciphertext and its tag, no more and no less")
        counter = self._mac(0, nonce)
        ciphertext = out[: len(plaintext)]
        Cipher(self._aes, modes.CTR(counter)).encryptor().update_into(plaintext, ciphertext)
        out[len(plaintext) :] = self._tag(counter, aad, ciphertext)

    def seal(self, nonce: Buffer, plaintext: Buffer, aad: Buffer) -> bytes:
        """Return ciphertext || tag."""
        out = bytearray(len(plaintext) + TAG_SIZE)
        self.seal_into(nonce, plaintext, aad, memoryview(out))
        return bytes(out)

    def open(self, nonce: Buffer, sealed: Buffer, aad: Buffer) -> bytes:
        """Return the plaintext of ciphertext || tag. Raises AuthenticationFailed before decrypting."""
        counter, ciphertext = self._authenticated(nonce, sealed, aad)
        return Cipher(self._aes, modes.CTR(counter)).decryptor().update(ciphertext)

    def open_into(self, nonce: Buffer, sealed: Buffer, aad: Buffer, out: memoryview) -> None:
        """Write the plaintext into out, whose length is len(sealed) - 16. Raises as `open`."""
        counter, ciphertext = self._authenticated(nonce, sealed, aad)
        if len(out) != len(ciphertext):
            raise ValueError("out must hold the plaintext, no more and no less")
        Cipher(self._aes, modes.CTR(counter)).decryptor().update_into(ciphertext, out)

    def _authenticated(self, nonce: Buffer, sealed: Buffer, aad: Buffer) -> tuple[bytes, memoryview]:
        if len(sealed) < TAG_SIZE:
            raise AuthenticationFailed
        view = memoryview(sealed)
        ciphertext, tag = view[:-TAG_SIZE], view[-TAG_SIZE:]
        counter = self._mac(0, nonce)
        if not hmac.compare_digest(self._tag(counter, aad, ciphertext), tag):
            raise AuthenticationFailed
        return counter, ciphertext

    def _prefixed(self, t: int) -> CMAC:
        # OMAC_t(M) is CMAC over the block [t] || M; the block is absorbed once per key.
        mac = CMAC(self._aes)
        mac.update(bytes(15) + bytes([t]))
        return mac

    def _mac(self, t: int, message: Buffer) -> bytes:
        mac = self._omac[t].copy()
        mac.update(message)  # type: ignore[arg-type]  # any buffer will do; the stub says bytes
        return mac.finalize()

    def _tag(self, counter: bytes, aad: Buffer, ciphertext: Buffer) -> bytes:
        folded = (
            int.from_bytes(counter, "big")
            ^ int.from_bytes(self._mac(1, aad), "big")
            ^ int.from_bytes(self._mac(2, ciphertext), "big")
        )
        return folded.to_bytes(TAG_SIZE, "big")


def check_known_answer() -> None:
    """Compare one message, sealed here and by pycryptodome, with the pinned answer. Raises RuntimeError. A process
    calls it once at its start, so that a replaced library seals nothing."""
    from Crypto.Cipher import AES  # nosec B413  # PyCryptodome, which is kept up; pyCrypto had the same name

    key, nonce, aad = bytes(range(32)), bytes([0xA0] * 16), b"SVS1" + bytes(12)
    plaintext = bytes((7 * j + 1) & 0xFF for j in range(100))
    ours = Eax(key).seal(nonce, plaintext, aad)

    oracle = AES.new(key, AES.MODE_EAX, nonce=nonce, mac_len=TAG_SIZE).update(aad)
    theirs = b"".join(oracle.encrypt_and_digest(plaintext))

    pinned = bytes.fromhex("40e0101084e2a85f776da81026bd3f9a")
    if ours != theirs or ours[-TAG_SIZE:] != pinned or Eax(key).open(nonce, ours, aad) != plaintext:
        raise RuntimeError("AES-EAX gives wrong bytes on this machine; refusing to start")
