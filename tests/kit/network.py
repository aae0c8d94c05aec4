"""The pods' network on nodes whose image has no kindnet.

It does what kindnet does, once instead of continually: on each node a CNI configuration for that node's own
range of pod addresses, a route to every other node's range by that node's address, and masquerading for what
leaves the pods' network. The configuration lies in the node's file system and survives a restart of its
container; routes and rules are in the kernel and go with it, and the address may be another one afterwards, on
which the other nodes' routes depend. So everything is applied on all nodes each time; applying again is harmless.
"""

import json
from typing import Final

from tests.kit import engine
from tests.kit.shell import run, together

POD_SUBNET: Final = "10.244.0.0/16"
_CNI_FILE: Final = "/etc/cni/net.d/10-spot-training.conflist"


def apply(pod_ranges: dict[str, str]) -> None:
    """Make the network on the running nodes. `pod_ranges` maps each node's name to its `spec.podCIDR`."""
    addresses = {node: address(node) for node in pod_ranges}

    def apply_on(node: str) -> None:
        routes = [
            f"ip route replace {pod_range} via {addresses[other]}"
            for other, pod_range in pod_ranges.items()
            if other != node and addresses[other]
        ]
        rule = f"POSTROUTING -s {pod_ranges[node]} ! -d {POD_SUBNET} -j MASQUERADE"
        script = [
            "set -e",
            *routes,
            f"iptables -t nat -C {rule} 2>/dev/null || iptables -t nat -A {rule}",
            f"cat >{_CNI_FILE}.new <<'END'\n{_cni_configuration(pod_ranges[node])}\nEND",
            f"cmp -s {_CNI_FILE}.new {_CNI_FILE} || mv {_CNI_FILE}.new {_CNI_FILE}",
            f"rm -f {_CNI_FILE}.new",
        ]
        run([engine.client(), "exec", "-i", node, "sh"], stdin="\n".join(script) + "\n", timeout=60)

    together(*(lambda node=node: apply_on(node) for node in pod_ranges if addresses[node]))


def address(node: str) -> str:
    """The address of a node's container; empty while it does not run."""
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    return engine.docker("inspect", "--format", template, node).strip()


def _cni_configuration(pod_range: str) -> str:
    """A veth pair for each pod, with addresses of this node's range. /run is empty again after a restart, as
    the pods are, so no address stays taken by a pod that is gone.
    """
    configuration = {
        "cniVersion": "0.4.0",
        "name": "spot-training",
        "plugins": [
            {
                "type": "ptp",
                "ipMasq": False,
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "dataDir": "/run/cni-ipam-state",
                    "routes": [{"dst": "0.0.0.0/0"}],
                    "ranges": [[{"subnet": pod_range}]],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }
    return json.dumps(configuration, indent=2)


def host_address(node: str) -> str:
    """The address at which a node, and so every pod on it, reaches this machine: its way to everywhere else."""
    return engine.docker("exec", node, "ip", "route", "show", "default").split()[2]
