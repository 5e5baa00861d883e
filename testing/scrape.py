"""Numbers from /metrics."""

from collections import Counter
from collections.abc import Mapping

import requests
from prometheus_client.parser import text_string_to_metric_families

# A sample: its name and its labels.
Sample = tuple[str, frozenset[tuple[str, str]]]


def sample(name: str, **labels: object) -> Sample:
    return name, frozenset((label, str(value)) for label, value in labels.items())


def scrape(bind: str, *, ports_on: int = 0) -> Counter[Sample]:
    """Return all samples of a process at METRICS_BIND, or `ports_on` ports further on."""
    host, _, port = bind.rpartition(":")
    answer = requests.get(f"http://{host}:{int(port) + ports_on}/metrics", timeout=120)
    assert answer.status_code == 200, answer.text
    families = text_string_to_metric_families(answer.text)
    return Counter({sample(s.name, **s.labels): s.value for family in families for s in family.samples})


def increase(before: Mapping[Sample, float], after: Mapping[Sample, float], *names: str) -> dict[Sample, float]:
    """Return how much the samples of these names have grown, without unchanged ones."""
    grown = {key: value - before.get(key, 0) for key, value in after.items() if key[0] in names}
    return {key: value for key, value in grown.items() if value}
