"""One pass against the simulated API server: what stale views and lost answers must not do."""

from collections.abc import Callable
from typing import Any, cast

import pytest

from spot_training.cluster.client import ApiError, Client
from spot_training.control.apply import Applier
from spot_training.control.cache import Cache
from spot_training.control.events import Announcer
from spot_training.control.metrics import Metrics
from spot_training.control.read import read_job
from spot_training.control.reconcile import Reconciler
from spot_training.control.world import Job, Refusal
from tests.unit.control.objects import Json, raw_job
from tests.unit.control.sim import Sim, refused

KEY = ("ns", "job")
OPENED = {"attempt": 1, "pool": "a", "openedAt": "2026-04-08T05:00:00Z"}
ACCEPTED = {
    "type": "TemplateInvalid",
    "status": "False",
    "reason": "Accepted",
    "message": "the API server accepts the pods",
    "lastTransitionTime": "2026-04-08T05:00:00Z",
    "observedGeneration": 2,
}


class Setting:
    """A cluster of two nodes and an operator whose cache holds what was there at first."""

    def __init__(self, **status: Any) -> None:
        pool = {
            "metadata": {"name": "a", "uid": "pool", "resourceVersion": "1", "generation": 1},
            "spec": {"nodeSelector": {"pool": "a"}},
        }
        self.sim = Sim(raw_job(**status), pool, ["a1", "a2"])
        self.cache = Cache()
        self.cache.pools.put(pool)
        for raw in self.sim.nodes.values():
            self.cache.nodes.put(raw)
        claim = {"metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "1"}}
        self.cache.claims.put(claim | {"spec": {"accessModes": ["ReadWriteMany"]}})
        self.client = cast(Client, self.sim)
        self.metrics = Metrics()
        self.looks: list[tuple[str, str]] = []
        self.changes: list[tuple[Job | None, Job | None]] = []
        self.see_job()
        self.reconciler = Reconciler(
            self.client,
            self.cache,
            Announcer(self.client, "test"),
            lambda before, after: self.changes.append((before, after)),
            self.metrics,
            lambda: self.sim.now,
            pod_changed=lambda _, after: self.looks.append((after.namespace, after.job)),
        )

    def see_job(self) -> None:
        self.cache.jobs.put(self.sim.job)

    def operator_sees(self) -> None:
        """What has gone."""
        for _, type_, raw in self.sim.watch:
            if type_ == "DELETED":
                self.cache.remove_pod(raw)
        self.sim.watch.clear()

    def answer(self, method: str, instead: Callable[..., Any]) -> None:
        """Let the server do something else first, or instead."""
        setattr(self.sim, method, instead)

    @property
    def attempt(self) -> int:
        current: Json = self.sim.job["status"].get("current") or {}
        return int(current.get("attempt", 0))


async def test_an_attempt_is_opened_and_its_pods_made_in_one_pass() -> None:
    setting = Setting()
    await setting.reconciler.reconcile(KEY)
    assert setting.attempt == 1
    assert (sorted(setting.sim.pods), setting.sim.services) == (["job-1-0", "job-1-1"], {"job"})
    assert await setting.reconciler.reconcile(KEY) is not None
    assert len(setting.sim.pods) == 2
    counted = setting.metrics.registry.get_sample_value
    assert counted("spot_operator_attempts_total", {"pool": "a"}) == 1, "counted at the write, and once"


@pytest.mark.parametrize("watch_is_first", [False, True])
async def test_what_an_answer_brought_is_looked_at_since_no_watch_will_tell_of_it(
    watch_is_first: bool,
) -> None:
    """Pods that a queue gates do not change for hours: nothing else would have the job looked at."""
    setting = Setting()
    create = setting.sim.create

    async def gated(path: str, body: Json, **query: str) -> Json:
        if path.endswith("/pods"):
            body["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
        raw = await create(path, body, **query)
        if path.endswith("/pods") and not query:
            raw["status"]["conditions"] = [
                {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gated"}
            ]
            if watch_is_first:
                setting.cache.put_pod(raw)
        return raw

    setting.answer("create", gated)
    await setting.reconciler.reconcile(KEY)
    assert setting.looks == ([] if watch_is_first else [KEY, KEY])
    setting.looks.clear()
    await setting.reconciler.reconcile(KEY)
    said = {each["type"]: each["reason"] for each in setting.sim.job["status"]["conditions"]}
    assert (said["Running"], setting.sim.job["status"]["phase"]) == ("Queued", "Pending")
    assert setting.looks == [], "nothing was made: there is nothing new to look at"


async def test_what_was_planned_from_an_old_version_is_not_written_over_a_new_one() -> None:
    """The user suspends the job while the pass waits for the dry run."""
    setting = Setting()
    create = setting.sim.create

    async def meanwhile(path: str, body: Json, **query: str) -> Json:
        if query.get("dryRun"):
            setting.sim.edit_job(suspend=True)
            setting.see_job()
        return await create(path, body, **query)

    setting.answer("create", meanwhile)
    assert await setting.reconciler.reconcile(KEY) == 0.05
    assert (setting.attempt, setting.sim.pods) == (0, {})
    await setting.reconciler.reconcile(KEY)
    assert (setting.sim.job["status"]["phase"], setting.sim.pods) == ("Suspended", {})


async def test_a_former_leader_that_has_nothing_to_write_makes_no_pods_either() -> None:
    setting = Setting()
    await setting.reconciler.reconcile(KEY)
    job, one = setting.sim.job, setting.sim.pods["job-1-1"]
    setting.sim.remove(one)
    setting.cache.remove_pod(one)
    job["status"]["phase"] = "Failed"
    job["metadata"]["resourceVersion"] = str(setting.sim.version + 1)
    await setting.reconciler.reconcile(KEY)
    assert sorted(setting.sim.pods) == ["job-1-0"]
    assert setting.cache.jobs.items[KEY].finished


async def test_a_pod_whose_creation_was_not_answered_is_taken_for_what_it_is() -> None:
    setting = Setting()
    create = setting.sim.create

    async def lost(path: str, body: Json, **query: str) -> Json:
        await create(path, body, **query)
        raise TimeoutError("the answer was lost")

    setting.sim.services.add("job")
    await create("/api/v1/namespaces/ns/pods", {"metadata": {"name": "x"}}, dryRun="All")
    setting.answer("create", lambda path, body, **query: (create if query else lost)(path, body, **query))
    with pytest.raises(TimeoutError):
        await setting.reconciler.reconcile(KEY)
    setting.answer("create", create)
    await setting.reconciler.reconcile(KEY)
    assert sorted(setting.sim.pods) == ["job-1-0", "job-1-1"]
    assert sorted(pod.name for pod in setting.cache.pods_of("j-1")) == ["job-1-0", "job-1-1"]


async def test_a_quota_with_room_for_half_of_the_gang_gets_it_back_at_once() -> None:
    setting = Setting()
    create = setting.sim.create

    async def tight(path: str, body: Json, **query: str) -> Json:
        if body["metadata"]["name"] == "job-1-1":
            raise refused(403, "Forbidden", "exceeded quota: gpus")
        return await create(path, body, **query)

    setting.answer("create", tight)
    with pytest.raises(ApiError, match="exceeded quota"):
        await setting.reconciler.reconcile(KEY)
    assert sorted(setting.sim.pods) == ["job-1-0"]
    await setting.reconciler.reconcile(KEY)
    status = setting.sim.job["status"]
    assert (status["current"]["stop"]["cause"], setting.sim.pods) == ("PodsRefused", {})
    setting.operator_sees()
    again = await setting.reconciler.reconcile(KEY)
    status = setting.sim.job["status"]
    assert status["current"]["end"]["class"] == "NotStarted"
    assert "nextTryAt" in status
    assert again is not None
    setting.answer("create", create)
    setting.sim.now += 30
    await setting.reconciler.reconcile(KEY)
    assert sorted(setting.sim.pods) == ["job-2-0", "job-2-1"]


@pytest.mark.parametrize(
    ("what", "code", "reason"),
    [
        ("job-1-1", 422, "TemplateInvalid"),
        ("job-1-1", 400, "TemplateInvalid"),
        ("job", 422, "TemplateInvalid"),
        ("job", 403, "PodsRefused"),
        ("job-1-1", 429, None),
        ("job-1-1", 404, None),
        ("job-1-1", 401, None),
        ("job", 500, None),
    ],
)
async def test_what_a_refused_creation_means(what: str, code: int, reason: str | None) -> None:
    """A pool that did nothing is not demoted, and no GPUs are held for a gang that cannot be."""
    setting = Setting()
    create = setting.sim.create

    async def refusing(path: str, body: Json, **query: str) -> Json:
        if body["metadata"]["name"] == what:
            raise refused(code, "Word", "in the API server's own words")
        return await create(path, body, **query)

    setting.answer("create", refusing)
    with pytest.raises(ApiError, match="own words"):
        await setting.reconciler.reconcile(KEY)
    if reason is None:
        with pytest.raises(ApiError, match="own words"):
            await setting.reconciler.reconcile(KEY)
        assert "stop" not in setting.sim.job["status"]["current"], "what may pass is tried again"
        return
    for _ in range(2):
        await setting.reconciler.reconcile(KEY)
        setting.operator_sees()
    status = setting.sim.job["status"]
    assert (status["current"]["end"]["class"], status["current"]["end"]["reason"]) == ("NotStarted", reason)
    assert "in the API server's own words" in status["current"]["end"]["message"]
    (said,) = [each for each in status["conditions"] if each["type"] == "TemplateInvalid"]
    assert (said["status"], said["reason"]) == ("True", reason)
    assert (setting.sim.pods, setting.cache.reservations()) == ({}, ())
    assert "nextTryAt" in status
    assert not status["demotedPools"] and not status["poolBackoffs"]
    setting.answer("create", create)
    setting.sim.now += 30
    await setting.reconciler.reconcile(KEY)
    assert sorted(setting.sim.pods) == ["job-2-0", "job-2-1"]


async def test_the_dry_run_is_made_for_a_pool_also_where_the_job_names_none() -> None:
    setting = Setting()
    setting.sim.job["spec"]["pools"] = []
    setting.sim.edit_job()
    setting.see_job()
    create, selectors = setting.sim.create, list[Any]()

    async def seen(path: str, body: Json, **query: str) -> Json:
        if query.get("dryRun"):
            selectors.append(body["spec"].get("nodeSelector"))
        return await create(path, body, **query)

    setting.answer("create", seen)
    await setting.reconciler.reconcile(KEY)
    assert selectors == [{"pool": "a"}]


async def test_to_which_nodes_a_volume_can_be_attached_is_looked_up_once() -> None:
    setting = Setting()
    asked: list[str] = []
    get = setting.sim.get
    term = {"matchExpressions": [{"key": "zone", "operator": "In", "values": ["nowhere"]}]}

    async def volumes(path: str, **query: str) -> Json:
        if "persistentvolumes" not in path:
            return await get(path, **query)
        asked.append(path)
        return {"spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": [term]}}}}

    setting.answer("get", volumes)
    claim = {"metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "2"}}
    bound = {"accessModes": ["ReadWriteMany"], "volumeName": "pv-1"}
    setting.cache.claims.put(claim | {"spec": bound, "status": {"phase": "Bound"}})
    for _ in range(3):
        await setting.reconciler.reconcile(KEY)
    assert asked == ["/api/v1/persistentvolumes/pv-1"]
    assert setting.attempt == 0
    (waits,) = [each for each in setting.sim.job["status"]["conditions"] if each["type"] == "Running"]
    assert "zone In [nowhere]" in waits["message"]
    claim["metadata"] |= {"resourceVersion": "3"}
    setting.cache.claims.put(claim | {"spec": bound | {"volumeName": "pv-2"}, "status": {"phase": "Bound"}})
    await setting.reconciler.reconcile(KEY)
    assert asked[1:] == ["/api/v1/persistentvolumes/pv-2"]


async def test_a_volume_that_the_watch_has_brought_is_not_looked_up() -> None:
    setting = Setting()
    asked: list[str] = []
    get = setting.sim.get

    async def seen(path: str, **query: str) -> Json:
        asked.append(path)
        return await get(path, **query)

    setting.answer("get", seen)
    claim = {"metadata": {"name": "claim", "namespace": "ns", "uid": "c", "resourceVersion": "2"}}
    bound = {"accessModes": ["ReadWriteMany"], "volumeName": "pv-1"}
    setting.cache.claims.put(claim | {"spec": bound, "status": {"phase": "Bound"}})
    setting.cache.put_volume("pv-1", ())
    await setting.reconciler.reconcile(KEY)
    assert setting.attempt == 1
    assert not [path for path in asked if "persistentvolumes" in path]


async def test_somebody_elses_service_of_that_name_is_waited_for() -> None:
    setting = Setting()
    setting.sim.services.add("job")
    get = setting.sim.get

    async def older(path: str, **query: str) -> Json:
        if "/services/" in path:
            return {"metadata": {"name": "job", "ownerReferences": [{"uid": "an older job"}]}}
        return await get(path, **query)

    setting.answer("get", older)
    with pytest.raises(RuntimeError, match="the name of service job is taken"):
        await setting.reconciler.reconcile(KEY)
    assert setting.sim.pods == {}


async def test_a_deleted_job_is_forgotten() -> None:
    setting = Setting(current=OPENED, conditions=[ACCEPTED])

    async def gone(path: str, *_: Any, **__: str) -> Json:
        raise refused(404, "NotFound", path)

    setting.answer("patch", gone)
    setting.answer("get", gone)
    assert await setting.reconciler.reconcile(KEY) == 0.05
    assert await setting.reconciler.reconcile(KEY) is None
    assert (setting.cache.jobs.items, setting.sim.pods) == ({}, {})
    ((before, after),) = setting.changes
    assert (before and before.uid, after) == ("j-1", None), "others may have waited for what it had"


async def test_what_a_refused_write_shows_of_the_job_is_told_since_no_watch_will() -> None:
    setting = Setting()
    before = setting.cache.jobs.items[KEY]
    setting.sim.job["spec"]["checkpoint"]["claimName"] = "another"
    setting.sim.edit_job(suspend=True)
    assert await setting.reconciler.reconcile(KEY) == 0.05
    assert setting.changes == [(before, setting.cache.jobs.items[KEY])]
    assert setting.cache.jobs.items[KEY].claim == "another"


async def test_a_job_managed_by_another_is_left_alone() -> None:
    setting = Setting()
    setting.sim.job["spec"]["managedBy"] = "kueue.x-k8s.io/multikueue"
    setting.sim.edit_job()
    setting.see_job()
    assert await setting.reconciler.reconcile(KEY) is None
    assert setting.sim.job["status"] == {}


async def test_a_write_that_fails_costs_no_second_dry_run() -> None:
    setting = Setting()
    dry_runs: list[str] = []
    create, patch = setting.sim.create, setting.sim.patch

    async def counted(path: str, body: Json, **query: str) -> Json:
        if query:
            dry_runs.append(body["metadata"]["name"])
        return await create(path, body, **query)

    async def lost(*_: Any, **__: Any) -> Json:
        raise TimeoutError("no answer")

    setting.answer("create", counted)
    setting.answer("patch", lost)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await setting.reconciler.reconcile(KEY)
    setting.answer("patch", patch)
    await setting.reconciler.reconcile(KEY)
    assert (setting.attempt, len(dry_runs)) == (1, 1)


@pytest.mark.parametrize(
    ("code", "temporary"), [(403, True), (422, False), (400, False), (429, None), (500, None)]
)
async def test_what_a_refused_dry_run_means(code: int, temporary: bool | None) -> None:
    setting = Setting()
    asked: list[tuple[str, dict[str, str]]] = []

    async def create(path: str, body: Json, **query: str) -> Json:
        asked.append((body["metadata"]["name"], query))
        raise refused(code, "Word", "in the API server's own words")

    setting.answer("create", create)
    applier, job = Applier(setting.client, setting.cache), read_job(setting.sim.job)
    if temporary is None:
        with pytest.raises(Exception, match="own words"):
            await applier.dry_run(job, None)
    else:
        said = await applier.dry_run(job, None)
        assert isinstance(said, Refusal)
        assert (said.temporary, said.message.endswith("in the API server's own words")) == (temporary, True)
    assert asked == [("job-dry-run", {"dryRun": "All", "fieldValidation": "Strict"})]
