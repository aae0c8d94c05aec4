"""``SpotTrainingJob``, the part that users write."""

from typing import Annotated, Literal

from pydantic import Field

from spot_training.api.model import DECIMAL, Decimal, Label, Model, OpenModel, Quantity, Word, rule, rules

MAX_NAME = 48
"""Longest job name: with attempt and index behind it a pod's name still fits its host name's 63 characters."""

Seconds = Annotated[int, Field(ge=1, le=31_536_000)]


class EnvVar(OpenModel):
    """A variable of a container."""

    name: Annotated[str, Field(min_length=1, max_length=256)]


class Resources(OpenModel):
    """What a container asks for."""

    limits: Annotated[dict[str, Quantity], Field(max_length=32)] | None = None
    requests: Annotated[dict[str, Quantity], Field(max_length=32)] | None = None


class Container(OpenModel):
    """A container of the template. Container 0 decides the outcome."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    image: Annotated[str, Field(min_length=1, max_length=512)]
    env: Annotated[list[EnvVar], Field(max_length=256)] | None = None
    resources: Resources | None = None


class PodSpec(OpenModel):
    """An ordinary pod spec; what is not declared here is passed on to the pod and checked by a dry run."""

    model_config = rules(
        *(
            rule(
                f"!has(self.{field}) || "
                f"self.{field}.all(c, !has(c.env) || c.env.all(e, !e.name.startsWith('SPOT_')))",
                f"{field}[].env: variables that begin with SPOT_ are set by the operator; use another name",
                f".{field}",
            )
            for field in ("containers", "initContainers")
        ),
        **{"x-kubernetes-preserve-unknown-fields": True},
    )

    restart_policy: Literal["Never"] | None = Field(
        None, description="Always Never: recovery makes new pods. Leave it out."
    )
    containers: Annotated[list[Container], Field(min_length=1, max_length=16)]
    init_containers: Annotated[list[Container], Field(max_length=16)] | None = None


class TemplateMetadata(OpenModel):
    """Labels and annotations of the pods."""

    labels: Annotated[dict[str, Label], Field(max_length=64)] | None = None
    annotations: (
        Annotated[dict[str, Annotated[str, Field(max_length=65536)]], Field(max_length=64)] | None
    ) = None


class PodTemplate(Model):
    """An ordinary pod template."""

    metadata: TemplateMetadata | None = None
    spec: PodSpec


class ResumeFrom(Model):
    """Another job whose checkpoints this one starts from."""

    model_config = rules(
        rule(
            "self.job.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "resumeFrom.job: must be the name of a SpotTrainingJob in the same namespace",
            ".job",
        )
    )

    job: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class ClaimSpec(OpenModel):
    """An ordinary PersistentVolumeClaim spec."""

    model_config = rules(
        rule(
            "has(self.resources.requests) && 'storage' in self.resources.requests",
            "claimTemplate.resources.requests.storage: say how much room the claim needs, such as 10Gi",
            ".resources",
        ),
        **{"x-kubernetes-preserve-unknown-fields": True},
    )

    access_modes: Annotated[
        list[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod", "ReadOnlyMany"]],
        Field(min_length=1, max_length=4),
    ]
    resources: Resources
    storage_class_name: Word | None = None


class Checkpoint(Model):
    """Where checkpoints live."""

    model_config = rules(
        rule(
            "has(self.claimName) != has(self.claimTemplate)",
            "checkpoint: give exactly one of claimName (an existing claim) and claimTemplate (a claim to make)",
        ),
        rule(
            "self.mountPath.matches('^/[^:]+$')",
            "mountPath: must be an absolute path such as /mnt/checkpoint, not '/' itself, and without ':'",
            ".mountPath",
        ),
        rule(
            "!has(self.claimName) || self.claimName.matches('^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$')",
            "claimName: must be the name of a PersistentVolumeClaim: lower-case letters, digits, '-' and '.'",
            ".claimName",
        ),
    )

    mount_path: Annotated[str, Field(min_length=2, max_length=1024, pattern="^/[^:]+$")] = Field(
        description="Absolute path at which every container finds the checkpoint volume."
    )
    claim_name: Annotated[str, Field(min_length=1, max_length=253)] | None = Field(
        None, description="An existing PersistentVolumeClaim of the job's namespace."
    )
    claim_template: ClaimSpec | None = Field(
        None, description="Spec of a claim to be made for the job, named <job>-checkpoint."
    )
    retain: Literal["Always", "OnFailure", "Never"] = Field(
        "Always", description="Whether a claim made from claimTemplate outlives the job."
    )
    writer: Literal["Library", "Other"] = Field(
        "Other",
        description="Library: the program saves with spot_training.train, which keeps attempts apart, so that "
        "recovery need not wait for an unreachable machine. Other: anything else.",
    )
    interval_seconds: Seconds | None = Field(None, description="Seconds between periodic checkpoints.")
    resume_from: ResumeFrom | None = Field(
        None,
        description="Start from another job's checkpoints: its claim is mounted read-only, at $SPOT_RESUME_DIR.",
    )


class Backoff(Model):
    """Delay before the next attempt after a failure: full jitter over a doubling interval."""

    model_config = rules(
        rule(
            "self.initialSeconds <= self.maxSeconds",
            "backoff: initialSeconds must not exceed maxSeconds",
            ".initialSeconds",
        )
    )

    initial_seconds: Annotated[int, Field(ge=1, le=86400)] = 10
    max_seconds: Annotated[int, Field(ge=1, le=86400)] = 360


class Recovery(Model):
    """When to try again, and when to give up."""

    max_failures: Annotated[int, Field(ge=0, le=10000)] = Field(
        3, description="How many failures of the program itself are recovered from."
    )
    max_disruptions: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        None, description="How many reclamations, evictions and lost nodes; unlimited when left out."
    )
    retryable_exit_codes: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=255)]],
            Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = Field(
        None,
        description="Exit codes of the program that count as disruptions, not as failures: its way to ask for "
        "another try, as after a communication fault that it cannot mend itself.",
    )
    backoff: Backoff = Backoff()
    node_lost_after_seconds: Seconds = Field(
        60, description="Seconds a node may be unreachable before its pods are given up."
    )
    assume_gone_after_seconds: Seconds = Field(
        300,
        description="Seconds after which an unreachable machine is taken for dead, where the program's "
        "attempts cannot be kept apart (writer: Other).",
    )


class OnDemand(Model):
    """Whether and how far on-demand capacity may stand in."""

    model_config = rules(
        rule(
            "self.policy != 'Deadline'",
            "onDemand.policy: Deadline is not available in this version; use WhenNoSpot or Never",
            ".policy",
        ),
        rule(
            "(self.policy == 'Never' && !has(self.ranks)) || has(self.maxCost)",
            "onDemand.maxCost: say how much may be spent on on-demand machines at most, such as '50.00'",
            ".maxCost",
        ),
        rule(
            f"!has(self.maxCost) || self.maxCost.matches('{DECIMAL}')",
            "maxCost: must be a decimal number in quotes and without a currency, such as '50.00'",
            ".maxCost",
        ),
    )

    policy: Literal["Never", "WhenNoSpot", "Deadline"] = Field(
        "Never",
        description="Never: on-demand pools are passed over. WhenNoSpot: they are used where no spot pool has had "
        "room for afterSeconds, and left again when one has and the move pays.",
    )
    ranks: (
        Annotated[
            list[Annotated[int, Field(ge=0, le=999)]],
            Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = Field(
        None,
        description="Ranks that run on an on-demand pool while the others are on a spot pool, such as the one that "
        "writes the checkpoints, whatever the policy; all on spot machines once maxCost does not pay for them.",
    )
    after_seconds: Annotated[int, Field(ge=0, le=31_536_000)] = Field(
        600, description="Seconds without room on any spot pool before on-demand machines are used."
    )
    max_cost: Decimal | None = Field(
        None,
        description="The most that is ever spent on on-demand machines for this job. Reserved before a pod is made, "
        "and held by the pods' own deadlines while the operator is away.",
    )


class SpotTrainingJobSpec(Model):
    """What the user wants trained, where, and how far to go for it."""

    model_config = rules(
        rule(
            "self.suspend || self.replicas == oldSelf.replicas",
            "replicas: can be changed only while the job is suspended (suspend: true)",
            ".replicas",
        ),
        rule(
            "self.suspend || (self.checkpoint.mountPath == oldSelf.checkpoint.mountPath && "
            "(has(self.checkpoint.claimName) ? self.checkpoint.claimName : '') == "
            "(has(oldSelf.checkpoint.claimName) ? oldSelf.checkpoint.claimName : ''))",
            "checkpoint: mountPath and claimName can be changed only while the job is suspended (suspend: true)",
            ".checkpoint",
        ),
        rule(
            f"!has(self.maxPricePerNodeHour) || self.maxPricePerNodeHour.matches('{DECIMAL}')",
            "maxPricePerNodeHour: must be a decimal number in quotes and without a currency, such as '1.20'",
            ".maxPricePerNodeHour",
        ),
        rule(
            "!has(self.checkpoint.claimTemplate) || !has(oldSelf.checkpoint.claimTemplate) || "
            "self.checkpoint.claimTemplate == oldSelf.checkpoint.claimTemplate",
            "claimTemplate: cannot be changed, for its claim is made once; to resize it edit the "
            "PersistentVolumeClaim itself, to leave it use claimName while the job is suspended",
            ".checkpoint.claimTemplate",
        ),
        rule(
            "!has(self.onDemand.ranks) || self.onDemand.ranks.all(rank, rank < self.replicas)",
            "onDemand.ranks: ranks are numbered from 0 to replicas - 1; name only such",
            ".onDemand.ranks",
        ),
        rule(
            "!has(self.onDemand.ranks) || size(self.onDemand.ranks) < self.replicas",
            "onDemand.ranks: leave at least one rank to spot machines",
            ".onDemand.ranks",
        ),
        rule(
            "!has(self.onDemand.ranks) || !has(self.checkpoint.claimTemplate) || "
            "'ReadWriteMany' in self.checkpoint.claimTemplate.accessModes",
            "onDemand.ranks: ranks on different nodes need a claim that is ReadWriteMany; change "
            "checkpoint.claimTemplate.accessModes, or name no ranks",
            ".onDemand.ranks",
        ),
        rule(
            "self.managedBy == oldSelf.managedBy",
            "managedBy: cannot be changed; make the job anew",
            ".managedBy",
        ),
    )

    replicas: Annotated[int, Field(ge=1, le=1000)] = Field(
        1, description="Pods of the job, one rank each; a gang: all run or none."
    )
    pools: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=253)]],
        Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
    ] = Field([], description="SpotPools to use, in this order. Empty: every spot pool.")
    template: PodTemplate = Field(
        description="An ordinary pod template. A change takes effect with the next attempt."
    )
    checkpoint: Checkpoint
    recovery: Recovery = Recovery()
    max_price_per_node_hour: Decimal | None = Field(
        None, description="Pools and nodes that cost more, or whose price is not known, are not used."
    )
    on_demand: OnDemand = OnDemand()
    provision_timeout_seconds: Seconds = Field(
        900, description="A gang that is not whole by then gives its pods back and tries the next pool."
    )
    deadline_seconds: Seconds | None = Field(
        None, description="From the first start, through every attempt; then the job fails."
    )
    suspend: bool = Field(
        False, description="Stop the pods (they save) and start none until it is false again."
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        None, description="Delete the finished job after that time."
    )
    managed_by: Annotated[str, Field(min_length=1, max_length=253)] = Field(
        "spot.training/operator", description="Another value: this operator leaves the job alone."
    )


COLUMNS = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Pool", "type": "string", "jsonPath": ".status.current.pool"},
    {"name": "Ready", "type": "string", "jsonPath": ".status.ready"},
    {"name": "Step", "type": "integer", "jsonPath": ".status.step"},
    {"name": "Disruptions", "type": "integer", "jsonPath": ".status.disruptions"},
    {"name": "Spent", "type": "string", "jsonPath": ".status.cost.spent"},
    {"name": "Failures", "type": "integer", "jsonPath": ".status.failures", "priority": 1},
    {"name": "Attempt", "type": "integer", "jsonPath": ".status.current.attempt", "priority": 1},
    {"name": "On-Demand", "type": "string", "jsonPath": ".status.current.onDemand.pool", "priority": 1},
    {
        "name": "Why",
        "type": "string",
        "jsonPath": ".status.conditions[?(@.type=='Running')].message",
        "priority": 1,
    },
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]
