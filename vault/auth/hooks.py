"""What other features do with accounts, in the transaction that changes them."""

import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass

from sqlalchemy.orm import Session

Hook = Callable[[Session, Collection[uuid.UUID]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """Functions by event, in the order of their calls. An account's own row is locked before."""

    on_registered: tuple[Hook, ...] = ()
    on_enabled: tuple[Hook, ...] = ()
    on_disabled: tuple[Hook, ...] = ()
    on_swept: tuple[Hook, ...] = ()
    on_erased: tuple[Hook, ...] = ()


def call(hooks: tuple[Hook, ...], session: Session, *user_ids: uuid.UUID) -> None:
    """Call an event's functions for these accounts."""
    for hook in hooks:
        hook(session, user_ids)
