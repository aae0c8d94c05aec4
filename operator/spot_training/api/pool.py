"""``SpotPool``: a named group of interchangeable nodes: what it costs and how often it is taken."""

from typing import Annotated, Literal

from pydantic import Field

from spot_training.api.model import (
    DECIMAL,
    Condition,
    Decimal,
    LabelMap,
    Model,
    StatusModel,
    Time,
    Word,
    rule,
    rules,
)


class Toleration(Model):
    """A toleration, added to the pods that are placed in the pool."""

    key: Word | None = None
    operator: Literal["Exists", "Equal", "Lt", "Gt"] | None = None
    value: Word | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = None


class Headroom(Model):
    """Nodes that are kept warm for jobs to come."""

    nodes: Annotated[int, Field(ge=0, le=100)] = Field(
        description="So many nodes without training are kept, by pods of negative priority that a job's pods push away."
    )
    gpus_per_node: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None,
        description="GPUs of a whole node. Left out: as many as the pool's largest node has; say it where the pool may "
        "have no node.",
    )


class SpotPoolSpec(Model):
    """What the user says about the pool."""

    model_config = rules(
        rule(
            "!has(self.headroom) || self.provisioning == 'Autoscaled'",
            "headroom: only an autoscaler can keep nodes warm; set provisioning: Autoscaled, or leave headroom out",
            ".headroom",
        ),
        *(
            rule(
                f"!has(self.{field}) || self.{field}.matches('{DECIMAL}')",
                f"{field}: must be a decimal number in quotes and without a currency, such as '1.20'",
                f".{field}",
            )
            for field in ("pricePerNodeHour", "onDemandPricePerNodeHour")
        ),
    )

    node_selector: Annotated[LabelMap, Field(min_length=1)] = Field(
        description="Labels that a node must have to belong to the pool."
    )
    capacity_type: Literal["Spot", "OnDemand"] = Field(
        "Spot", description="Spot nodes can be reclaimed; OnDemand nodes cost more and stay."
    )
    provider: Literal["eci", "aws", "gcp", "azure", "alibaba", "tencent", "other"] | None = Field(
        None, description="The cloud, for people and for the notice it gives."
    )
    notice_seconds: Annotated[int, Field(ge=1, le=86400)] = Field(
        60, description="Seconds between the cloud's notice and the end of the machine, at the least."
    )
    price_per_node_hour: Decimal | None = Field(
        None, description="Price of a node for an hour, such as '1.20'."
    )
    on_demand_price_per_node_hour: Decimal | None = Field(
        None, description="What the same node costs on demand, to tell what was saved."
    )
    tolerations: Annotated[list[Toleration], Field(max_length=16)] = Field(
        [], description="Tolerations added to the pods placed here."
    )
    gpu_resource: Annotated[str, Field(min_length=1, max_length=128)] = Field(
        "nvidia.com/gpu", description="The extended resource that counts GPUs."
    )
    provisioning: Literal["Static", "Autoscaled"] = Field(
        "Static",
        description="Static: pods are made when nodes that exist have room for all of a gang. Autoscaled: pods are "
        "made although no node is free, for an autoscaler to see; what is not whole after the job's "
        "provisionTimeoutSeconds is given back.",
    )
    max_provisioning_gangs: Annotated[int, Field(ge=1, le=1000)] = Field(
        4,
        description="Gangs that wait at a time for the autoscaler to bring nodes; the others wait until one has them "
        "all, or has given up.",
    )
    headroom: Headroom | None = Field(
        None,
        description="Nodes that are kept warm in an autoscaled pool; what they cost is in no job's bill.",
    )
    max_interruptions_per_hour: Annotated[int, Field(ge=1, le=10000)] | None = Field(
        None,
        description="A breaker: while more nodes than this were taken within the last hour, nothing new is placed "
        "here; what runs goes on.",
    )
    node_deletion_means_gone: bool = Field(
        False, description="Whether a deleted Node object proves that its machine is gone."
    )


class NodeCounts(StatusModel):
    """Nodes of the pool."""

    total: int = 0
    ready: int = 0
    reclaiming: int = 0


class GpuCounts(StatusModel):
    """GPUs on the pool's nodes that can take pods now."""

    total: int = 0
    free: int = 0


class InterruptionCount(StatusModel):
    """Interruptions that began within a minute, or, where they are over an hour old, within an hour."""

    at: Time
    count: int


class PastMarks(StatusModel):
    """Interruptions that were counted and do not stand any more, by the hour in which that was found."""

    at: Time
    marks: Annotated[list[Annotated[str, Field(max_length=16)]], Field(max_length=5000)]


class Interruptions(StatusModel):
    """How often the pool's nodes are taken.

    ``recent`` and what comes after it is the operator's memory: it brings the counts and the rate forward from there.
    """

    last_hour: int = 0
    last_day: int = 0
    rate_per_node_hour: Decimal | None = Field(
        None, description="Interruptions per node and hour, decayed with a half-life of 6 hours."
    )
    recent: Annotated[list[InterruptionCount], Field(max_length=128)] = []
    marks: Annotated[list[Annotated[str, Field(max_length=16)]], Field(max_length=5000)] = Field(
        [], description="Identities of the notices that stand now and have been counted."
    )
    past: Annotated[list[PastMarks], Field(max_length=32)] = Field(
        [], description="What has been counted within a day and does not stand now: it may come again."
    )
    machines: Annotated[str, Field(max_length=40000)] = Field(
        "",
        description="With nodeDeletionMeansGone: nodes without a notice, whose going would be an interruption.",
    )
    events: Decimal = "0"
    node_hours: Annotated[str, Field(pattern=DECIMAL, max_length=24)] = "0"
    as_of: Time | None = None


class Users(StatusModel):
    """Jobs with an open attempt in the pool; the first of them by name."""

    count: int = 0
    names: Annotated[list[Word], Field(max_length=16)] = []


class HeadroomStatus(StatusModel):
    """Nodes that are to be kept warm, and that are."""

    nodes: int = 0
    warm: int = 0


class Price(StatusModel):
    """What the pool's nodes cost for an hour now: their own annotations, else the price file, else the pool say it.

    ``shown``: the price, or, where nodes differ, the lowest and the highest: ``3.05-4.00``.
    """

    lowest: Decimal
    highest: Decimal
    shown: Word


class SpotPoolStatus(StatusModel):
    """What the operator sees of the pool."""

    observed_generation: int = 0
    nodes: NodeCounts = NodeCounts()
    gpus: GpuCounts = GpuCounts()
    interruptions: Interruptions = Interruptions()
    jobs: Users = Users()
    price: Price | None = Field(None, description="Absent where nobody has said it.")
    headroom: HeadroomStatus | None = None
    conditions: Annotated[
        list[Condition],
        Field(
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = []


COLUMNS = [
    {"name": "Type", "type": "string", "jsonPath": ".spec.capacityType"},
    {"name": "Nodes", "type": "integer", "jsonPath": ".status.nodes.total"},
    {"name": "Ready", "type": "integer", "jsonPath": ".status.nodes.ready"},
    {"name": "Reclaiming", "type": "integer", "jsonPath": ".status.nodes.reclaiming"},
    {"name": "GPUs", "type": "integer", "jsonPath": ".status.gpus.total"},
    {"name": "Free", "type": "integer", "jsonPath": ".status.gpus.free"},
    {"name": "Jobs", "type": "integer", "jsonPath": ".status.jobs.count"},
    {"name": "Price", "type": "string", "jsonPath": ".status.price.shown"},
    {"name": "Rate", "type": "string", "jsonPath": ".status.interruptions.ratePerNodeHour"},
    {
        "name": "Hour",
        "type": "integer",
        "jsonPath": ".status.interruptions.lastHour",
        "priority": 1,
    },
    {"name": "Day", "type": "integer", "jsonPath": ".status.interruptions.lastDay", "priority": 1},
    {"name": "Warm", "type": "integer", "jsonPath": ".status.headroom.warm", "priority": 1},
    {
        "name": "Breaker",
        "type": "string",
        "jsonPath": ".status.conditions[?(@.type=='BreakerOpen')].reason",
        "priority": 1,
    },
    {"name": "Available", "type": "string", "jsonPath": ".status.conditions[?(@.type=='Available')].message"},
    {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
]
