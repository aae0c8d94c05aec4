"""Which jobs may open an attempt now, and where: one decision for all jobs that wait. Pure.

The jobs are taken in order: priority first (of their PriorityClass), then age. Each takes the first pool in its own
order whose free nodes hold the whole gang, counted node by node after everything that is used, that starting
attempts will use, and that the jobs before it have just been given.

**No starvation.** The first job in a pool that finds no room there *holds* room for each of its pods: what is free,
and for the pods that are left, what becomes free on the nodes that lack least of it. Jobs after it are given the other
nodes, and beside it what it does not need; nothing of what it still lacks on its own nodes, for nobody knows when
that would be free again. So it waits for those who run, and for nobody behind it. What that may leave idle is bounded:
a job holds one pool at a time (the one where the fewest of its pods find no room), a pool is held for one job, and
only a job that would fit if all training there ended holds anything; so less than the holder's GPUs are idle in a
pool. Nobody who runs is stopped for a job that waits.

**A gang of which a part goes apart** (:class:`.demand.Apart`) takes a spot pool with room for the rest together with
an on-demand pool with room for that part, or neither. On-demand pools take it as a whole only where they may stand in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from spot_training.api.times import format_second
from spot_training.control.ledger import Ledger
from spot_training.control.policies.affinity import contradiction, describe
from spot_training.control.policies.demand import Apart, Choice, Key, Request, Verdict, Waiting
from spot_training.control.policies.fitting import usable
from spot_training.control.policies.interruptions import breaker_until, interruption_rate
from spot_training.control.policies.score import score
from spot_training.control.supply import Supply
from spot_training.control.world import Reservation, Shape

LACKS: Final = ("NoCapacity", "HeldForAnother", "GangTooLarge")
"""Reasons that an autoscaler may mend."""


def place(
    waiting: Sequence[Waiting],
    supply: Supply,
    reservations: Sequence[Reservation],
    provisioning: Mapping[str, int],
    now: float,
    most: int | None = None,
) -> dict[Key, Choice]:
    """Decide for all jobs that wait. The same jobs, supply and time give the same decision.

    ``provisioning``: by pool, gangs that wait already for an autoscaler's nodes. ``most``: when so many have been given
    a place, nothing is decided for those that come after them.
    """
    made = _Pass(supply, reservations, provisioning, now)
    decided: dict[Key, Choice] = {}
    placed = 0
    for each in sorted(waiting, key=lambda each: each.order):
        if placed == most:
            break
        choice = decided[each.key] = made.decide(each)
        placed += choice.pool is not None
    return decided


class _Pass:
    """One decision for all: what has been given away so far, and what holds for every job alike."""

    def __init__(
        self,
        supply: Supply,
        reservations: Sequence[Reservation],
        provisioning: Mapping[str, int],
        now: float,
    ) -> None:
        self._supply = supply
        self._ledger = Ledger(supply, reservations)
        self._provisioning = dict(provisioning)
        self._now = now
        self._holders: dict[str, str] = {}
        self._breakers = {name: breaker_until(pool, now) for name, pool in supply.pools.items()}
        self._rates = {name: interruption_rate(pool.status, now) for name, pool in supply.pools.items()}
        self._shortages: dict[tuple[str, Shape, int], tuple[int, Verdict]] = {}
        self._conflicts: dict[tuple[str, Shape], str] = {}
        self._frees: dict[tuple[object, ...], tuple[int, tuple[int, int]]] = {}
        self._prices = {name: self._price(name) for name in supply.pools}
        self._on_demand = {
            name for name, pool in supply.pools.items() if pool.spec.capacity_type == "OnDemand"
        }

    def decide(self, job: Waiting) -> Choice:
        """The decision for the next job in order."""
        made = self._try(job, job.request.avoid)
        if made.pool is None and job.request.avoid:
            # Rather on a node to keep off than nowhere: it may have been the program after all.
            anywhere = self._try(job, frozenset())
            if anywhere.pool is not None:
                return replace(anywhere, anywhere=True)
        if made.pool is None:
            self._hold(job, made.refused)
        return made

    def _try(self, job: Waiting, avoid: frozenset[str]) -> Choice:
        refused: dict[str, Verdict] = {}
        wakes: list[float] = []
        order = self._order(job)
        beside, provisioned = "", False
        if job.request.apart is not None:
            beside, provisioned, refused = self._beside(job, job.request.apart, wakes, avoid)
            if not beside:
                return self._without(job, refused, wakes, avoid)

        def with_beside(made: Choice) -> Choice:
            return self._add(job, made, beside, provisioned, avoid)

        for place, name in enumerate(order):
            verdict = self._barred(job, job.request, name, wakes)
            if verdict is None and job.request.queued:
                return with_beside(Choice(job.request, name, refused, dict.fromkeys(order[place + 1 :], "")))
            verdict = verdict or self._short(job, name, self._pods(job, name), avoid)
            if verdict is None:
                return with_beside(self._give(job, name, refused, order[place + 1 :], wakes, avoid))
            # In the user's order an autoscaled pool's turn is its turn, whatever those after it have.
            if job.request.pools and self._makes(name, verdict):
                later = dict.fromkeys(order[place + 1 :], "")
                return with_beside(self._make(job, name, refused, later))
            refused[name] = verdict
        makes = [name for name, verdict in refused.items() if self._makes(name, verdict)]
        if makes and not job.request.pools:
            name = makes[0]
            refused.pop(name)
            return with_beside(self._make(job, name, refused, {}))
        if not refused:
            nothing = Verdict("PoolNotFound", "there is no SpotPool with capacityType Spot; create one")
            return Choice(job.request, None, {"": nothing})
        return Choice(job.request, None, refused, wake_at=min(wakes, default=None))

    def _pods(self, job: Waiting, name: str) -> int:
        """How many of the job's shape the pool would have to hold."""
        apart = job.request.apart
        return job.pods if apart is None or name in self._on_demand else job.pods - apart.pods

    def _beside(
        self, job: Waiting, apart: Apart, wakes: list[float], avoid: frozenset[str]
    ) -> tuple[str, bool, dict[str, Verdict]]:
        """The on-demand pool for the part that goes apart, and whether an autoscaler has to make its nodes; or none,
        and why.
        """
        request = replace(job.request, refused=apart.refused)
        names = list(request.pools or sorted(self._on_demand, key=lambda name: self._score(job, name)))
        names.sort(key=lambda name: name in request.last)
        refused: dict[str, Verdict] = {}
        for name in names:
            if name in self._supply.pools and name not in self._on_demand:
                continue
            verdict = self._barred(job, request, name, wakes)
            if verdict is None and not request.queued:
                verdict = self._short(job, name, apart.pods, avoid)
            if verdict is None:
                return name, False, {}
            if request.pools and self._makes(name, verdict):
                return name, True, {}
            refused[name] = replace(verdict, text=f"for {apart.what}: {verdict.text}")
        makes = next((name for name, verdict in refused.items() if self._makes(name, verdict)), None)
        if makes is not None and not request.pools:
            return makes, True, {}
        if not refused:
            text = (
                f"onDemand.ranks: there is no on-demand pool for {apart.what}; name a SpotPool with capacityType "
                "OnDemand in spec.pools, or name no pools"
            )
            refused[""] = Verdict("PoolNotFound", text)
        return "", False, refused

    def _without(
        self, job: Waiting, refused: dict[str, Verdict], wakes: list[float], avoid: frozenset[str]
    ) -> Choice:
        """The part that goes apart has no pool, so no gang: say what else is missing."""
        for name in self._order(job):
            verdict = None
            if name not in self._on_demand and name not in refused:
                verdict = self._barred(job, job.request, name, wakes)
                if verdict is None and not job.request.queued:
                    verdict = self._short(job, name, self._pods(job, name), avoid)
            if verdict is not None:
                refused[name] = verdict
        return Choice(job.request, None, refused, wake_at=min(wakes, default=None))

    def _add(
        self, job: Waiting, made: Choice, beside: str, provisioned: bool, avoid: frozenset[str]
    ) -> Choice:
        """Give the part that goes apart its pool, too, where the rest has got a spot pool."""
        apart = job.request.apart
        if apart is None or made.pool in self._on_demand:
            return made
        laid: list[str] = []
        if provisioned:
            self._provisioning[beside] = self._provisioning.get(beside, 0) + 1
        elif not job.request.queued:
            laid = self._ledger.take(beside, job.shape, apart.pods, avoid)
        # What is said of it as a pool for the whole gang is of no interest now.
        later = {name: why for name, why in made.later.items() if name != beside}
        refused = {name: verdict for name, verdict in made.refused.items() if name != beside}
        waits = (*made.provisioned, beside) if provisioned else made.provisioned
        laid = [*made.laid, *laid]
        return replace(made, beside=beside, later=later, refused=refused, laid=tuple(laid), provisioned=waits)

    def _order(self, job: Waiting) -> list[str]:
        """Spot pools before on-demand ones, which only stand in: of either kind first those that are not to be tried
        last. A pool on which a gang did not become whole has no room, whatever it counts, so it comes behind both.
        """
        request = job.request
        if request.pools:
            names = list(request.pools)
        else:
            # Nobody named the on-demand pools: where they are not allowed, they are not worth a word.
            refused = request.refused
            unwanted = {name for name, (word, _) in refused.items() if word == "OnDemandNotAllowed"}
            every = self._supply.pools.keys() - unwanted if unwanted else self._supply.pools
            names = sorted(every, key=lambda name: self._score(job, name))
        if request.last or self._on_demand:
            names.sort(key=lambda name: (name in request.late, name in self._on_demand, name in request.last))
        return names

    def _score(self, job: Waiting, name: str) -> tuple[bool, float, str]:
        priced, per_gpu = self._prices[name]
        slots, pods = self._ledger.slots(name, job.shape), self._pods(job, name)
        spare = (slots - pods) / slots if slots >= pods else 1.0
        return not priced, score(per_gpu, self._rates[name], job.request.interval, spare), name

    def _price(self, name: str) -> tuple[bool, float]:
        """Whether the pool's price is known, and what a GPU costs an hour."""
        price = self._supply.price(name)
        return price is not None, float(price or 1) / self._supply.gpus_per_node(name)

    def _makes(self, name: str, verdict: Verdict) -> bool:
        """Whether pods may be made there for an autoscaler, although they do not fit now."""
        return verdict.reason in LACKS and self._autoscaled(name) and not self._is_busy(name)

    def _autoscaled(self, name: str) -> bool:
        return self._supply.pools[name].spec.provisioning == "Autoscaled"

    def _is_busy(self, name: str) -> bool:
        return self._provisioning.get(name, 0) >= self._supply.pools[name].spec.max_provisioning_gangs

    def _make(
        self, job: Waiting, name: str, refused: Mapping[str, Verdict], later: Mapping[str, str]
    ) -> Choice:
        self._provisioning[name] = self._provisioning.get(name, 0) + 1
        why = "it has no room now: its pods are made for the autoscaler to see"
        return Choice(job.request, name, refused, later, why=why, provisioned=(name,))

    def _barred(self, job: Waiting, request: Request, name: str, wakes: list[float]) -> Verdict | None:
        """Why the pool is not tried at all, however much is free there."""
        pool = self._supply.pools.get(name)
        if pool is None:
            return Verdict("PoolNotFound", "no such SpotPool; create it or mend spec.pools")
        if job.shape.confined:
            memo = name, job.shape
            conflict = self._conflicts.get(memo)
            if conflict is None:
                conflict = self._conflicts[memo] = contradiction(pool.spec.node_selector, job.shape)
            if conflict:
                return Verdict("SelectorConflict", conflict)
        said = request.refused.get(name)
        if said is not None:
            return Verdict(*said)
        until = self._breakers[name]
        if until is not None:
            wakes.append(until)
            limit = pool.spec.max_interruptions_per_hour
            text = f"breaker open until {format_second(until)} (more than {limit} interruptions in an hour)"
            return Verdict("BreakerOpen", text)
        return None

    def _short(self, job: Waiting, name: str, pods: int, avoid: frozenset[str]) -> Verdict | None:
        """Why so many of the gang's pods do not fit into the pool now, or None where they do."""
        slots = self._ledger.slots(name, job.shape, avoid)
        if slots >= pods:
            return None
        if self._autoscaled(name) and self._is_busy(name):
            waits = self._provisioning[name]
            text = f"{waits} gangs wait for nodes of its autoscaler already (maxProvisioningGangs)"
            return Verdict("NoCapacity", text, pods)
        if avoid:
            return replace(self._shortage(job, name, pods, slots, avoid), pods=pods)
        memo, changes = (name, job.shape, pods), self._ledger.changes[name]
        known = self._shortages.get(memo)
        if known is None or known[0] != changes:
            made = replace(self._shortage(job, name, pods, slots, avoid), pods=pods)
            known = self._shortages[memo] = changes, made
        return known[1]

    def _shortage(self, job: Waiting, name: str, pods: int, slots: int, avoid: frozenset[str]) -> Verdict:
        supply = self._supply
        members, fit = supply.members(name), supply.fit(name, job.shape)
        if not members:
            return Verdict("NoCapacity", "no node matches its nodeSelector")
        if not fit.usable:
            text = (
                f"none of its {len(members)} nodes is ready and free of notices and cordons, and one that the "
                "template's nodeSelector, nodeAffinity and tolerations allow"
            )
            return Verdict("NoCapacity", text)
        if not fit.attachable:
            where = " and ".join(describe(terms) for terms in job.shape.volumes)
            text = f"to none of its {fit.usable} usable nodes can the job's volumes be attached ({where})"
            return Verdict("NoCapacity", text)
        if avoid and all(node in avoid for node in self._fitting(job.shape, name)):
            text = f"its {fit.attachable} usable nodes are avoided for now: attempts failed there"
            return Verdict("NoCapacity", text)
        if self._ledger.holds(name) and self._ledger.slots_unheld(name, job.shape) >= pods:
            text = f"what is free there is kept for {self._holders[name]}, which is before this job"
            return Verdict("HeldForAnother", text)
        resource = self._supply.pools[name].spec.gpu_resource
        count = job.request.replicas if job.request.one_node else pods
        free, most = self._free(job.shape, name)
        each = job.shape.need(resource) // (count if job.request.one_node else 1)
        if job.request.one_node:
            text = (
                f"{count} pods of {each} {resource} do not fit on one node, as their ReadWriteOnce claim needs it: "
                f"at most {most} free on one of {fit.attachable} nodes"
            )
        else:
            text = (
                f"{count} pods of {each} {resource} do not fit: {free} free on {fit.attachable} nodes, room for "
                f"{slots}"
            )
        if fit.ever < pods:
            most = supply.whole(name, job.shape)
            if most < pods:
                return Verdict("GangTooLarge", f"{text}, and for {most} if the nodes were empty")
            out = sum(not usable(node) for node in members.values())
            if out:
                text += f"; {out} of its nodes are not ready, cordoned or have a notice"
        return Verdict("NoCapacity", text)

    def _fitting(self, shape: Shape, name: str) -> list[str]:
        """The pool's nodes that take a pod of that shape, apart from room."""
        return [node for node, spot in self._supply.fit(name, shape).spots.items() if spot.attaches]

    def _free(self, shape: Shape, name: str) -> tuple[int, int]:
        """GPUs that are free on the pool's nodes that take such a pod, and at most on one of them."""
        memo, changes = (name, *shape.where), self._ledger.changes[name]
        known = self._frees.get(memo)
        if known is None or known[0] != changes:
            resource = self._supply.pools[name].spec.gpu_resource
            free = [max(0, self._ledger.left(node, resource)) for node in self._fitting(shape, name)]
            known = self._frees[memo] = changes, (sum(free), max(free))
        return known[1]

    def _give(
        self,
        job: Waiting,
        name: str,
        refused: dict[str, Verdict],
        rest: Sequence[str],
        wakes: list[float],
        avoid: frozenset[str],
    ) -> Choice:
        why, later = "", dict.fromkeys(rest, "")
        if not job.request.pools:
            # All were looked at for their score: say what it was, or why there is none.
            later = {}
            for other in rest:
                verdict = self._barred(job, job.request, other, wakes)
                verdict = verdict or self._short(job, other, self._pods(job, other), avoid)
                if verdict is not None:
                    refused[other] = verdict
                else:
                    later[other] = f" (score {self._score(job, other)[1]:.4g})"
            why = f"score {self._score(job, name)[1]:.4g}"
        laid = self._ledger.take(name, job.shape, self._pods(job, name), avoid)
        node = laid[0] if job.request.one_node and laid else ""
        return Choice(job.request, name, refused, later, node=node, laid=tuple(laid), why=why)

    def _hold(self, job: Waiting, refused: Mapping[str, Verdict]) -> None:
        """Keep what is free in one pool for the job, where it is the first that waits there."""
        best: tuple[int, int] | None = None
        chosen = ""
        for place, (name, verdict) in enumerate(refused.items()):
            if verdict.reason != "NoCapacity" or self._ledger.holds(name):
                continue
            if name in job.request.last and not set(refused) <= job.request.last:
                continue
            if self._supply.fit(name, job.shape).ever < verdict.pods:
                continue
            missing = verdict.pods - self._ledger.slots(name, job.shape, job.request.avoid)
            if best is None or (missing, place) < best:
                best, chosen = (missing, place), name
        if chosen:
            self._holders[chosen] = f"{job.key[0]}/{job.key[1]}"
            self._ledger.hold(chosen, job.shape, refused[chosen].pods, job.request.avoid)
