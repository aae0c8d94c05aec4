"""A job that waits says why, what to do and when the next try is, counts nothing, and goes on by itself once mended.

No story here needs a spot node: pools match no node, or the one on-demand node that the tests call spot. All jobs
are made at once and then looked at one by one, so that their waits overlap.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.cluster.objects import Json, changed, kubectl
from tests.cluster.scene import (
    Place,
    applied,
    claim,
    events,
    patched,
    pods,
    quota,
    status,
    wait_for,
    wait_opened,
    wait_reason,
)
from tests.kit import jobs, volumes
from tests.kit.kube import get
from tests.kit.shell import wait_until

TEMPLATE: Final = "spec.template.spec"
CAPACITY_NEXT: Final = "next try when a pool, a node or a pod changes"
CLAIM_NEXT: Final = "next try when the claim changes"


@dataclass(frozen=True)
class Story:
    """What is made, why the job then waits, and what mends it."""

    name: str
    made: Callable[[Place], list[Json]]
    reason: str
    words: tuple[str, ...]
    mend: Callable[[Place], None]


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


def _end_the_user(place: Place) -> None:
    code, _, complaint = kubectl("-n", place.namespace, "delete", "stj", "claim-user")
    assert code == 0, complaint


def _shrink(place: Place) -> None:
    patched(place.namespace, "stj/claim-not-shareable", {"spec": {"suspend": True, "replicas": 1}})
    wait_reason(place.namespace, "claim-not-shareable", "Suspended")
    patched(place.namespace, "stj/claim-not-shareable", {"spec": {"suspend": False}})


def _another_claim(place: Place) -> None:
    elsewhere = {"claimName": "volume-here"}
    applied(place.claim("volume-here"))
    patched(place.namespace, "stj/volume-elsewhere", {"spec": {"suspend": True, "checkpoint": elsewhere}})
    wait_reason(place.namespace, "volume-elsewhere", "Suspended")
    patched(place.namespace, "stj/volume-elsewhere", {"spec": {"suspend": False}})


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
        "GangTooLarge",
        ("1 pods of 5 nvidia.com/gpu do not fit", "free on 1 nodes, room for 0", CAPACITY_NEXT),
        lambda p: applied(p.job("no-room")),
    ),
    Story(
        "no-node-for-the-template",
        lambda p: [
            p.claim("no-node-for-the-template"),
            _with(p.job("no-node-for-the-template", pools=[]), nodeSelector={"disk": "none"}),
        ],
        "NoCapacity",
        # No pool is named, so every spot pool is tried, and no on-demand one.
        ("spot-a", "none of its 2 nodes", "template's nodeSelector", CAPACITY_NEXT),
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
        lambda p: [
            p.claim("claim-not-shareable", "ReadWriteOncePod"),
            p.job("claim-not-shareable", replicas=2),
        ],
        "ClaimNotShareable",
        (
            "is ReadWriteOncePod, which 2 pods cannot share; use a ReadWriteMany claim, or replicas: 1",
            "next try when the claim, a pool or a node changes",
        ),
        _shrink,
    ),
    Story(
        "too-large-for-one-node",
        lambda p: [
            p.claim("too-large-for-one-node", "ReadWriteOnce"),
            changed(
                p.job("too-large-for-one-node", replicas=2),
                {f"{TEMPLATE}.containers.0.resources": {"limits": {"nvidia.com/gpu": 1000}}},
            ),
        ],
        "ClaimNotShareable",
        (
            "so all 2 pods must be on one node",
            "use a ReadWriteMany claim, or fewer replicas",
        ),
        lambda p: applied(p.job("too-large-for-one-node", replicas=2)),
    ),
    Story(
        "volume-elsewhere",
        lambda p: [p.job("volume-elsewhere")],
        "NoCapacity",
        (
            "to none of its 1 usable nodes can the job's volumes be attached",
            "zone In [nowhere]",
            CAPACITY_NEXT,
        ),
        _another_claim,
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
        _end_the_user,
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
                {f"{TEMPLATE}.containers.0.volumeMounts": [{"name": "own", "mountPath": "/mnt/checkpoint"}]},
            ),
        ],
        "TemplateInvalid",
        ("spec.containers[0].volumeMounts[1].mountPath", "must be unique", "next try at 2"),
        _retemplate("mounted-twice", volumes=None),
    ),
]
"""In each, `mend` is what the message says."""


@pytest.fixture(scope="module")
def stories(place: Place) -> Iterator[None]:
    """All stories begun."""
    volume = f"{place.names}-elsewhere"
    volumes.make_volume(volume, "1Mi", claim=(place.namespace, "volume-elsewhere"), zone="nowhere")
    volumes.make_claim(place.namespace, "volume-elsewhere", volume, "1Mi")
    applied({"apiVersion": "v1", "kind": "List", "items": [each for s in STORIES for each in s.made(place)]})
    # Jobs that must come second: after a claim's deletion, and after another job's first attempt.
    kubectl("-n", place.namespace, "delete", "pvc", "claim-deleting", "--wait=false")
    wait_opened(place.namespace, "claim-user")
    for name in ("claim-deleting", "claim-in-use"):
        wait_reason(place.namespace, name, "Suspended")
        patched(place.namespace, f"stj/{name}", {"spec": {"suspend": False}})
    yield
    # Where its story has failed, the claim would keep the namespace for ever.
    patched(place.namespace, "pvc/claim-deleting", {"metadata": {"finalizers": None}})
    kubectl("-n", place.namespace, "delete", "pvc", "volume-elsewhere")
    volumes.delete_volume(volume)


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


@pytest.fixture(scope="module")
def tight(place: Place) -> Iterator[Place]:
    """A namespace with room for one pod and for no claim."""
    namespace = f"test-{secrets.token_hex(3)}"
    kubectl("create", "namespace", namespace)
    applied(claim(namespace, "one"), claim(namespace, "two"))
    applied(quota(namespace, count_pods="1", count_persistentvolumeclaims="2"))
    wait_until(
        "the quota in force",
        lambda: "used" in get("resourcequota/tight", "-n", namespace)[0].get("status", {}),
        timeout=30,
        seen=lambda: kubectl("-n", namespace, "get", "resourcequota", "-o", "yaml")[1],
    )
    yield Place(place.names, namespace)
    kubectl("delete", "namespace", namespace, "--wait=false")


def test_a_quota_that_refuses_pods_is_quoted_and_costs_nothing(tight: Place) -> None:
    applied(tight.job("one"))
    wait_opened(tight.namespace, "one")
    applied(tight.job("two"))
    condition = wait_reason(tight.namespace, "two", "PodsRefused")
    assert "exceeded quota: tight, requested: count/pods=1, used: count/pods=1" in condition["message"]
    assert "next try at 2" in condition["message"]
    wait_for(
        tight.namespace,
        "two",
        "an Event PodsRefused",
        lambda: "PodsRefused" in [each["reason"] for each in events(tight.namespace, "two")],
    )
    assert pods(tight.namespace, "two") == []

    kubectl("-n", tight.namespace, "delete", "stj", "one")
    wait_opened(tight.namespace, "two")
    state = status(tight.namespace, "two")
    assert (state["current"]["attempt"], state["failures"], state["disruptions"]) == (1, 0, 0)
    kubectl("-n", tight.namespace, "delete", "stj", "two")
    wait_until(
        "room for a pod",
        lambda: get("resourcequota/tight", "-n", tight.namespace)[0]["status"]["used"]["count/pods"] == "0",
        timeout=60,
        seen=lambda: kubectl("-n", tight.namespace, "get", "pods,resourcequota")[1],
    )


def test_a_quota_with_room_for_half_of_the_gang_is_quoted_too(tight: Place) -> None:
    applied(changed(tight.job("half", replicas=2), {"spec.checkpoint.claimName": "one"}))
    wait_for(
        tight.namespace,
        "half",
        "says that the quota refuses the rest of its pods",
        lambda: "exceeded quota: tight" in running(tight.namespace, "half").get("message", ""),
    )
    assert running(tight.namespace, "half")["status"] == "False"
    assert status(tight.namespace, "half")["failures"] == 0

    kubectl("-n", tight.namespace, "patch", "resourcequota", "tight", "--type=merge", "-p", ROOM)
    wait_opened(tight.namespace, "half")
    wait_for(
        tight.namespace,
        "half",
        "no word of the quota any more",
        lambda: "exceeded quota" not in running(tight.namespace, "half")["message"],
    )


ROOM: Final = '{"spec": {"hard": {"count/pods": "9", "count/persistentvolumeclaims": "9"}}}'


def test_a_claim_that_the_api_server_refuses_is_quoted_too(tight: Place) -> None:
    template = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "much"}}}
    checkpoint = {"mountPath": "/mnt/checkpoint", "claimTemplate": template}
    applied(tight.job("claimless", checkpoint=checkpoint))
    wait_for(
        tight.namespace,
        "claimless",
        "says that its claim is refused",
        lambda: "quantities must match" in running(tight.namespace, "claimless").get("message", ""),
    )
    assert running(tight.namespace, "claimless")["status"] == "False"


def running(namespace: str, name: str) -> Json:
    return jobs.condition(status(namespace, name), "Running")


def test_a_service_of_somebody_elses_is_waited_for_and_never_taken(place: Place) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taken", "namespace": place.namespace},
        "spec": {"clusterIP": "None", "ports": [{"port": 80}]},
    }
    applied(service, place.claim("taken"), place.job("taken", replicas=2))
    wait_for(
        place.namespace,
        "taken",
        "says whose name is taken",
        lambda: "the name of service taken is taken" in running(place.namespace, "taken").get("message", ""),
    )
    assert pods(place.namespace, "taken") == []
    kept = get("service/taken", "-n", place.namespace)[0]
    assert "ownerReferences" not in kept["metadata"]
    kubectl("-n", place.namespace, "delete", "service", "taken")
    wait_opened(place.namespace, "taken")


def test_a_job_keeps_its_claim_between_two_attempts_and_frees_it_as_it_goes(place: Place) -> None:
    volumes.make_volume(f"{place.names}-held", "1Mi", claim=(place.namespace, "held"))
    volumes.make_claim(place.namespace, "held", f"{place.names}-held", "1Mi")
    held = {"mountPath": "/mnt/checkpoint", "claimName": "held"}
    recovery = {"backoff": {"initialSeconds": 86400, "maxSeconds": 86400}}
    command = f"{TEMPLATE}.containers.0.command"
    applied(changed(place.job("holder", checkpoint=held, recovery=recovery), {command: ["false"]}))
    try:
        wait_reason(place.namespace, "holder", "BackOff")
        assert status(place.namespace, "holder")["failures"] == 1
        applied(changed(place.job("heir", checkpoint=held), {command: ["true"]}))
        condition = wait_reason(place.namespace, "heir", "ClaimInUse")
        assert "claim held is in use by job holder" in condition["message"]
        kubectl("-n", place.namespace, "delete", "stj", "holder")
        wait_opened(place.namespace, "heir")
    finally:
        kubectl("-n", place.namespace, "delete", "stj", "holder", "heir", "--ignore-not-found")
        kubectl("-n", place.namespace, "delete", "pvc", "held")
        volumes.delete_volume(f"{place.names}-held")
