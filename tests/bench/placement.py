"""`make bench-placement`: deciding for all waiting jobs at once, and for one alone, on one core.

2,000 jobs wait for 50 pools of 100 nodes each, 8 GPUs a node, of which a fourth is in use; gangs of 1 to 16 pods in a
dozen shapes, with cpu and memory, three priorities, a third of the jobs with a list of pools of their own. Every trial
decides on the counts as a running operator has them; the first one, and an operator's start, are told apart.
"""

import random
import statistics
import time

from spot_training.api.job import SpotTrainingJobSpec
from spot_training.api.pool import SpotPoolSpec
from spot_training.control.policies.demand import Choice, Key, Request, Waiting
from spot_training.control.policies.fitting import shape_of
from spot_training.control.policies.placement import place
from spot_training.control.supply import Supply
from spot_training.control.world import Node, Pool, Shape
from tests.bench.report import Report

NOW = 1_900_000_000.0
GPU = "nvidia.com/gpu"
POOLS, NODES, JOBS, TRIALS, ONES = 50, 5000, 2000, 7, 200


def supply() -> Supply:
    """Pools and nodes, a fourth of the GPUs in use."""
    chance = random.Random(1)
    made = Supply()
    for number in range(POOLS):
        price = f"{chance.uniform(1, 9):.2f}"
        spec = {"nodeSelector": {"pool": f"p{number}"}, "pricePerNodeHour": price}
        made.put_pool(None, Pool(f"p{number}", SpotPoolSpec.model_validate(spec)))
    for number in range(NODES):
        name = f"n{number}"
        room = {GPU: 8, "cpu": 96_000, "memory": 768 << 30, "pods": 110}
        labels = {"pool": f"p{number % POOLS}", "kubernetes.io/hostname": name}
        made.put_node(None, Node(name=name, uid=name, labels=labels, capacity=room))
        used = chance.choice((0, 0, 0, 1, 2, 4, 7))
        if used:
            needs = {GPU: used, "cpu": used * 8000, "memory": used << 36, "pods": 1}
            made.use(name, needs, training=chance.random() < 0.5)
    return made


def waiting(known: dict[Shape, Shape]) -> list[Waiting]:
    """The jobs, with shapes that are the same object where they are equal, as the cache has them."""
    chance = random.Random(2)
    made = []
    for number in range(JOBS):
        gpus = chance.choice((1, 2, 4, 8))
        limits = {GPU: gpus, "cpu": str(gpus * chance.choice((4, 8, 10))), "memory": f"{gpus * 64}Gi"}
        spec = SpotTrainingJobSpec.model_validate(
            {
                "replicas": chance.choice((1, 2, 4, 8, 16)),
                "pools": [f"p{each}" for each in chance.sample(range(POOLS), 3)] if number % 3 == 0 else [],
                "template": {
                    "spec": {"containers": [{"name": "m", "image": "i", "resources": {"limits": limits}}]}
                },
                "checkpoint": {"mountPath": "/c", "claimName": "c"},
            }
        )
        priority = chance.choice((0, 0, 0, 10, 100))
        request = Request(spec.replicas, spec.template.spec, spec.pools, priority=priority)
        shape = shape_of(spec.template.spec)
        key = ("ns", f"job{number}")
        made.append(Waiting(key, f"uid{number}", NOW - number, request, known.setdefault(shape, shape)))
    return made


def decide(jobs: list[Waiting], world: Supply) -> tuple[dict[Key, Choice], float]:
    """The decision, and the seconds of processor time it took."""
    started = time.process_time()
    made = place(jobs, world, (), {}, NOW)
    return made, time.process_time() - started


def main() -> None:
    """Measure and print."""
    report = Report("placement")
    started = time.process_time()
    world = supply()
    report.value("supply_seconds", time.process_time() - started, "s")
    jobs = waiting({})
    made, first = decide(jobs, world)
    report.value("decide_all_first_seconds", first, "s")
    samples = [decide(jobs, world)[1] for _ in range(TRIALS)]
    report.trials("decide_all_seconds", samples, "s", "<= 1")
    placed = sum(1 for choice in made.values() if choice.pool is not None)
    report.value("placed", placed, "jobs")
    report.value("waiting", len(made) - placed, "jobs")
    chance = random.Random(3)
    ones = [decide([chance.choice(jobs)], world)[1] for _ in range(ONES)]
    report.trials("decide_one_median_seconds", ones, "s", "<= 0.005")
    changed = []
    for _ in range(ONES):
        node = f"n{chance.randrange(NODES)}"
        world.use(node, {GPU: 1}, training=False)
        changed.append(decide([chance.choice(jobs)], world)[1])
        world.use(node, {GPU: 1}, -1, training=False)
    report.value("decide_one_after_a_change_seconds", statistics.median(changed), "s", "<= 0.005")
    report.finish()


if __name__ == "__main__":
    main()
