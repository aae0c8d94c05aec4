"""The source of a provider, by its name. Only the chosen one's module is imported: each costs memory on every node."""

from typing import Final

from spot_training.node.sources import Source

PROVIDERS: Final = ("eci", "aws", "gcp", "azure", "alibaba", "tencent")
ECI_SOCKET: Final = "/run/eci-guest-agent.sock"


def choose(provider: str, eci_socket: str = ECI_SOCKET, azure_approve: bool = False) -> Source:
    """The source of one of ``PROVIDERS``; ``ValueError`` for another name."""
    match provider:
        case "eci":
            from spot_training.node.sources.eci import eci

            return eci(eci_socket)
        case "aws":
            from spot_training.node.sources.aws import aws

            return aws()
        case "gcp":
            from spot_training.node.sources.gcp import gcp

            return gcp()
        case "azure":
            from spot_training.node.sources.azure import azure

            return azure(approvals=azure_approve)
        case "alibaba":
            from spot_training.node.sources.alibaba import alibaba

            return alibaba()
        case "tencent":
            from spot_training.node.sources.tencent import tencent

            return tencent()
    raise ValueError(f"{provider!r} is none of the known providers: {', '.join(PROVIDERS)}")
