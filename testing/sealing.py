"""An object sealed from one stream, as a POST seals it."""

import os
from collections.abc import Callable, Iterator

from vault.encryption.segments import ContentKey, NonceSource, Read, Sealer


def seal_stream(
    key: ContentKey, read: Read, next_buffer: Callable[[], memoryview], *, nonces: NonceSource = os.urandom
) -> Iterator[tuple[memoryview, int]]:
    """Seal everything that read gives; yield each filled part with its length in bytes."""
    sealer = Sealer(key, next_buffer, nonces=nonces)
    yield from sealer.seal(read)
    yield from sealer.finish()
