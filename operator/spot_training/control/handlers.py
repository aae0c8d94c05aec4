"""The watches of jobs and pools, by kopf, and why so little of it:

- Only ``event`` handlers. Daemons, timers and delete handlers would put finalizers on objects, and create/update
  handlers would write annotations on them; a stopped operator must not be in anybody's way. ``index`` handlers hold
  back all events until everything is indexed, in a time that grows with the square of what there is.
- So nothing here says when all has been listed: a new leader lists jobs and pools itself.
- What is listed comes with no type of event. An object for which that happens a second time was listed anew, as
  after a watch that expired (410): what went meanwhile is in no list and in no event, and is looked for.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import kopf

from spot_training.api.names import GROUP, JOB_PLURAL, POOL_PLURAL, VERSION
from spot_training.control.operator import Operator


def registry(operator: Operator) -> kopf.OperatorRegistry:
    """Kopf's handlers: one for the events of each kind."""
    made = kopf.OperatorRegistry()
    resources: dict[str, tuple[Any, ...]] = {
        "jobs": (GROUP, VERSION, JOB_PLURAL),
        "pools": (GROUP, VERSION, POOL_PLURAL),
    }
    kopf.on.login(id="pod", registry=made)(kopf.login_with_service_account)
    kopf.on.login(id="by-hand", registry=made)(kopf.login_with_kubeconfig)
    for kind, resource in resources.items():
        _register(made, operator, kind, resource)
    return made


def _register(made: kopf.OperatorRegistry, operator: Operator, kind: str, resource: tuple[Any, ...]) -> None:
    async def event(event: Mapping[str, Any], memo: kopf.Memo, **_: Any) -> None:
        operator.take(kind, event["type"], event["object"])
        if event["type"] is None and memo.get("seen"):
            operator.follower.relisted(kind)
        memo["seen"] = True

    kopf.on.event(*resource, id=f"event-{kind}", registry=made)(event)


class _NoDiffs(kopf.DiffBaseStorage):
    """Of what kopf's handlers of changes are told of, nothing: there are none.

    For them kopf copies each object as often as an event of it comes, deeply, and would write a copy into it.
    """

    def build(self, *, body: kopf.Body, extra_fields: Iterable[Any] | None = None) -> kopf.BodyEssence:
        return kopf.BodyEssence()

    def fetch(self, *, body: kopf.Body) -> kopf.BodyEssence | None:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        raise NotImplementedError("a handler of changes would leave a copy in every object")


def settings() -> kopf.OperatorSettings:
    """Kopf's settings, for an operator that leaves no trace on the objects it watches."""
    made = kopf.OperatorSettings()
    made.scanning.disabled = True
    made.peering.standalone = True
    made.posting.enabled = False
    made.persistence.finalizer = f"{GROUP}/unused"
    made.persistence.diffbase_storage = _NoDiffs()
    made.watching.server_timeout = 290
    made.watching.reconnect_backoff = 0.5
    made.networking.error_backoffs = (0.5, 1, 2, 3, 5, 8)
    made.process.ultimate_exiting_timeout = 10
    return made


async def watch(
    operator: Operator, liveness: str | None, stop: asyncio.Event, ended: Callable[[], object]
) -> None:
    """Bring the operator everything that is there and that happens, until ``stop`` is set or a signal comes.

    ``ended`` is called when nothing comes any more. That is before this returns: kopf then waits five seconds for tasks
    that it takes for its own, and whoever still acts would act on what is no longer so.
    """

    async def startup(**_: Any) -> None:
        operator.watching.set()

    async def cleanup(**_: Any) -> None:
        ended()

    made = registry(operator)
    kopf.on.startup(id="begun", registry=made)(startup)
    kopf.on.cleanup(id="ended", registry=made)(cleanup)
    await kopf.operator(
        registry=made,
        settings=settings(),
        clusterwide=True,
        standalone=True,
        # kopf would else look up the name of the user, who has none in a container.
        identity=cast(Any, socket.gethostname()),
        liveness_endpoint=liveness,
        stop_flag=stop,
    )
