"""What a status write is counted as: a table, and the whole planner's writes against the status's own counters."""

from collections import Counter
from typing import Any

import pytest

from spot_training.api.status import SpotTrainingJobStatus
from spot_training.control.observations import (
    Counted,
    FellBack,
    Observation,
    Opened,
    Recovered,
    observations,
)
from tests.unit.control.build import Scene, reclaim, spec, written
from tests.unit.control.objects import Json


def at(seconds: int) -> str:
    return f"2026-04-08T05:{seconds // 60:02}:{seconds % 60:02}Z"


def current(attempt: int, pool: str = "a", **fields: Any) -> Json:
    return {"attempt": attempt, "pool": pool, "openedAt": at(0), **fields}


def entry(attempt: int, reason: str = "Reclaimed", pool: str = "a", **fields: Any) -> Json:
    return {"attempt": attempt, "reason": reason, "pool": pool, "stoppedAt": at(10), **fields}


def end(cls: str, reason: str) -> Json:
    return {"end": {"class": cls, "reason": reason, "at": at(20)}}


def held(changed: int) -> list[Json]:
    made = {
        "type": "Suspended",
        "status": "False",
        "reason": "Running",
        "observedGeneration": 1,
        "message": "",
    }
    return [made | {"lastTransitionTime": at(changed)}]


TABLE: dict[str, tuple[Json, Json, list[Observation]]] = {
    "nothing yet": ({}, {}, []),
    "waits": ({}, {"phase": "Pending", "ready": "0/2"}, []),
    "the first attempt opens": ({}, {"current": current(1)}, [Opened("a")]),
    "an attempt opens on demand": (
        {},
        {"current": current(1, "b", terms={"capacityType": "OnDemand"})},
        [Opened("b"), FellBack("b")],
    ),
    "it goes on there": (
        {"current": current(1, "b", terms={"capacityType": "OnDemand"})},
        {"current": current(1, "b", terms={"capacityType": "OnDemand"}, startedAt=at(3))},
        [],
    ),
    "some of its ranks are on demand: no fallback": (
        {},
        {
            "current": current(
                1,
                terms={"capacityType": "Spot"},
                onDemand={"ranks": [0], "pool": "b", "terms": {"capacityType": "OnDemand"}},
            )
        },
        [Opened("a")],
    ),
    "it starts": ({"current": current(1)}, {"current": current(1, startedAt=at(3))}, []),
    "the first time that it runs is no recovery": (
        {"current": current(1)},
        {"current": current(1, runningAt=at(3))},
        [],
    ),
    "it is stopped: not counted yet": (
        {"current": current(1)},
        {"current": current(1), "timeline": [entry(1)]},
        [],
    ),
    "it ends, disrupted": (
        {"current": current(1), "timeline": [entry(1)]},
        {"current": current(1, **end("Disruption", "Reclaimed")), "timeline": [entry(1)], "disruptions": 1},
        [Counted("Disruption", "Reclaimed", "a")],
    ),
    "it ends, and the same write opens the next one elsewhere": (
        {"current": current(1), "timeline": [entry(1)]},
        {"current": current(2, "b"), "timeline": [entry(1)], "disruptions": 1},
        [Counted("Disruption", "Reclaimed", "a"), Opened("b")],
    ),
    "it fails": (
        {"current": current(1), "failures": 1, "timeline": [entry(1, "OOMKilled")]},
        {
            "current": current(1, **end("Failure", "OOMKilled")),
            "failures": 2,
            "timeline": [entry(1, "OOMKilled")],
        },
        [Counted("Failure", "OOMKilled", "a")],
    ),
    "a failure's reason does not pass for a disruption's": (
        {"current": current(1)},
        {"current": current(1), "disruptions": 1, "timeline": [entry(1, "OOMKilled")]},
        [Counted("Disruption", "Other", "a")],
    ),
    "a word that a runtime made up": (
        {"current": current(1)},
        {"current": current(1), "failures": 1, "timeline": [entry(1, "job-7 on node-12")]},
        [Counted("Failure", "Other", "a")],
    ),
    "no reason is left": (
        {"current": current(1)},
        {"current": current(2), "disruptions": 1},
        [Counted("Disruption", "Other", "a"), Opened("a")],
    ),
    "it gives its pods back": (
        {"current": current(1)},
        {"current": current(1, **end("NotStarted", "ProvisionTimeout"))},
        [Counted("NotStarted", "ProvisionTimeout", "a")],
    ),
    "and the same write opens the next one": (
        {"current": current(1, stop={"cause": "NodeLeft", "class": "NotStarted", "at": at(9)})},
        {"current": current(2, "b")},
        [Counted("NotStarted", "NodeLeft", "a"), Opened("b")],
    ),
    "it has ended long ago": (
        {"current": current(1, **end("NotStarted", "StartError"))},
        {"current": current(2)},
        [Opened("a")],
    ),
    "a new word for not starting": (
        {"current": current(1)},
        {"current": current(1, **end("NotStarted", "job-7 on node-12"))},
        [Counted("NotStarted", "Other", "a")],
    ),
    "it is suspended": (
        {"current": current(1)},
        {"current": current(1, **end("Suspended", "Suspended"))},
        [],
    ),
    "the next one runs": (
        {"current": current(2, "b"), "timeline": [entry(1)]},
        {"current": current(2, "b", runningAt=at(52)), "timeline": [entry(1, resumedAt=at(52))]},
        [Recovered("a", 42.0)],
    ),
    "and is not counted twice": (
        {"current": current(2), "timeline": [entry(1, resumedAt=at(52))]},
        {"current": current(2), "timeline": [entry(1, resumedAt=at(52), resumedStep=7)]},
        [],
    ),
    "nor when it runs again after a suspension": (
        {"current": current(3), "timeline": [entry(1, resumedAt=at(52))]},
        {"current": current(3), "timeline": [entry(1, resumedAt=at(90))]},
        [],
    ),
    "a kubelet's second that began before the stop": (
        {"current": current(2), "timeline": [entry(1, stoppedAt="2026-04-08T05:00:10.900Z")]},
        {
            "current": current(2),
            "timeline": [entry(1, stoppedAt="2026-04-08T05:00:10.900Z", resumedAt=at(10))],
        },
        [Recovered("a", 0.0)],
    ),
    "the user held it back meanwhile": (
        {"current": current(2), "timeline": [entry(1)], "conditions": held(30)},
        {"current": current(2), "timeline": [entry(1, resumedAt=at(52))], "conditions": held(30)},
        [],
    ),
    "the user had held it back before": (
        {"current": current(2), "timeline": [entry(1)], "conditions": held(5)},
        {"current": current(2), "timeline": [entry(1, resumedAt=at(52))], "conditions": held(5)},
        [Recovered("a", 42.0)],
    ),
}


@pytest.mark.parametrize("row", TABLE)
def test_what_a_write_is_counted_as(row: str) -> None:
    before, after, expected = TABLE[row]
    read = SpotTrainingJobStatus.model_validate
    assert observations(read(before), read(after)) == expected
    assert observations(read(after), read(after)) == [], "the same again is nothing"


class Counting(Scene):
    """A scene in which every status write is observed."""

    observed: list[Observation]

    def step(self, after: float = 0.0) -> list[Any]:
        before = self.status
        made = super().step(after)
        self.__dict__.setdefault("observed", []).extend(observations(before, self.status))
        assert written(self.status) == self.status
        return made


def gone(scene: Counting) -> None:
    scene.remove(0)


def marked(scene: Counting) -> None:
    scene.mark("a1", reclaim())


def failed(scene: Counting) -> None:
    scene.exit(1)


def killed(scene: Counting) -> None:
    scene.exit(137, exit=None)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (gone, Counted("Disruption", "PodDeleted", "a")),
        (marked, Counted("Disruption", "Reclaimed", "a")),
        (failed, Counted("Failure", "ExitCode", "a")),
        (killed, Counted("Failure", "PodFailed", "a")),
    ],
)
def test_from_the_first_attempt_to_the_recovery(what: Any, expected: Counted) -> None:
    scene = Counting(spec())
    scene.started()
    what(scene)
    scene.run(1.0)
    stopped = scene.now
    if scene.current.attempt == 1 and not scene.pod().ended:
        scene.exit(143)
    while scene.current.attempt == 1:
        assert scene.now < stopped + 60, scene.status
        scene.run(5.0)
    scene.change(started_at=scene.now, running=True, phase="Running")
    scene.run()
    counts = Counter(type(each).__name__ for each in scene.observed)
    assert counts == {"Opened": 2, "Counted": 1, "Recovered": 1}, scene.observed
    assert expected in scene.observed
    (recovered,) = (each for each in scene.observed if isinstance(each, Recovered))
    assert recovered.seconds == pytest.approx(scene.now - stopped, abs=0.01)
    assert scene.counts == ((1, 0) if expected.cls == "Disruption" else (0, 1))
