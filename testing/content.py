"""Contents of files, forms that carry them, and where the segments of their objects end."""

from collections.abc import Sequence

MIB = 1024 * 1024
HEADER = 96
SEGMENT = 262_144
# Plaintext bytes of a full segment, per cipher.
CAPACITY = {"AES-256-EAX": SEGMENT - 32, "AES-256-GCM": SEGMENT - 28}
FORM = "multipart/form-data; boundary=edge"
CLOSE = b"--edge--\r\n"
TEXT = ("Content-Type: text/plain",)


def pattern(size: int) -> bytes:
    """Return bytes that differ from segment to segment."""
    return (b"".join(i.to_bytes(4, "big") for i in range(16384)) * (size // 65536 + 1))[:size]


def flipped(content: bytes, position: int, mask: int = 1) -> bytes:
    position %= len(content)
    return content[:position] + bytes([content[position] ^ mask]) + content[position + 1 :]


def part(
    content: bytes = b"hello", *, name: str = "file", filename: bytes | None = b"notes.txt", lines: Sequence[str] = TEXT
) -> bytes:
    """Return one part of a form, as browsers write it, without the closing delimiter."""
    head = f'--edge\r\nContent-Disposition: form-data; name="{name}"'.encode()
    head += b'; filename="' + filename + b'"' if filename is not None else b""
    return b"\r\n".join([head, *(line.encode() for line in lines), b"", content, b""])
