"""The whole loop before your eyes: `python -m tests.kit.demo` on an installed test cluster (`make demo` does all).

Trains a real torch model twice, once undisturbed and once with its node really taken away in the middle, and the
same with a gang of two. It ends with a timeline of what happened, and exits non-zero unless every claim holds:
the job succeeded on another node, nothing was counted as the program's failure, no step was lost, and the final
weights are bit for bit those of the undisturbed run.
"""

import sys
import time
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.kit import jobs
from tests.kit.guest_agent import control
from tests.kit.kube import kubectl
from tests.kit.shell import say

Json = dict[str, Any]

STEPS = 150
SAVE_EVERY = 40
NOTICE_SECONDS = 20


@dataclass
class Act:
    """One story: a job that is interrupted, and what must hold of it in the end."""

    title: str
    name: str
    calm: str
    replicas: int
    gpus: int
    pools: list[str]
    failed: list[str] = field(default_factory=list)
    left: str = ""
    deadline: float = 0.0

    def claim(self, holds: bool, what: str) -> None:
        """Print whether a claim holds, and remember if not."""
        say(f"   {'ok  ' if holds else 'FAIL'} {what}")
        if not holds:
            self.failed.append(what)


def play(act: Act) -> list[str]:
    """Run both jobs of an act; returns the claims that do not hold."""
    say(f"\n=== {act.title}")
    _train(act.calm, act, undisturbed=True)
    calm = jobs.wait_finished(act.calm)
    say(f"   undisturbed run: {calm['phase']}, weights {weights(calm)[:16]}…")
    jobs.remove(act.calm)

    _train(act.name, act, undisturbed=False)
    jobs.wait_running(act.name)
    jobs.wait_trained(act.name, 1, STEPS // 3)
    act.left = jobs.node_of(act.name, 1, act.replicas - 1)
    say(f"   taking away {act.left}, where rank {act.replicas - 1} trains, in {NOTICE_SECONDS} s")
    act.deadline = control.reclaim(act.left, NOTICE_SECONDS, kill=True).timestamp()
    state = jobs.wait_for(
        act.name, "recovered", lambda s: s["current"]["attempt"] > 1 and s["phase"] != "Recovering"
    )
    say(kubectl("get", "spottrainingjobs", act.name).rstrip())
    state = jobs.wait_finished(act.name)
    while time.time() < act.deadline + 1:
        time.sleep(0.2)
    say(kubectl("get", "spottrainingjobs", act.name).rstrip() + "\n")
    tell(act, state)
    judge(act, state, calm)
    control.restore(act.left)
    return act.failed


def _train(name: str, act: Act, *, undisturbed: bool) -> None:
    pace = 0.0 if undisturbed else 0.15
    jobs.remove(name)
    jobs.fresh_claim(name)
    jobs.start(
        jobs.torch_job(
            name,
            pools=act.pools,
            steps=STEPS,
            seconds_per_step=pace,
            save_every=SAVE_EVERY,
            replicas=act.replicas,
            gpus=act.gpus,
        )
    )


def tell(act: Act, state: Json) -> None:
    """Print the timeline, in seconds after the notice."""
    story = state["timeline"][0]
    begin = seconds(story["noticedAt"])
    ranks = ", ".join(
        f"{act.name}-2-{index} on {jobs.node_of(act.name, 2, index)}" for index in range(act.replicas)
    )
    rows: list[tuple[float, str]] = [
        (begin, f"notice on {story['node']}: the machine goes in {seconds(story['deadline']) - begin:.0f} s"),
        (seconds(story["cordonedAt"]), "node marked and cordoned"),
        (seconds(story["stoppedAt"]), f"attempt 1 told to stop ({act.replicas} pods)"),
        (seconds(story["savedAt"]), f"saved at step {story['savedStep']}"),
        (seconds(story["recreatedAt"]), f"pods recreated: {ranks} (pool {story['recreatedPool']})"),
        (seconds(story["resumedAt"]), f"containers started; resumed at step {story.get('resumedStep')}"),
        (act.deadline, f"node {act.left} gone"),
        (seconds(state["completionTime"]), f"finished at step {state['step']}"),
    ]
    say("   seconds  what")
    for at, what in sorted(rows, key=lambda row: row[0]):
        say(f"   {at - begin:7.2f}  {what}")
    say(f"   steps lost: {story['reachedStep'] - story['resumedStep']}\n")


def judge(act: Act, state: Json, calm: Json) -> None:
    """Check everything that the story claims."""
    story = state["timeline"][0]
    nodes = {jobs.node_of(act.name, 2, index) for index in range(act.replicas)}
    act.claim(calm["phase"] == "Succeeded" and state["phase"] == "Succeeded", "both runs succeeded")
    act.claim(state["disruptions"] == 1, f"one disruption counted ({state['disruptions']})")
    act.claim(state["failures"] == 0, f"no failure counted ({state['failures']})")
    act.claim(act.left not in nodes, f"attempt 2 ran elsewhere: {', '.join(sorted(nodes))}")
    act.claim(
        seconds(story["endedAt"]) < act.deadline, "everything was saved and stopped before the deadline"
    )
    act.claim(
        0 < story["savedStep"] == story["reachedStep"] == story["resumedStep"],
        f"no step lost: saved {story['savedStep']}, reached {story['reachedStep']}, resumed {story['resumedStep']}",
    )
    act.claim(state["step"] == calm["step"] == STEPS, f"finished at step {state['step']}")
    same = weights(state) != "" and weights(state) == weights(calm)
    act.claim(same, f"final weights bit for bit those of the undisturbed run ({weights(state)[:16]}…)")


def weights(state: Json) -> str:
    """The SHA-256 of the final weights, which the program reports."""
    return str((state.get("extras") or {}).get("digest") or "")


def seconds(text: str) -> float:
    """Seconds since the epoch of a time in the status."""
    return datetime.fromisoformat(text).timestamp()


def main() -> int:
    """Play both acts."""
    acts = [
        Act("One GPU pod, its node reclaimed", "demo", "demo-calm", 1, 2, ["spot-a", "spot-b"]),
        Act("A gang of two over gloo, one of its nodes reclaimed", "gang", "gang-calm", 2, 3, ["spot-any"]),
    ]

    failed = [claim for act in acts for claim in play(act)]
    say("\nThe story of the first job, as users see it (kubectl describe stj demo):")
    say(kubectl("describe", "stj", "demo").split("Events:")[1].rstrip())
    if failed:
        say(f"\ndemo FAILED: {len(failed)} claims do not hold: {'; '.join(failed)}")
        return 1
    say("\ndemo passed: every claim holds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
