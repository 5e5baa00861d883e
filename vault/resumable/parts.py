"""The offsets of an upload's parts, in bytes of plaintext."""

from dataclasses import dataclass

from vault.encryption.header import HEADER_SIZE, Header


@dataclass(frozen=True, slots=True)
class PartPlan:
    """`segments` whole segments fill a part, each with `capacity` bytes of plaintext; part 0 also holds the header."""

    segments: int
    capacity: int

    @classmethod
    def of(cls, header: Header, part_size: int) -> "PartPlan":
        """Return the plan for parts of `part_size` bytes of ciphertext."""
        return cls(part_size >> header.lg, (1 << header.lg) - header.suite.overhead)

    def index_at(self, offset: int) -> int:
        """Return the part, counted from 0, that the byte at this offset goes to."""
        return (offset + HEADER_SIZE) // (self.segments * self.capacity) if offset else 0

    def room_in(self, index: int) -> int:
        """Return how many bytes fill a part."""
        return self.segments * self.capacity - (0 if index else HEADER_SIZE)
