"""What is told to people and programs outside the cluster, and in which form.

Pure. A webhook's body is a JSON document whose strings may name facts with a dollar sign (Python's
``string.Template``): ``{"text": "$text"}`` is what Slack and those compatible with it take. The strings are filled in
after the document was parsed, so that no fact, whatever it holds, can break the document's form.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from string import Template
from typing import Any, Final

from spot_training.api.times import format_time

DEFAULT_BODY: Final = '{"text": "$text"}'

FACTS: Final = (
    "cluster",
    "deadline",
    "kind",
    "node",
    "notice",
    "occasion",
    "pods_left",
    "seconds_left",
    "source",
    "text",
    "time",
)
"""The names that a body may use. All are text; what does not apply or is not known is empty."""


class Occasion(Enum):
    """Why something is told: a notice that empties the node, one that only warns, and how it ended."""

    NOTICE = "notice"
    WARNING = "warning"
    DRAINED = "drained"
    DEADLINE_PASSED = "deadline-passed"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Message:
    """One thing to tell: ``note`` is the sentence for people, ``deadline`` seconds since the epoch."""

    occasion: Occasion
    note: str
    notice: str
    kind: str
    source: str
    deadline: float | None = None
    pods_left: int | None = None


def facts(message: Message, node: str, cluster: str, now: float) -> dict[str, str]:
    """The facts by their names: times in RFC 3339, UTC; ``seconds_left`` whole, below 0 past the deadline."""
    where = f"Node {node}, cluster {cluster}" if cluster else f"Node {node}"
    deadline = message.deadline
    return {
        "cluster": cluster,
        "deadline": "" if deadline is None else format_time(deadline),
        "kind": message.kind,
        "node": node,
        "notice": message.notice,
        "occasion": message.occasion.value,
        "pods_left": "" if message.pods_left is None else str(message.pods_left),
        "seconds_left": "" if deadline is None else str(int(deadline - now)),
        "source": message.source,
        "text": f"{where}: {message.note} (notice {message.notice})",
        "time": format_time(now),
    }


def parse_body(text: str) -> Any:
    """The JSON document of a webhook's body, to be filled in by :func:`fill`.

    Raises ``ValueError`` with what to do about it for text that is no JSON object, for a dollar sign that begins
    no name, and for a name that is none of ``FACTS``.
    """
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the webhook's body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise ValueError('the webhook\'s body is not a JSON object such as {"text": "$text"}')
    _check(body, "body")
    return body


def fill(body: Any, given: Mapping[str, str]) -> Any:
    """The document with every name in its strings replaced by its fact; keys stay as they are."""
    match body:
        case str():
            return Template(body).substitute(given)
        case list():
            return [fill(each, given) for each in body]
        case dict():
            return {key: fill(value, given) for key, value in body.items()}
    return body


def _check(part: Any, where: str) -> None:
    match part:
        case str():
            template = Template(part)
            if not template.is_valid():
                raise ValueError(f"{where}: a $ in {part!r} begins no name; write $$ for the sign itself")
            if unknown := sorted(set(template.get_identifiers()) - set(FACTS)):
                raise ValueError(f"{where}: ${unknown[0]} is not known; known are {', '.join(FACTS)}")
        case list():
            for index, each in enumerate(part):
                _check(each, f"{where}[{index}]")
        case dict():
            for key, value in part.items():
                _check(value, f"{where}.{key}")
