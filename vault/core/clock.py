"""What the clocks of several machines may differ by.

Leases and due times are compared with the database's clock (`vault.db.db_now`) and need no leeway.
"""

from datetime import timedelta
from typing import Final

# Wherever a time that another machine wrote is compared with this machine's clock. NTP keeps machines closer than that.
CLOCK_LEEWAY: Final = timedelta(seconds=10)
