"""Wiring of key management."""

from dataclasses import dataclass

from vault.audit.service import AuditService
from vault.core.parts import Core
from vault.encryption.keyring import KeyRing
from vault.keys.reencrypting import Reencryptor
from vault.keys.rewrapping import Rewrapper
from vault.keys.usage import KeyUsage
from vault.keys.verifying import Verifier
from vault.objects.build import Objects
from vault.observe.processes import Processes


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    ring: KeyRing
    usage: KeyUsage
    rewrapper: Rewrapper
    verifier: Verifier
    reencryptor: Reencryptor


def build(core: Core, ring: KeyRing, objects: Objects, processes: Processes, audit: AuditService) -> Keys:
    """Build what counts, moves, checks and replaces the keys of objects."""
    usage = KeyUsage(core, ring, processes=processes, audit=audit)
    return Keys(
        ring=ring,
        usage=usage,
        rewrapper=Rewrapper(core, keys=ring, usage=usage, audit=audit),
        verifier=Verifier(core, reader=objects.reader, integrity=objects.integrity, keys=ring),
        reencryptor=Reencryptor(core, objects=objects, keys=ring, usage=usage, audit=audit),
    )
