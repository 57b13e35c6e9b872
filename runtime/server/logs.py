"""What the server says of itself as JSON: an object for each event, with the id of the request it belongs to."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""The id of the request that is under way."""

_FIELDS = ("method", "path", "status", "seconds")
_LIBRARIES = ("phi3_onnx", "uvicorn", "asyncio")


class JsonLines(logging.Formatter):
    """Formats a record as one JSON object: `time` (UTC), `level`, `logger`, `message`, and `request_id` and more."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if number := REQUEST_ID.get():
            entry["request_id"] = number
        entry |= {name: value for name in _FIELDS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def log_in_json(*, debug: bool) -> None:
    """Send the server's log to stderr as JSON lines, those of requests included.

    Args:
        debug: whether to log each step, too.

    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in _LIBRARIES:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        if logger.level == logging.NOTSET:  # `--quiet` has set another
            logger.setLevel(logging.DEBUG if debug else logging.INFO)
