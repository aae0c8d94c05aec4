"""The objects that an attempt consists of, as manifests: pods, the gang's headless service, the claim. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from spot_training.api import names
from spot_training.api.status import Current
from spot_training.control import kueue
from spot_training.control.policies.affinity import confine, prefer, together
from spot_training.control.policies.backoff import fraction
from spot_training.control.policies.needs import pod_needs
from spot_training.control.world import Job, Pool

Json = dict[str, Any]

MASTER_PORT: Final = 29500
"""PyTorch's customary port. Every pod has its own address, so gangs cannot clash on it."""

HOST_PORTS: Final = range(20000, 30000)
"""For pods on their node's network: above the well-known ports, below node ports and those that Linux gives out."""

VOLUME: Final = "spot-checkpoint"
RESUME_VOLUME: Final = "spot-resume"

RESUME_PATH: Final = "/spot-resume"
"""Where another job's checkpoints are mounted: below no directory that a template is likely to mount."""

STAY: Final = {
    "karpenter.sh/do-not-disrupt": "true",
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
}
"""Annotations that keep autoscalers from moving a gang to save a node."""


def pod_name(job: Job, attempt: int, index: int) -> str:
    """``<job>-<attempt>-<index>``."""
    return f"{job.name}-{attempt}-{index}"


def fence(job: Job, attempt: int) -> str:
    """Orders, as a string, all attempts that ever used a claim: job creation time, job UID, attempt."""
    created = datetime.fromtimestamp(job.created, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{created}-{job.uid}-{attempt:06d}"


def owner(job: Job) -> Json:
    """The reference that makes an object go with its job, without the operator's help."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.JOB_KIND,
        "name": job.name,
        "uid": job.uid,
        "controller": True,
    }


def labels(job: Job) -> dict[str, str]:
    """Labels that find all pods of the job."""
    return {names.LABEL_JOB: job.name, names.LABEL_JOB_UID: job.uid}


def service(job: Job) -> Json:
    """The headless service that gives the gang's pods their names, before they are ready too."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": job.name,
            "namespace": job.namespace,
            "labels": labels(job),
            "ownerReferences": [owner(job)],
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": labels(job),
            "ports": [{"name": "rendezvous", "port": MASTER_PORT}],
        },
    }


def claim(job: Job) -> Json:
    """The claim of ``checkpoint.claimTemplate``; with ``retain: Never`` it goes with the job."""
    template = job.spec.checkpoint.claim_template
    if template is None:
        raise ValueError("checkpoint.claimTemplate is not set")
    metadata: Json = {"name": job.claim, "namespace": job.namespace, "labels": {names.LABEL_JOB: job.name}}
    if job.spec.checkpoint.retain == "Never":
        metadata["ownerReferences"] = [owner(job)]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": template.to_json(),
    }


def grace_seconds(job: Job, pool: Pool | None) -> int:
    """The pods' grace: the user's own, else what the pool's notice leaves."""
    own = (job.spec.template.spec.model_extra or {}).get("terminationGracePeriodSeconds")
    notice = pool.spec.notice_seconds if pool else 60
    return int(own) if own is not None else max(1, notice - names.DEADLINE_MARGIN_SECONDS)


def pod(
    job: Job,
    attempt: int,
    index: int,
    pool: Pool | None,
    opened: Current | None = None,
    limit: int | None = None,
    avoid: Sequence[str] = (),
) -> Json:
    """The pod of a rank. ``pool`` None: for a dry run, before a pool is chosen; ``opened``: the attempt's record;
    ``limit``: seconds that it may run on the job's budget; ``avoid``: names of nodes that it is kept off.
    """
    template = job.spec.template
    metadata: Json = template.metadata.to_json() if template.metadata else {}
    metadata["name"] = pod_name(job, attempt, index)
    metadata["namespace"] = job.namespace
    metadata["labels"] = {
        **(metadata.get("labels") or {}),
        **labels(job),
        names.LABEL_ATTEMPT: str(attempt),
        names.LABEL_INDEX: str(index),
    }
    metadata["annotations"] = {**STAY, **(metadata.get("annotations") or {})}
    metadata["ownerReferences"] = [owner(job)]

    spec: Json = template.spec.to_json()
    spec["restartPolicy"] = "Never"
    if job.replicas > 1:
        # A pod has a name of its own in DNS only with both of these; RANK 0 is found by it.
        spec["hostname"] = metadata["name"]
        spec["subdomain"] = job.name
        if spec.get("hostNetwork"):
            _on_host_network(spec, _master_port(job, attempt), index)
    if "serviceAccountName" not in spec:
        # The program needs nothing from the API server; a token would only be there to be stolen.
        spec.setdefault("automountServiceAccountToken", False)
    grace = spec["terminationGracePeriodSeconds"] = grace_seconds(job, pool)
    metadata["annotations"].pop(names.BUDGET_SECONDS, None)
    own_limit = spec.get("activeDeadlineSeconds")
    if limit is not None and (own_limit is None or limit < own_limit):
        spec["activeDeadlineSeconds"] = limit
        metadata["annotations"][names.BUDGET_SECONDS] = str(limit)
    if pool is not None:
        spec["nodeSelector"] = {**(spec.get("nodeSelector") or {}), **pool.spec.node_selector}
        spec["tolerations"] = [
            *(spec.get("tolerations") or ()),
            *(toleration.to_json() for toleration in pool.spec.tolerations),
        ]
    if opened is not None:
        kueue.join(metadata, job, opened)
        confine(spec, opened.node or "", [*opened.avoid, *avoid])
        prefer(spec, opened.preferred)
        if opened.one_node:
            together(spec, {names.LABEL_JOB_UID: job.uid, names.LABEL_ATTEMPT: str(attempt)})
    spec["volumes"] = [
        *(spec.get("volumes") or ()),
        {"name": VOLUME, "persistentVolumeClaim": {"claimName": job.claim}},
    ]
    source = opened.resume_claim if opened is not None else None
    if source:
        volume = {"claimName": source, "readOnly": True}
        spec["volumes"].append({"name": RESUME_VOLUME, "persistentVolumeClaim": volume})
    resource = pool.spec.gpu_resource if pool else "nvidia.com/gpu"
    ours = _environment(job, attempt, index, grace, pod_needs(spec).get(resource, 0))
    if source:
        ours[names.ENV_RESUME_DIR] = RESUME_PATH
    for container in spec["containers"]:
        own = container.get("env") or []
        taken = {each["name"] for each in own}
        container["env"] = [*({"name": k, "value": v} for k, v in ours.items() if k not in taken), *own]
        container["volumeMounts"] = [
            *(container.get("volumeMounts") or ()),
            {"name": VOLUME, "mountPath": job.spec.checkpoint.mount_path},
        ]
        if source:
            mount = {"name": RESUME_VOLUME, "mountPath": RESUME_PATH, "readOnly": True}
            container["volumeMounts"].append(mount)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _master_port(job: Job, attempt: int) -> int:
    """Where rank 0 listens: on its node's network at a port of the attempt's own."""
    if not (job.spec.template.spec.model_extra or {}).get("hostNetwork"):
        return MASTER_PORT
    return HOST_PORTS[int(fraction(f"{job.uid}/{attempt}/port") * len(HOST_PORTS)) - 1]


def _on_host_network(spec: Json, port: int, index: int) -> None:
    """Keep the scheduler from putting two pods that listen there on one node, and let names be found."""
    spec.setdefault("dnsPolicy", "ClusterFirstWithHostNet")
    first = spec["containers"][0]
    chosen = any(each["name"] in ("MASTER_PORT", "PET_MASTER_PORT") for each in first.get("env") or ())
    if index == 0 and not chosen:
        listens = {"name": "spot-rendezvous", "containerPort": port, "hostPort": port}
        first["ports"] = [*(first.get("ports") or ()), listens]


def _environment(job: Job, attempt: int, index: int, grace: int, gpus: int) -> dict[str, str]:
    """The contract with the training code, and PyTorch's own rendezvous variables (env://, torchrun's PET_*)."""
    replicas, port = job.replicas, str(_master_port(job, attempt))
    master = f"{pod_name(job, attempt, 0)}.{job.name}" if replicas > 1 else "localhost"
    made = {
        names.ENV_JOB: job.name,
        names.ENV_FENCE: fence(job, attempt),
        names.ENV_ATTEMPT: str(attempt),
        names.ENV_CHECKPOINT_DIR: job.spec.checkpoint.mount_path,
        names.ENV_GRACE: str(grace),
        "MASTER_ADDR": master,
        "MASTER_PORT": port,
        "WORLD_SIZE": str(replicas),
        "RANK": str(index),
        "LOCAL_RANK": "0",
        "PET_NNODES": str(replicas),
        "PET_NODE_RANK": str(index),
        "PET_NPROC_PER_NODE": str(max(1, gpus)),
        "PET_MASTER_ADDR": master,
        "PET_MASTER_PORT": port,
        # What torchrun calls its rendezvous: a late process of an older attempt can never join this one's.
        "PET_RDZV_ID": f"{job.uid}-{attempt}",
    }
    if job.spec.checkpoint.interval_seconds is not None:
        made[names.ENV_INTERVAL] = str(job.spec.checkpoint.interval_seconds)
    return made
