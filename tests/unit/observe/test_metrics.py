import re
from pathlib import Path
from uuid import uuid4

from testing.settings import make_settings
from vault.observe.metrics import REGISTRY
from vault.settings.config import ROOT
from vault.wiring import wire

# A closed list: what a label may be about. None of it is a person, a file, an address or an id.
LABELS = {"route", "method", "status", "code", "direction", "operation", "provider", "outcome", "result", "reason"}
LABELS |= {"kind", "task", "le"}
# The exporter asks the database for these.
ASKED = {"vault_mail_jobs", "vault_mail_oldest_due_seconds", "vault_uploads_open", "vault_uploads_parked_bytes"}


def test_every_metric_is_explained_and_has_a_row_in_the_handbook() -> None:
    text = (ROOT / "docs" / "operate" / "monitoring.md").read_text()
    rows = set(re.findall(r"^\| `(vault_\w+)` \|", text, re.MULTILINE))
    families = list(REGISTRY.collect())

    names = {family.name + ("_total" if family.type == "counter" else "") for family in families}

    assert names | ASKED == rows
    assert all(family.documentation for family in families)


def test_labels_are_of_the_closed_list() -> None:
    used = {label for family in REGISTRY.collect() for sample in family.samples for label in sample.labels}

    assert used <= LABELS


def test_counters_of_alarms_are_exported_before_they_grow() -> None:
    told = {(sample.name, *sample.labels.values()) for family in REGISTRY.collect() for sample in family.samples}

    assert ("vault_integrity_failures_total",) in told
    assert {("vault_login_failures_total", "delayed"), ("vault_reaper_rows_total", "failed")} <= told


def test_lookups_in_the_cache_are_hits_or_misses(tmp_path: Path) -> None:
    def counts() -> list[float]:
        values = (REGISTRY.get_sample_value("vault_dek_cache_lookups_total", {"result": r}) for r in ("hit", "miss"))
        return [value or 0.0 for value in values]

    container, object_id = wire(make_settings(tmp_path)), uuid4()
    _, wrapped = container.keys.ring.generate(object_id)
    hits, misses = counts()

    for _ in range(3):
        container.objects.reader._keys.unwrap(wrapped, object_id)

    assert counts() == [hits + 2, misses + 1]
