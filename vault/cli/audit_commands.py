"""`flask audit`: accepts the clock for deletion by age."""

import click

from vault.audit.models import Action
from vault.cli.base import Commands, confirm, container, operator

audit = Commands("audit", help="The audit log, and deletion by age.")


@audit.command("accept-clock")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def accept_clock(yes: bool) -> None:
    """Accept the database's clock after deletion by age was refused.

    Deletion is refused when the clock is more than two weeks ahead of the last pass: the clock is wrong, or no pass ran
    for so long.
    """
    vault = container()
    reading = vault.core.deletion_clock.reading()
    if reading.last is None or reading.is_plausible:
        click.echo(f"There is nothing to accept: the clock, {reading.now:%Y-%m-%d %H:%M} UTC, is plausible.")
        return
    click.echo(
        f"The database's clock says {reading.now:%Y-%m-%d %H:%M} UTC. The last pass was made at"
        f" {reading.last:%Y-%m-%d %H:%M} UTC, {(reading.now - reading.last).days} days before that."
    )
    confirm("Is this time right? The next passes delete for ever everything that is too old by it.", yes=yes)
    with vault.core.sessions.begin() as session:
        now, last = reading.now.isoformat(), reading.last.isoformat()
        vault.audit.service.record(session, operator(), Action.CLOCK_ACCEPTED, now=now, last_pass=last)
    vault.core.deletion_clock.accept(reading)
    click.echo("Accepted. The next passes delete what is too old.")
