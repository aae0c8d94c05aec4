"""JSON merge patches (RFC 7396): what to send so that one document becomes another. Pure."""

from collections.abc import Mapping
from typing import Any


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The patch that turns ``before`` into ``after``; lists are replaced whole, fields that went become null."""
    made: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = merge_patch(old, value)
            if inner:
                made[key] = inner
        elif key not in before or old != value:
            made[key] = value
    return made
