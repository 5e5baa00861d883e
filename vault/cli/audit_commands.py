"""`flask audit`: what an operator decides about deletion by age."""

import click

from vault.audit.models import Action
from vault.cli.base import Commands, confirm, container, operator

audit = Commands("audit", help="The audit log, and everything else that is deleted when it is too old.")


@audit.command("accept-clock")
@click.option("--yes", is_flag=True, help="Do not ask.")
def accept_clock(yes: bool) -> None:
    """Take the database's clock for right, when passes refuse to delete by it.

    They do when it is more than two weeks ahead of the last pass: since it is wrong, or since nothing ran for so long.
    """
    vault = container()
    reading = vault.deletion_clock.reading()
    if reading.last is None or reading.is_plausible:
        click.echo(f"There is nothing to accept: the clock, {reading.now:%Y-%m-%d %H:%M} UTC, is plausible.")
        return
    click.echo(
        f"The database's clock says {reading.now:%Y-%m-%d %H:%M} UTC. The last pass was made at"
        f" {reading.last:%Y-%m-%d %H:%M} UTC, {(reading.now - reading.last).days} days before that."
    )
    confirm("Is that the time? Passes then delete for ever whatever is too old by it.", yes=yes)
    with vault.sessions.begin() as session:
        now, last = reading.now.isoformat(), reading.last.isoformat()
        vault.audit.record(session, operator(), Action.CLOCK_ACCEPTED, now=now, last_pass=last)
    vault.deletion_clock.accept(reading)
    click.echo("Accepted. The next passes delete what is too old.")
