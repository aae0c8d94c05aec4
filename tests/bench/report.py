"""What a benchmark measured: a table for people and ``build/bench/NAME.json`` for programs.

A row has the figure's ``name``, its ``value`` and ``unit``, the ``goal`` in words (``"<= 1.1"``), the ``baseline``
measured in the same run where there is one with the ``ratio`` to it, and of the trials behind it the number,
``min``, ``median`` and ``max``. Machines are noisy: a ratio says more than a time.
"""

import json
import operator
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

ROOT = Path(__file__).resolve().parents[2]

_MEANS: Final = {"<=": operator.le, ">=": operator.ge, "=": operator.eq, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. ``baseline`` is in the same unit; ``ratio`` is value over baseline."""

    name: str
    value: float
    unit: str
    goal: str | None = None
    baseline: float | None = None
    ratio: float | None = None
    trials: int = 1
    min: float | None = None
    median: float | None = None
    max: float | None = None

    @property
    def missed(self) -> bool:
        """Whether the value is not what the goal says. Raises ValueError where that is no comparison."""
        if self.goal is None:
            return False
        sign, _, bound = self.goal.partition(" ")
        if sign not in _MEANS:
            raise ValueError(
                f"{self.name} has the goal {self.goal!r}: begin it with one of {', '.join(_MEANS)}"
            )
        return not _MEANS[sign](self.value, float(bound))


class Report:
    """The rows of one benchmark, in the order in which they were measured."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: list[Row] = []
        self.notes: list[str] = []
        """What was seen where a figure is not what it should be; printed under the table, and not in the file."""

    def value(
        self, name: str, value: float, unit: str, goal: str | None = None, baseline: float | None = None
    ) -> None:
        """A figure that was measured or counted once."""
        self._add(Row(name, value, unit, goal, baseline, _ratio(value, baseline)))

    def trials(
        self,
        name: str,
        samples: Sequence[float],
        unit: str,
        goal: str | None = None,
        *,
        percentile: float = 50,
        baseline: float | None = None,
    ) -> None:
        """A figure from many trials: their median, or another percentile (0 to 100, by the nearest rank)."""
        if not samples:
            raise ValueError(f"{name}: no trial was measured")
        value = statistics.median(samples) if percentile == 50 else nearest_rank(samples, percentile)
        self._add(
            Row(
                name=name,
                value=value,
                unit=unit,
                goal=goal,
                baseline=baseline,
                ratio=_ratio(value, baseline),
                trials=len(samples),
                min=min(samples),
                median=statistics.median(samples),
                max=max(samples),
            )
        )

    def _add(self, row: Row) -> None:
        self.rows.append(row)
        # Some take the better part of an hour: what is known is said.
        print(f"    {row.name}: {_shown(row.value)} {row.unit}", flush=True)

    def note(self, text: str) -> None:
        """Something to be told besides the figures."""
        self.notes.append(text)
        print(f"    {text}", flush=True)

    def missed(self) -> list[str]:
        """A line for each goal that was missed."""
        return [f"{row.name} is {_shown(row.value)}, goal {row.goal}" for row in self.rows if row.missed]

    def finish(self, root: Path = ROOT) -> Path:
        """Print the table with the notes and write the file; where it is."""
        print("\n".join([self.table(), *self.notes]))
        path = root / "build" / "bench" / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps([asdict(row) for row in self.rows], indent=2) + "\n")
        return path

    def table(self) -> str:
        """The rows as text, one a line."""
        head = ("name", "value", "unit", "goal", "baseline", "ratio", "trials", "min", "median", "max")
        lines = [head, *(tuple(_shown(getattr(row, field)) for field in head) for row in self.rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


def nearest_rank(samples: Sequence[float], percentile: float) -> float:
    """The smallest sample that at least ``percentile`` % of the samples do not exceed."""
    ordered = sorted(samples)
    rank = -(-len(ordered) * percentile // 100)
    return ordered[max(0, int(rank) - 1)]


def _ratio(value: float, baseline: float | None) -> float | None:
    return value / baseline if baseline else None


def _shown(cell: str | float | None) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
