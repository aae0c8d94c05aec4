"""The state machine with a second job that comes and goes: for the same claim, or for the same GPUs."""

from tests.unit.control.machine import YES_OR_NO, Machine, attempt_of, claim_of, happens
from tests.unit.control.objects import Json, raw_job
from tests.unit.control.operated import KEY, Key


class RivalMachine(Machine):
    """Each rival has a name of its own; it lives until it is deleted."""

    def begin(self, replicas: int) -> None:
        self.rivals = 0
        super().begin(replicas)

    @property
    def rival(self) -> Json | None:
        return next(iter(self.sim.others.values()), None)

    @property
    def keys(self) -> list[Key]:
        keys = [KEY, *(("ns", name) for name in self.sim.others)]
        return keys if self.sim.version % 2 else keys[::-1]

    @happens(shared=YES_OR_NO, gpus=[1, 4])
    def a_rival_comes(self, shared: bool, gpus: int) -> None:
        if self.rival is not None:
            return
        self.rivals += 1
        made = raw_job(f"rival{self.rivals}", f"r-{self.rivals}")
        made["metadata"]["creationTimestamp"] = "2030-03-17T17:46:40Z"
        made["spec"] |= {"replicas": 1, "recovery": {"maxFailures": 2, "retryableExitCodes": [42]}}
        made["spec"]["checkpoint"] |= {"writer": self.writer, "claimName": "claim" if shared else "other"}
        limits = {"limits": {"nvidia.com/gpu": gpus}}
        made["spec"]["template"]["spec"]["containers"][0]["resources"] = limits
        self.sim.add_job(made)

    @happens()
    def the_rival_is_deleted(self) -> None:
        if self.rival is not None:
            self.sim.delete_job(self.rival["metadata"]["name"])

    @happens(suspend=YES_OR_NO)
    def the_rival_is_suspended(self, suspend: bool) -> None:
        if self.rival is not None and bool(self.rival["spec"].get("suspend")) != suspend:
            self.sim.edit_job(self.rival["metadata"]["name"], suspend=suspend)

    @happens(name=("claim", "other"))
    def the_job_is_moved_to_a_claim(self, name: str) -> None:
        """Which may be done while it is suspended."""
        checkpoint = self.sim.job["spec"]["checkpoint"]
        if self.sim.job["spec"].get("suspend") and checkpoint["claimName"] != name:
            self.sim.edit_job(checkpoint={**checkpoint, "claimName": name})

    def former_leaders_wake_up(self, passes: int) -> None:
        """Not here: a write of one job's status guards nothing against one of another's. There only the Lease does."""

    def what_must_always_hold(self) -> None:
        super().what_must_always_hold()
        self.one_job_at_a_time_uses_the_claim()

    def one_job_at_a_time_uses_the_claim(self) -> None:
        """Of those that are there; what a deleted one's pods still write is the other invariant's matter."""
        users: dict[str, set[str]] = {}
        for pod in self.sim.pods.values():
            ended = pod["status"]["phase"] not in ("Pending", "Running")
            if not ended and "deletionTimestamp" not in pod["metadata"]:
                users.setdefault(claim_of(pod), set()).add(attempt_of(pod)[0])
        for claim, jobs in users.items():
            assert len(jobs) < 2, f"both use the claim {claim}: {sorted(jobs)}"

    def heal(self) -> None:
        self.the_rival_is_deleted()
        super().heal()


class FencedRivalMachine(RivalMachine):
    """The same, with programs whose attempts are fenced."""

    writer = "Library"
