"""The units of deploy/systemd start what the compose file starts, and systemd understands them."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from testing import compose
from testing.services import program
from testing.stack import BIN
from vault.settings.config import ROOT

UNITS = ROOT / "deploy/systemd"
INSTALLED = "/opt/secure-vault"


def directives(path: Path) -> dict[str, str]:
    lines = (line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#"))
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


@pytest.mark.parametrize("service", ["api", "mail", "maintenance", "beat"])
def test_a_unit_starts_what_the_compose_file_starts(service: str) -> None:
    secrets = dict.fromkeys(("POSTGRES_PASSWORD", "REDIS_PASSWORD", "MINIO_ROOT_PASSWORD"), "made")
    command = compose.load(secrets)["services"][service]["command"]
    # In a container the API listens at an address of the container's own.
    wanted = [word for word in command if word not in ("--bind", "0.0.0.0:8000")]

    started = directives(UNITS / f"secure-vault-{service}.service")["ExecStart"].replace("%%", "%")

    assert shlex.split(started) == [f"{INSTALLED}/.venv/bin/{wanted[0]}", *wanted[1:]]


def test_every_unit_is_restricted() -> None:
    restrictions = directives(UNITS / "secure-vault-.service.d/restrictions.conf")

    assert restrictions["User"] == "vault"
    assert restrictions["CapabilityBoundingSet"] == ""
    assert restrictions["ProtectSystem"] == "strict"
    assert {restrictions[name] for name in ("NoNewPrivileges", "ProtectHome", "PrivateTmp")} == {"true"}
    # The prefix of the drop-in's folder decides what it applies to.
    assert [path.name for path in UNITS.glob("*.service") if not path.name.startswith("secure-vault-")] == []


def test_systemd_understands_the_units(tmp_path: Path) -> None:
    analyze = program("systemd-analyze", package="systemd")
    units = tmp_path / "units"
    shutil.copytree(UNITS, units)
    for path in (*units.glob("*.service"), *units.glob("*/*.conf")):
        # Programs have to exist.
        text = path.read_text().replace(f"{INSTALLED}/.venv/bin", str(BIN)).replace(INSTALLED, str(ROOT))
        path.write_text(text)
    unknown = units / "secure-vault-mail.service"

    def verified() -> subprocess.CompletedProcess[str]:
        command = [analyze, "verify", *map(str, sorted(units.glob("*.service")))]
        # The folder before those of the machine.
        environ = {"SYSTEMD_UNIT_PATH": f"{units}:"}
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    done = verified()
    unknown.write_text(unknown.read_text().replace("[Service]", "[Service]\nNoSuchDirective=1"))
    refused = verified()

    assert (done.returncode, done.stderr) == (0, "")
    assert "NoSuchDirective" in refused.stderr
