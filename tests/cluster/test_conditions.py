"""A job that waits says why, what to do and when the next try is, counts nothing, and goes on by itself once mended.

No story here needs a spot node: pools match no node, or the one on-demand node that the tests call spot. All jobs
are made at once and then looked at one by one, so that their waits overlap.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.cluster.objects import Json, apply, changed, job, kubectl, pool
from tests.kit import jobs
from tests.kit.kube import get
from tests.kit.shell import together, wait_until

TEMPLATE: Final = "spec.template.spec"
CAPACITY_NEXT: Final = "next try when a pool, a node or a pod changes"
CLAIM_NEXT: Final = "next try when the claim changes"


def applied(*manifests: Json) -> None:
    for made in manifests:
        code, _, complaint = apply(made)
        assert code == 0, complaint


def patched(namespace: str, what: str, patch: Json) -> None:
    code, _, complaint = kubectl("-n", namespace, "patch", what, "--type=merge", "-p", json.dumps(patch))
    assert code == 0, complaint


def claim(namespace: str, name: str, mode: str = "ReadWriteMany", **metadata: Any) -> Json:
    """A claim that no volume will ever bind: pods that mount it are made, and wait."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": namespace, **metadata},
        "spec": {
            "accessModes": [mode],
            "storageClassName": "spot-training-none",
            "resources": {"requests": {"storage": "1Mi"}},
        },
    }


def quota(namespace: str, **hard: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "tight", "namespace": namespace},
        "spec": {"hard": {key.replace("_", "/"): value for key, value in hard.items()}},
    }


def status(namespace: str, name: str) -> Json:
    found: Json = get(f"stj/{name}", "-n", namespace)[0].get("status") or {}
    return found


def pods(namespace: str, name: str) -> list[Json]:
    return get("pods", "-n", namespace, "-l", f"spot.training/job={name}")


def events(namespace: str, name: str) -> list[Json]:
    return get("events", "-n", namespace, "--field-selector", f"involvedObject.name={name}")


def seen(namespace: str, name: str) -> str:
    parts = [json.dumps(status(namespace, name), indent=1)]
    parts += [kubectl("-n", namespace, "get", what)[1] for what in ("pods", "pvc", "events")]
    return "\n".join(parts)


def wait_for(namespace: str, name: str, what: str, happened: Callable[[], bool], timeout: float = 40) -> None:
    wait_until(f"{name}: {what}", happened, timeout=timeout, every=0.2, seen=lambda: seen(namespace, name))


def wait_reason(namespace: str, name: str, reason: str) -> Json:
    """Wait until the job does not run for that reason; returns the condition that says so."""
    wait_for(
        namespace,
        name,
        f"waits because of {reason}",
        lambda: jobs.condition(status(namespace, name), "Running").get("reason") == reason,
    )
    return jobs.condition(status(namespace, name), "Running")


def wait_opened(namespace: str, name: str) -> None:
    """Wait until the first attempt has all of its pods."""
    wait_for(
        namespace,
        name,
        "attempt 1 has its pods",
        lambda: len(pods(namespace, name)) == get(f"stj/{name}", "-n", namespace)[0]["spec"]["replicas"],
    )


@dataclass(frozen=True)
class Place:
    """Where the stories happen: `names` are unique beginnings of cluster-wide names."""

    names: str
    namespace: str

    @property
    def here(self) -> str:
        """A pool with a node."""
        return f"{self.names}-here"

    def pool(self, name: str, **spec: Any) -> Json:
        """A pool; with `here`, of the on-demand node, on which nobody else's training is."""
        if spec.pop("here", False):
            spec["nodeSelector"] = {"spot.training/capacity-type": "on-demand"}
        return pool(f"{self.names}-{name}", **spec)

    def job(self, name: str, **spec: Any) -> Json:
        """A job on the pool with a node and on a claim of its own name."""
        checkpoint = {"mountPath": "/mnt/checkpoint", "claimName": name}
        return job(name, self.namespace, **{"pools": [self.here], "checkpoint": checkpoint, **spec})

    def claim(self, name: str, *modes: str) -> Json:
        return claim(self.namespace, name, *modes)


@dataclass(frozen=True)
class Story:
    """What is made, why the job then waits, and what mends it."""

    name: str
    made: Callable[[Place], list[Json]]
    reason: str
    words: tuple[str, ...]
    mend: Callable[[Place], None]
    opens: bool = True


def _free_the_claim(place: Place) -> None:
    patched(place.namespace, "pvc/claim-deleting", {"metadata": {"finalizers": None}})
    wait_until(
        "the claim gone",
        lambda: kubectl("-n", place.namespace, "get", "pvc", "claim-deleting", "--ignore-not-found")[1] == "",
        timeout=30,
        seen=lambda: kubectl("-n", place.namespace, "get", "pvc", "claim-deleting", "-o", "yaml")[1],
    )
    wait_reason(place.namespace, "claim-deleting", "ClaimNotFound")
    applied(place.claim("claim-deleting"))


def _shrink(place: Place) -> None:
    patched(place.namespace, "stj/claim-not-shareable", {"spec": {"suspend": True, "replicas": 1}})
    wait_reason(place.namespace, "claim-not-shareable", "Suspended")
    patched(place.namespace, "stj/claim-not-shareable", {"spec": {"suspend": False}})


def _with(made: Json, **fields: Any) -> Json:
    """The job with further fields in its pod spec."""
    return changed(made, {f"{TEMPLATE}.{key}": value for key, value in fields.items()})


def _retemplate(name: str, **fields: Any) -> Callable[[Place], None]:
    return lambda place: applied(_with(place.job(name), **fields))


STORIES: Final = [
    Story(
        "pool-missing",
        lambda p: [p.claim("pool-missing"), p.job("pool-missing", pools=[f"{p.names}-later"])],
        "PoolNotFound",
        ("-later: no such SpotPool; create it or mend spec.pools", CAPACITY_NEXT),
        lambda p: applied(p.pool("later", here=True)),
    ),
    Story(
        "no-capacity",
        lambda p: [
            p.pool("empty"),
            p.claim("no-capacity"),
            p.job("no-capacity", pools=[f"{p.names}-empty", f"{p.names}-none"]),
        ],
        "NoCapacity",
        ("-empty: no node matches its nodeSelector", "-none: no such SpotPool", CAPACITY_NEXT),
        lambda p: applied(p.pool("empty", here=True)),
    ),
    Story(
        "no-room",
        lambda p: [
            p.claim("no-room"),
            changed(
                p.job("no-room"),
                {f"{TEMPLATE}.containers.0.resources": {"limits": {"nvidia.com/gpu": 5}}},
            ),
        ],
        "NoCapacity",
        ("1 pods of 5 nvidia.com/gpu do not fit", "free on 1 nodes, room for 0", CAPACITY_NEXT),
        lambda p: applied(p.job("no-room")),
    ),
    Story(
        "no-node-for-the-template",
        lambda p: [
            p.claim("no-node-for-the-template"),
            _with(p.job("no-node-for-the-template", pools=[]), nodeSelector={"spot.training/pool": "none"}),
        ],
        "NoCapacity",
        # No pool is named, so every spot pool is tried, and no on-demand one.
        ("spot-a: none of its 2 nodes", "template's nodeSelector", CAPACITY_NEXT),
        lambda p: applied(p.job("no-node-for-the-template")),
    ),
    Story(
        "on-demand",
        lambda p: [
            p.pool("paid", capacityType="OnDemand", here=True),
            p.claim("on-demand"),
            p.job("on-demand", pools=[f"{p.names}-paid"]),
        ],
        "OnDemandNotAllowed",
        ("-paid: on-demand, and onDemand.policy is Never", CAPACITY_NEXT),
        lambda p: patched(p.namespace, "stj/on-demand", {"spec": {"pools": [f"{p.names}-paid", p.here]}}),
    ),
    Story(
        "claim-missing",
        lambda p: [p.job("claim-missing")],
        "ClaimNotFound",
        ("create PersistentVolumeClaim claim-missing in namespace test-", CLAIM_NEXT),
        lambda p: applied(p.claim("claim-missing")),
    ),
    Story(
        "claim-deleting",
        lambda p: [
            claim(p.namespace, "claim-deleting", finalizers=["spot.training/test"]),
            p.job("claim-deleting", suspend=True),
        ],
        "ClaimDeleting",
        ("claim claim-deleting is being deleted; use another claim, or wait until it is gone", CLAIM_NEXT),
        _free_the_claim,
    ),
    Story(
        "claim-not-shareable",
        lambda p: [p.claim("claim-not-shareable", "ReadWriteOnce"), p.job("claim-not-shareable", replicas=2)],
        "ClaimNotShareable",
        ("is ReadWriteOnce, which 2 pods cannot share; use a ReadWriteMany claim, or replicas: 1", CLAIM_NEXT),
        _shrink,
    ),
    Story(
        "claim-in-use",
        lambda p: [
            p.claim("shared"),
            p.job("claim-user", checkpoint={"mountPath": "/mnt/checkpoint", "claimName": "shared"}),
            p.job(
                "claim-in-use",
                checkpoint={"mountPath": "/mnt/checkpoint", "claimName": "shared"},
                suspend=True,
            ),
        ],
        "ClaimInUse",
        ("claim shared is in use by job claim-user; one live job may use a claim", "next try when"),
        lambda p: (kubectl("-n", p.namespace, "delete", "stj", "claim-user"), None)[1],
    ),
    Story(
        "misspelt",
        lambda p: [
            p.claim("misspelt"),
            _with(p.job("misspelt"), tolerationz=[{"key": "a", "operator": "Exists"}]),
        ],
        "TemplateInvalid",
        ('strict decoding error: unknown field "spec.tolerationz"', "next try at 2"),
        _retemplate("misspelt", tolerations=[{"key": "a", "operator": "Exists"}]),
    ),
    Story(
        "mounted-twice",
        lambda p: [
            p.claim("mounted-twice"),
            changed(
                _with(p.job("mounted-twice"), volumes=[{"name": "own", "emptyDir": {}}]),
                {
                    f"{TEMPLATE}.containers.0.volumeMounts": [
                        {"name": "own", "mountPath": "/mnt/checkpoint"}
                    ]
                },
            ),
        ],
        "TemplateInvalid",
        ("spec.containers[0].volumeMounts[1].mountPath", "must be unique", "next try at 2"),
        _retemplate("mounted-twice", volumes=None),
    ),
]
"""In each, `mend` is what the message says."""


@pytest.fixture(scope="module")
def place(unique: str, namespace: str) -> Iterator[Place]:
    made = Place(unique, namespace)
    applied(made.pool("here", here=True))
    yield made
    kubectl("-n", namespace, "delete", "stj", "--all", "--wait=true")
    names = [each["metadata"]["name"] for each in get("spotpools")]
    kubectl("delete", "spotpool", "--ignore-not-found", *(name for name in names if name.startswith(unique)))


@pytest.fixture(scope="module")
def stories(place: Place) -> None:
    """All stories begun."""
    applied({"apiVersion": "v1", "kind": "List", "items": [each for s in STORIES for each in s.made(place)]})
    # Jobs that must come second: after a claim's deletion, and after another job's first attempt.
    kubectl("-n", place.namespace, "delete", "pvc", "claim-deleting", "--wait=false")
    wait_opened(place.namespace, "claim-user")
    for name in ("claim-deleting", "claim-in-use"):
        wait_reason(place.namespace, name, "Suspended")
        patched(place.namespace, f"stj/{name}", {"spec": {"suspend": False}})


@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.name)
def test_what_waits_says_why_and_goes_on_once_mended(stories: None, story: Story, place: Place) -> None:
    condition = wait_reason(place.namespace, story.name, story.reason)
    assert condition["status"] == "False"
    missing = [words for words in story.words if words not in condition["message"]]
    assert not missing, condition["message"]
    state = status(place.namespace, story.name)
    assert condition["observedGeneration"] == state["observedGeneration"]
    assert state["phase"] == "Pending"
    assert (state.get("failures", 0), state.get("disruptions", 0)) == (0, 0)
    assert "current" not in state
    assert pods(place.namespace, story.name) == []
    wait_for(
        place.namespace,
        story.name,
        f"an Event {story.reason}",
        lambda: any(
            each["reason"] == story.reason and each["type"] == "Warning"
            for each in events(place.namespace, story.name)
        ),
    )

    story.mend(place)
    wait_opened(place.namespace, story.name)
    state = status(place.namespace, story.name)
    assert (state["current"]["attempt"], state["failures"], state["disruptions"]) == (1, 0, 0)
