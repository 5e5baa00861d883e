"""All metrics, for Prometheus. No label holds a user, file, address or id. Wiring gives counters to lower layers."""

from functools import partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY: Final = CollectorRegistry()
_counter: Final = partial(Counter, registry=REGISTRY)

REQUESTS: Final = _counter(
    "vault_http_requests",
    "Requests answered, by the pattern of their route; - for those that fit none",
    ["route", "method", "status"],
)
REQUEST_SECONDS: Final = Histogram(
    "vault_http_request_seconds",
    "Duration of requests until the last byte of the answer; status is a class, such as 2xx",
    ["route", "method", "status"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60),
    registry=REGISTRY,
)
PROBLEMS: Final = _counter("vault_problems", "Requests refused or failed, by problem code", ["code"])
TRANSFERS: Final = Gauge(
    "vault_transfers_in_progress",
    "Uploads (in) and downloads (out) that are running",
    ["direction"],
    multiprocess_mode="livesum",
    registry=REGISTRY,
)
CONTENT_BYTES: Final = _counter(
    "vault_content_bytes",
    "Plaintext bytes of files received (in) and handed out (out), of broken transfers as well",
    ["direction"],
)
SEGMENTS: Final = _counter("vault_segments", "Segments sealed and opened", ["operation"])
INTEGRITY_FAILURES: Final = _counter(
    "vault_integrity_failures", "Times that a stored object or its key was found damaged"
)
KEY_SECONDS: Final = Histogram(
    "vault_key_operation_seconds",
    "Calls of key providers; outcome is ok or the problem's code",
    ["provider", "operation", "outcome"],
    buckets=(0.001, 0.005, 0.025, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
    registry=REGISTRY,
)
DEK_CACHE: Final = _counter("vault_dek_cache_lookups", "Data keys looked up in the cache for a read", ["result"])
LOGIN_FAILURES: Final = _counter("vault_login_failures", "Refused logins", ["reason"])
MAIL_ATTEMPTS: Final = _counter(
    "vault_mail_attempts", "Attempts to deliver a mail; void ones were wanted no more", ["kind", "outcome"]
)
UPLOADS_RESUMED: Final = _counter("vault_uploads_resumed", "Requests that went on with an unfinished resumable upload")
UPLOADS_EXPIRED: Final = _counter("vault_uploads_expired", "Unfinished resumable uploads that ended by their time")
REAPED: Final = _counter(
    "vault_reaper_rows",
    "Abandoned uploads ended (expired), shredded files gone (removed) or kept for the next pass (failed)",
    ["result"],
)
TASK_MESSAGES: Final = _counter(
    "vault_task_messages",
    "Messages for background work; skipped shortly after one that failed. No work is lost by those that were not sent",
    ["task", "outcome"],
)

# Exported as 0 from the start: otherwise the first event would not count as an increase.
for _metric, _values in (
    (TRANSFERS, ("in", "out")),
    (CONTENT_BYTES, ("in", "out")),
    (SEGMENTS, ("sealed", "opened")),
    (DEK_CACHE, ("hit", "miss")),
    (LOGIN_FAILURES, ("unknown", "password", "delayed", "disabled", "unverified", "changed")),
    (REAPED, ("expired", "removed", "failed")),
):
    for _value in _values:
        _metric.labels(_value)
