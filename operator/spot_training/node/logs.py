"""One JSON object a line on standard output, for machines to read."""

import json
import logging
import sys
from typing import Any

from spot_training.api.times import format_time


class JsonFormatter(logging.Formatter):
    """``time``, ``level``, ``message``, then what was given with :func:`fields`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line: dict[str, Any] = {
            "time": format_time(record.created),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= record.__dict__.get("spot_fields", {})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def fields(**values: object) -> dict[str, dict[str, object]]:
    """For a logging call's ``extra``: values that become keys of the line. ``notice`` is the notice's id."""
    return {"spot_fields": values}


def to_stdout(level: str) -> None:
    """Send this program's log lines to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
