"""gunicorn's logger without clients' texts."""

import logging
from typing import Any

from gunicorn.glogging import Logger


class QuietLogger(Logger):  # type: ignore[misc]
    """Logs through this service's handlers. Messages keep their template; request lines and queries stay out."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.setLevel(logging.INFO)
        # gunicorn logs before the application sets up logging, in Python's default format.
        self.error_log.propagate = True

    def warning(self, msg: object, *args: Any, **kwargs: Any) -> None:
        if str(msg).startswith("Invalid request"):
            self.error_log.warning("Invalid request")
        else:
            self.error_log.warning(msg, *args, **kwargs)

    def exception(self, msg: object, *_: Any, **__: Any) -> None:
        # The text of another object, such as an error, may hold what a client sent.
        template = msg if isinstance(msg, str) else type(msg).__name__
        self.error_log.error(template.partition("%")[0].strip(), exc_info=True)
