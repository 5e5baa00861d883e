"""Gauges that the database knows, made at each scrape. All processes report the same."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol, TypeAlias

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

Ask: TypeAlias = Callable[[], Iterable[Metric]]


class Backlog(Protocol):
    """Number of mails by state, and seconds that the oldest sendable mail has been due."""

    @property
    def counts(self) -> Mapping[str, int]: ...

    @property
    def oldest_due_seconds(self) -> float: ...


class Parked(Protocol):
    """Unfinished resumable uploads, and the bytes that they have received."""

    @property
    def uploads(self) -> int: ...

    @property
    def bytes(self) -> int: ...


def of_mail(ask: Callable[[], Backlog]) -> Ask:
    """Return what tells of the outbox."""

    def tell() -> Iterator[Metric]:
        backlog = ask()
        jobs = GaugeMetricFamily("vault_mail_jobs", "Mails by state, as the database has them", labels=["state"])
        for state, count in backlog.counts.items():
            jobs.add_metric([state], count)
        yield jobs
        yield GaugeMetricFamily(
            "vault_mail_oldest_due_seconds",
            "For how long the mail that has been due for longest is due; 0 if none is",
            value=backlog.oldest_due_seconds,
        )

    return tell


def of_uploads(ask: Callable[[], Parked]) -> Ask:
    """Return what tells of resumable uploads."""

    def tell() -> Iterator[Metric]:
        parked = ask()
        yield GaugeMetricFamily("vault_uploads_open", "Unfinished resumable uploads", value=parked.uploads)
        yield GaugeMetricFamily(
            "vault_uploads_parked_bytes", "Plaintext bytes that unfinished uploads have received", value=parked.bytes
        )

    return tell
