"""The alerts of deploy/, as Prometheus evaluates them: each fires when it should, and is quiet otherwise."""

import subprocess
from pathlib import Path

import pytest
import yaml

from testing.services import program
from vault.settings.config import ROOT

RULES = ROOT / "deploy/prometheus/alerts.yml"
JOBS = ("api", "mail", "maintenance", "beat")
UP = {f'up{{job="{job}",instance="{job}:1"}}': "1x60" for job in JOBS}
BEAT = 'vault_task_messages_total{job="beat",outcome="sent",task="mail.requeue_due"}'
OLDEST = 'vault_mail_oldest_due_seconds{job="api"}'
DAMAGE = 'vault_integrity_failures_total{job="api"}'
FAILURES = 'vault_http_requests_total{job="api",status="500"}'
NOT_REMOVED = 'vault_reaper_rows_total{job="maintenance",result="failed"}'
KEYS = 'vault_key_operation_seconds_count{job="api",outcome="key_unavailable"}'
KEYS_OK = 'vault_key_operation_seconds_count{job="api",outcome="ok"}'
GUESSES = 'vault_login_failures_total{job="api",reason="password"}'
# An hour in which all is well, a sample a minute.
WELL = {
    **UP,
    BEAT: "0+6x60",
    OLDEST: "0x60",
    DAMAGE: "0x60",
    FAILURES: "0+1x60",
    NOT_REMOVED: "0x60",
    KEYS_OK: "0+100x60",
    GUESSES: "0+60x60",
}


def without(*series: str) -> dict[str, str]:
    """The series end half an hour before: what they were of is dead."""
    return {**WELL, **{name: WELL[name].replace("60", "30") + " _x30" for name in series}}


def never(*series: str) -> dict[str, str]:
    return {name: values for name, values in WELL.items() if name not in series}


def of(job: str) -> list[str]:
    return [series for series in WELL if f'job="{job}"' in series]


# The alerts that fire at the end of an hour like this.
CASES = [
    pytest.param(WELL, set(), id="all is well"),
    pytest.param({**WELL, BEAT: "0+6x30 180x30"}, {"VaultBeatStandsStill"}, id="beat answers and sends nothing"),
    pytest.param(without(*of("beat")), {"VaultBeatStandsStill", "VaultProcessDown"}, id="beat is dead"),
    pytest.param(never(*of("beat")), {"VaultBeatStandsStill", "VaultProcessDown"}, id="beat was never started"),
    pytest.param(without(*of("mail")), {"VaultProcessDown"}, id="the worker that mails is dead"),
    pytest.param(never(*of("maintenance")), {"VaultProcessDown"}, id="the other worker was never started"),
    pytest.param(without(*of("api")), {"VaultProcessDown", "VaultMailUnknown"}, id="the API is dead"),
    pytest.param(
        {**WELL, 'up{job="api",instance="api:2"}': "1x30 0x30"}, {"VaultProcessDown"}, id="one of two APIs is dead"
    ),
    pytest.param({**WELL, OLDEST: "0x30 0+60x30"}, {"VaultMailLate"}, id="mail waits"),
    pytest.param({**WELL, OLDEST: "0x50 0+20x10"}, set(), id="mail waits for three minutes"),
    pytest.param(without(OLDEST), {"VaultMailUnknown"}, id="the database does not answer"),
    pytest.param({**WELL, DAMAGE: "0x55 1x5"}, {"VaultDamage"}, id="damage"),
    pytest.param({**WELL, FAILURES: "0+60x60"}, {"VaultFails"}, id="a request a second fails"),
    pytest.param({**WELL, NOT_REMOVED: "0x40 3x20"}, {"VaultObjectsNotRemoved"}, id="an object is not removed"),
    pytest.param({**WELL, KEYS: "0x50 0+1x10"}, {"VaultKeysFail"}, id="a key fails"),
    pytest.param({**WELL, GUESSES: "0+600x60"}, {"VaultGuessing"}, id="ten wrong passwords a second"),
]


def alerts() -> set[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return {rule["alert"] for group in groups for rule in group["rules"]}


def test_every_alert_has_an_hour_in_which_it_fires() -> None:
    assert set().union(*(case.values[1] for case in CASES)) == alerts()  # type: ignore[arg-type]


@pytest.mark.parametrize(("series", "firing"), CASES)
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path, series: dict[str, str], firing: set[str]) -> None:
    promtool = program("promtool", package="prometheus")
    # Prometheus' own series of alerts, since promtool's check of an alert wants to know its labels.
    expressions = [
        {
            "expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) > bool 0 or vector(0)',
            "eval_time": "1h",
            "exp_samples": [{"labels": "{}", "value": int(name in firing)}],
        }
        for name in sorted(alerts())
    ]
    tests = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "promql_expr_test": expressions,
            }
        ],
    }
    (tmp_path / "tests.yml").write_text(yaml.safe_dump(tests))

    done = subprocess.run(
        [promtool, "test", "rules", tmp_path / "tests.yml"], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
