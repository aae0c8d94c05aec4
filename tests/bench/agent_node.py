"""The agent of the DaemonSet on a real node: at rest, at a notice, and while it empties a full node.

What a process uses is read where it runs, in the node's container.
"""

import asyncio
import json
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from spot_training.cluster.client import Client, core_path
from tests.bench.agent_notice import COLD_SECONDS
from tests.bench.report import Report
from tests.kit import engine, install, layout, reach
from tests.kit.fleet import Member, watched
from tests.kit.guest_agent import control, server
from tests.kit.kube import apply, get, kubectl
from tests.kit.shell import wait_until

Json = dict[str, Any]

SPOT: Final = tuple(worker.name for worker in layout.WORKERS if worker.capacity_type == "spot")
IDLE_SECONDS: Final = 60.0
TRIALS: Final = 15
SEED: Final = 20_260_408

NAMESPACE: Final = "bench-drain"
DRAINED: Final = SPOT[0]
NOTICE_SECONDS: Final = 60.0
QUICK, SLOW = 88, 10
ENDS_AT_ONCE: Final = 'trap "exit 0" TERM; sleep infinity & wait'
IGNORES: Final = 'trap "" TERM; sleep infinity'
PODS_RUN_SECONDS: Final = 280.0


class Process:
    """The agent's process on a node."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.id = engine.docker("exec", node, "pgrep", "-f", "spot_training agent").split()[0]

    def cpu_seconds(self) -> float:
        """What its threads have had of the processors so far."""
        lines = self._shell(f"cat /proc/{self.id}/task/*/schedstat").splitlines()
        return sum(int(line.split()[0]) for line in lines) / 1e9

    def memory_mib(self, field: str = "VmRSS") -> float:
        """What it has in memory; with `VmHWM` the most that it had since the last reset."""
        found = re.search(rf"^{field}:\s+(\d+) kB", self._shell(f"cat /proc/{self.id}/status"), re.MULTILINE)
        assert found
        return int(found[1]) / 1024

    def reset_peak(self) -> None:
        """Forget the most that it had in memory."""
        self._shell(f"echo 5 >/proc/{self.id}/clear_refs")

    def _shell(self, script: str) -> str:
        return engine.docker("exec", self.node, "sh", "-c", script)


async def idle(report: Report) -> None:
    """Nothing is announced; the agent asks each second, and kubelet asks the agent."""
    processes = [Process(node) for node in SPOT]
    began, before = time.monotonic(), [process.cpu_seconds() for process in processes]
    await asyncio.sleep(IDLE_SECONDS)
    seconds, after = time.monotonic() - began, [process.cpu_seconds() for process in processes]
    used = [100 * (b - a) / seconds for a, b in zip(before, after, strict=True)]
    report.trials("idle_cpu_percent", used, "% of a core", "<= 0.5", percentile=100)
    report.trials("idle_rss_mib", [process.memory_mib() for process in processes], "MiB", percentile=100)


async def polled(report: Report, trials: int = TRIALS) -> None:
    """Notices at random moments to the DaemonSet's pods, which are asked for the part after the answer."""
    whole: list[float] = []
    after_answer: list[float] = []
    chance = random.Random(SEED)

    async def repeat(member: Member, pod: str) -> None:
        while len(whole) < trials:
            before = await asyncio.to_thread(_cordon_seconds, pod)
            await asyncio.sleep(chance.random())
            began = await asyncio.to_thread(_announce, member.name)
            await member.until("the cordon", lambda: member.cordoned_at is not None)
            assert member.cordoned_at is not None
            whole.append(member.cordoned_at - began)
            after_answer.append(await asyncio.to_thread(_cordon_seconds, pod) - before)
            await asyncio.to_thread(control.withdraw, member.name)
            await member.until("the end of the cordon", lambda: not member.cordoned)
            await asyncio.sleep(COLD_SECONDS)

    async with Client(reach.administrator()) as admin:
        found = {name: Member(name, reach.nobody()) for name in SPOT}
        async with watched(admin, f"{layout.CAPACITY_TYPE}=spot", found):
            await asyncio.gather(*(repeat(member, _agent(name)) for name, member in found.items()))
    report.trials("daemonset_notice_to_cordon_p99_seconds", whole[:trials], "s", "<= 1.1", percentile=99)
    report.trials("daemonset_answer_to_cordon_median_seconds", after_answer[:trials], "s", "<= 0.05")


async def drain(report: Report) -> None:
    """A hundred pods and a minute: most end when told, ten take their 30 s, two have to be made to."""
    process = Process(DRAINED)
    async with Client(reach.administrator()) as admin:
        async with _full_node(admin) as gone:
            process.reset_peak()
            deadline = control.reclaim(DRAINED, NOTICE_SECONDS).timestamp()
            began = time.time()
            with_all = await _empty(gone, deadline - time.time())
            left = [] if with_all else await _pods(admin)
            if left:
                print("left at the deadline:", [(pod["metadata"]["name"], pod["status"]) for pod in left])
                await _empty(gone, 60.0)
            peak = process.memory_mib("VmHWM")
            last = max(gone.values())
        assert Process(DRAINED).id == process.id, "the agent was restarted in its drain"
    report.value("pods_left_at_deadline", float(len(left)), "of 100 pods", "<= 0")
    report.value("drain_margin_seconds", deadline - last, "s")
    report.trials("drain_pod_gone_seconds", [at - began for at in gone.values()], "s")
    report.value("drain_peak_rss_mib", peak, "MiB", "<= 48")


@asynccontextmanager
async def _full_node(admin: Client) -> AsyncIterator[dict[str, float]]:
    """The node with its hundred pods running; gives when each was gone, by name, as a watch tells it."""
    kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=true")
    kubectl("create", "namespace", NAMESPACE)
    gone: dict[str, float] = {}
    try:
        apply(
            _budget(),
            *(_pod(f"quick-{index:02}", ENDS_AT_ONCE, 30) for index in range(QUICK)),
            *(_pod(f"slow-{index:02}", IGNORES, 30) for index in range(SLOW)),
            _pod("ignores", IGNORES, 600),
            _pod("guarded", ENDS_AT_ONCE, 30, app="guarded"),
        )
        kubectl(
            *("-n", NAMESPACE, "wait", "pod", "--all", "--for=condition=Ready"),
            f"--timeout={PODS_RUN_SECONDS:.0f}s",
            timeout=PODS_RUN_SECONDS + 30,
        )
        listed = await admin.get(core_path(NAMESPACE, "pods"))

        async def watch(version: str) -> None:
            async for event in admin.watch(core_path(NAMESPACE, "pods"), version):
                if event["type"] == "DELETED":
                    gone[event["object"]["metadata"]["name"]] = time.time()

        watching = asyncio.create_task(watch(listed["metadata"]["resourceVersion"]))
        try:
            yield gone
        finally:
            watching.cancel()
    finally:
        control.withdraw(DRAINED)
        kubectl("delete", "namespace", NAMESPACE, "--wait=true", timeout=180)
        wait_until(
            f"{DRAINED} as it was before",
            lambda: not get(f"node/{DRAINED}")[0]["spec"].get("unschedulable"),
            timeout=60,
            seen=lambda: kubectl("get", "node", DRAINED, "-o", "yaml"),
        )


async def _empty(gone: dict[str, float], seconds: float) -> bool:
    """Wait so long for the last pod to go; whether it did."""
    until = time.monotonic() + seconds
    while len(gone) < QUICK + SLOW + 2:
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.05)
    return True


async def _pods(admin: Client) -> list[Json]:
    found: list[Json] = (await admin.get(core_path(NAMESPACE, "pods")))["items"]
    return found


def _budget() -> Json:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "never", "namespace": NAMESPACE},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}},
    }


def _pod(name: str, script: str, grace: int, app: str = "filler") -> Json:
    container = {
        "name": "main",
        "image": install.OPERATOR_IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": app}},
        "spec": {
            "nodeName": DRAINED,
            "terminationGracePeriodSeconds": grace,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "tolerations": [{"operator": "Exists"}],
            "containers": [container],
        },
    }


def _announce(node: str) -> float:
    """Have the node's guest agent announce a reclamation; the monotonic time from which on it does."""
    at = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() + 240))
    script = f"echo '{at}' >{server.STATE}.new && mv {server.STATE}.new {server.STATE} && date +%s.%N"
    return float(engine.docker("exec", node, "sh", "-c", script)) - time.time() + time.monotonic()


def _agent(node: str) -> str:
    """The name of the agent's pod on a node."""
    pods = get("pods", "-n", install.NAMESPACE, "-l", "app.kubernetes.io/component=agent")
    name: str = next(pod["metadata"]["name"] for pod in pods if pod["spec"]["nodeName"] == node)
    return name


def _cordon_seconds(pod: str) -> float:
    """The sum of what the agent has counted from answers to cordons."""
    path = f"/api/v1/namespaces/{install.NAMESPACE}/pods/{pod}:9808/proxy/metrics"
    text = kubectl("get", "--raw", path)
    found = re.search(r"^spot_agent_notice_to_cordon_seconds_sum (\S+)", text, re.MULTILINE)
    assert found, json.dumps(text[:500])
    return float(found[1])
