"""Carrying out one action of a drain: the requests for one pod, and what the API server made of them."""

import asyncio
import logging
from contextlib import suppress
from enum import Enum
from typing import Final

import aiohttp

from spot_training.api import names
from spot_training.api.times import format_time
from spot_training.cluster.client import STRATEGIC_PATCH, ApiError, Client, Json, core_path
from spot_training.node.drain import Action, Step
from spot_training.node.logs import fields
from spot_training.node.pods import Pod

log = logging.getLogger(__name__)

CONDITION_SECONDS: Final = 1.0
"""No longer than this is the DELETE held up by the condition that explains it."""


class Result(Enum):
    """What came of an action."""

    EVICTED = "evicted"
    DELETED = "deleted"
    GONE = "gone"
    REFUSED = "refused"
    FAILED = "failed"

    @property
    def accepted(self) -> bool:
        """Whether nothing more is to be asked for this pod now."""
        return self in (Result.EVICTED, Result.DELETED, Result.GONE)


async def remove(client: Client, action: Action, notice: str, now: float) -> Result:
    """Carry out one action. ``now`` is the API server's time, ``notice`` the id for the log."""
    pod = action.pod
    try:
        if action.step is Step.EVICT:
            result = await _evict(client, action)
        else:
            if not pod.disrupted and pod.kill_at is None:
                await _explain(client, pod, notice, now)
            await client.delete(core_path(pod.namespace, "pods", pod.name), uid=pod.uid, grace=action.grace)
            result = Result.DELETED
        why = ""
    except ApiError as error:
        result, why = _refusal(error), str(error)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        result, why = Result.FAILED, f"{type(error).__name__}: {error}"
    log.info(
        "pod %s",
        result.value,
        extra=fields(
            notice=notice,
            pod=f"{pod.namespace}/{pod.name}",
            step=action.step.value,
            grace=action.grace,
            localData=pod.local_data,
            why=why,
        ),
    )
    return result


async def _evict(client: Client, action: Action) -> Result:
    pod = action.pod
    body: Json = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod.name, "namespace": pod.namespace},
        "deleteOptions": {"gracePeriodSeconds": action.grace, "preconditions": {"uid": pod.uid}},
    }
    await client.create(core_path(pod.namespace, "pods", pod.name, "eviction"), body)
    return Result.EVICTED


async def _explain(client: Client, pod: Pod, notice: str, now: float) -> None:
    """Say in the pod why it goes, since a plain DELETE leaves no trace; the pod goes with or without it."""
    condition = {
        "type": names.DISRUPTION_TARGET,
        "status": "True",
        "reason": names.REASON_RECLAIMED,
        "message": f"the node is being taken away (notice {notice})",
        "lastTransitionTime": format_time(now).split(".")[0] + "Z",
    }
    body: Json = {"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}}
    with suppress(ApiError, aiohttp.ClientError, OSError, TimeoutError, ValueError):
        async with asyncio.timeout(CONDITION_SECONDS):
            await client.patch(core_path(pod.namespace, "pods", pod.name, "status"), body, STRATEGIC_PATCH)


def _refusal(error: ApiError) -> Result:
    if error.code == 404:
        return Result.GONE
    return Result.REFUSED if error.code == 429 and error.has_cause("DisruptionBudget") else Result.FAILED
