"""A gang of a thousand pods, the most that a job may have, on simulated nodes: made, running, stopped and gone."""

import json
from collections.abc import Iterator

import pytest

from tests.cluster.objects import changed, job, kubectl, pool
from tests.cluster.scene import Place, applied, pods, status
from tests.kit import kwok, volumes
from tests.kit.shell import wait_until

RANKS = 1000
NODES = 10
LABEL = "test.example.com/thousand"


@pytest.fixture
def thousand(place: Place) -> Iterator[str]:
    """The name of a pool of ten nodes with room for a hundred ranks each."""
    names = [f"{place.names}-{number}" for number in range(NODES)]
    made = [kwok.node(name, {LABEL: place.names}, gpus=RANKS // NODES) for name in names]
    for each in made:
        # What a rank asks for by default must not be what the nodes lack.
        for room in ("allocatable", "capacity"):
            each["status"][room] |= {"cpu": "200", "pods": "200"}
    with kwok.running():
        try:
            code, _, complaint = kubectl(
                *("create", "-f", "-"), stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": made})
            )
            assert code == 0, complaint
            tolerations = [{"key": kwok.TAINT, "operator": "Exists"}]
            name = f"{place.names}-thousand"
            applied(pool(name, nodeSelector={LABEL: place.names}, tolerations=tolerations))
            yield name
        finally:
            kubectl("delete", "node", *names, "--ignore-not-found")


def test_a_gang_of_a_thousand_runs_stops_and_leaves_nothing(thousand: str, place: Place) -> None:
    volume = f"{place.names}-thousand"
    volumes.make_volume(volume, "1Mi", claim=(place.namespace, "thousand"))
    try:
        volumes.make_claim(place.namespace, "thousand", volume, "1Mi")
        checkpoint = {"mountPath": "/mnt/checkpoint", "claimName": "thousand"}
        made = job("thousand", place.namespace, replicas=RANKS, pools=[thousand], checkpoint=checkpoint)
        limits = {"spec.template.spec.containers.0.resources": {"limits": {"nvidia.com/gpu": 1}}}
        applied(changed(made, limits))

        def state() -> tuple[str | None, str | None]:
            found = status(place.namespace, "thousand")
            return found.get("phase"), found.get("ready")

        def tell() -> str:
            found = status(place.namespace, "thousand")
            told = {key: found.get(key) for key in ("phase", "ready", "conditions")}
            there = [
                (each["metadata"], each["status"].get("phase")) for each in pods(place.namespace, "thousand")
            ]
            those = [
                f"{meta['name']} {phase} {meta.get('deletionTimestamp', '')}" for meta, phase in there[:5]
            ]
            return json.dumps({**told, f"of {len(there)} pods": those}, indent=1)

        wait_until(
            "all ranks running",
            lambda: state() == ("Running", f"{RANKS}/{RANKS}"),
            timeout=240,
            every=1,
            seen=tell,
        )
        found = status(place.namespace, "thousand")
        assert len(found["current"]["nodes"]) == RANKS
        assert {each["name"] for each in found["current"]["nodes"]} == {
            f"{place.names}-{number}" for number in range(NODES)
        }
        assert found["current"]["attempt"] == 1, "they were whole at the first attempt"
        made_pods = pods(place.namespace, "thousand")
        assert {each["metadata"]["name"] for each in made_pods} == {
            f"thousand-1-{index}" for index in range(RANKS)
        }
        applied(changed(made, {**limits, "spec.suspend": True}))
        wait_until(
            "all stopped",
            lambda: state() == ("Suspended", f"0/{RANKS}") and not pods(place.namespace, "thousand"),
            timeout=240,
            every=1,
            seen=tell,
        )
        found = status(place.namespace, "thousand")
        assert found["current"]["end"]["class"] == "Suspended", tell()
        assert (found["disruptions"], found["failures"]) == (0, 0)
    finally:
        kubectl("-n", place.namespace, "delete", "stj", "thousand", "--ignore-not-found")
        kubectl("-n", place.namespace, "delete", "pvc", "thousand", "--wait=false")
        volumes.delete_volume(volume)
