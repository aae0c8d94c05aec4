"""The state machine with a job that makes its own claim, is refused pods by a quota, and is deleted after its end."""

from spot_training.control.apply import RefusedError
from tests.unit.control.machine import FencedMachine, Machine, happens
from tests.unit.control.objects import Json
from tests.unit.control.operated import Operated

CLAIM = "job-checkpoint"
TTL_SECONDS = 50
RETAIN = {1: "Never", 2: "OnFailure", 3: "Always"}
"""By the size of the gang: a walk has one."""


class OwnerMachine(Machine):
    """One job, in a namespace with a quota for pods that comes and goes."""

    def job(self, replicas: int) -> Json:
        job = super().job(replicas)
        template = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        job["spec"]["checkpoint"] |= {"claimTemplate": template, "retain": RETAIN[replicas]}
        del job["spec"]["checkpoint"]["claimName"]
        job["spec"]["ttlSecondsAfterFinished"] = TTL_SECONDS
        return job

    def begin(self, replicas: int) -> None:
        self.claims_taken = 0
        super().begin(replicas)

    def reconcile(self, operator: Operated | None = None) -> None:
        try:
            super().reconcile(operator)
        except AssertionError as error:
            # That a pod is refused is told by an error, and the dispatcher tries again.
            if not isinstance(error.__cause__, RefusedError):
                raise

    @happens(pods=[None, None, 0, 1, 2])
    def the_quota_becomes(self, pods: int | None) -> None:
        self.sim.quota = pods

    @happens()
    def somebody_deletes_the_claim(self) -> None:
        """Which Kubernetes does once no pod uses it any more."""
        used = any(pod["status"]["phase"] in ("Pending", "Running") for pod in self.sim.pods.values())
        if CLAIM in self.sim.claims and not used:
            self.claims_taken += 1
            self.sim.delete_claim(CLAIM)

    def pods_start(self) -> None:
        """Which no scheduler lets them while their claim is not there."""
        if CLAIM in self.sim.claims:
            super().pods_start()

    def the_user_suspends(self, suspend: bool) -> None:
        if not self.sim.gone:
            super().the_user_suspends(suspend)

    def what_must_always_hold(self) -> None:
        super().what_must_always_hold()
        made = self.sim.created.count(CLAIM)
        assert made <= 1 + self.claims_taken, f"{made} claims were made, {self.claims_taken} taken away"
        for name, claim in self.sim.claims.items():
            owners = [each["uid"] for each in claim["metadata"].get("ownerReferences") or ()]
            assert set(owners) <= {"j-1"}, f"{name} belongs to {owners}"

    def heal(self) -> None:
        """The job comes to its end; what it leaves behind is what `retain` says."""
        self.sim.quota = None
        if not self.sim.gone:
            super().heal()
        there = CLAIM in self.sim.claims
        for _ in range(4):
            self.sim.now += TTL_SECONDS
            self.watch_and_look()
        assert self.sim.gone, f"it is still there: {self.status}"
        kept = {"Never": False, "Always": True, "OnFailure": self.status.phase == "Failed"}[self.retain]
        assert (CLAIM in self.sim.claims) == (there and kept), f"{self.retain}: {self.sim.claims}"

    @property
    def retain(self) -> str:
        """What becomes of the claim."""
        return RETAIN[self.replicas]


class FencedOwnerMachine(OwnerMachine, FencedMachine):
    """The same, with a program whose attempts are fenced."""
