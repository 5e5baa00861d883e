"""gunicorn's logger, kept from writing what clients sent."""

import logging
from typing import Any

from gunicorn.glogging import Logger


class QuietLogger(Logger):  # type: ignore[misc]
    """Logs through this service's own handlers. Messages keep their template; request lines and queries stay out."""

    def setup(self, cfg: Any) -> None:
        self.cfg = cfg
        self.error_log.setLevel(logging.INFO)
        # gunicorn talks before the application has set up logging; then this format is Python's default.
        self.error_log.propagate = True

    def warning(self, msg: object, *args: Any, **kwargs: Any) -> None:
        if str(msg).startswith("Invalid request"):
            self.error_log.warning("Invalid request")
        else:
            self.error_log.warning(msg, *args, **kwargs)

    def exception(self, msg: object, *_: Any, **__: Any) -> None:
        # Of an object that is no text, such as an error, the text may hold what a client sent.
        template = msg if isinstance(msg, str) else type(msg).__name__
        self.error_log.error(template.partition("%")[0].strip(), exc_info=True)
