"""What the agent counts, for Prometheus. Labels are bounded: kinds, sources and results; the node is the scrape's."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

_CORDON_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0)


class Metrics:
    """The agent's metrics in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.notices = Counter(
            "spot_agent_notices", "Notices of a reclamation first seen", ["kind", "source"], registry=registry
        )
        self.cordon_seconds = Histogram(
            "spot_agent_notice_to_cordon_seconds",
            "From the source's answer to the Node's marks being stored",
            buckets=_CORDON_BUCKETS,
            registry=registry,
        )
        self.polls = Counter(
            "spot_agent_polls",
            "Questions to the source, by answer: nothing, notice, unknown",
            ["source", "result"],
            registry=registry,
        )
        self.evictions = Counter(
            "spot_agent_evictions",
            "Requests to remove a pod, by result: evicted, deleted, gone, refused (by a budget), failed",
            ["result"],
            registry=registry,
        )
        self.pods_left = Gauge(
            "spot_agent_pods_left", "Pods that a drain in progress still waits for", registry=registry
        )
        self.webhook = Counter(
            "spot_agent_webhook_messages",
            "Messages to the webhook, by occasion, and by result: sent, failed",
            ["occasion", "result"],
            registry=registry,
        )
        self.hooks = Counter(
            "spot_agent_hook_calls",
            "Calls of the hooks, by way: command, url; and by result: done, failed, timeout",
            ["way", "result"],
            registry=registry,
        )
        self.approvals = Counter(
            "spot_agent_approvals",
            "Events that the cloud was told to go ahead with, by result: approved, failed",
            ["result"],
            registry=registry,
        )
        self.deadline_margin = Gauge(
            "spot_agent_deadline_margin_seconds",
            "Seconds left to the deadline when the last drain ended; negative: too late; NaN: no drain yet",
            registry=registry,
        )
        self.deadline_margin.set(float("nan"))
        self._since = Gauge(
            "spot_agent_seconds_since_good_poll",
            "Since the source last answered in its own words, or since the start",
            registry=registry,
        )
        self._good_poll = time.monotonic()
        self._since.set_function(lambda: time.monotonic() - self._good_poll)

    def good_poll(self) -> None:
        """The source has answered, one way or the other."""
        self._good_poll = time.monotonic()
