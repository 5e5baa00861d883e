"""Tolerance between clocks of machines. Leases use the database's clock (`vault.core.db.db_now`) and need none."""

from datetime import timedelta
from typing import Final

# Applies where another machine's time is compared with this clock. NTP keeps machines closer.
CLOCK_LEEWAY: Final = timedelta(seconds=10)
