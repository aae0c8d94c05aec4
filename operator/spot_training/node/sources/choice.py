"""The source of a provider, by its name. Only the chosen one's module is imported: each costs memory on every node."""

from typing import Final

from spot_training.node.sources import Source

PROVIDERS: Final = ("eci", "aws", "gcp", "azure", "alibaba", "tencent")
ECI_SOCKET: Final = "/run/eci-guest-agent.sock"


def choose(
    provider: str, eci_socket: str = ECI_SOCKET, endpoint: str = "", azure_approve: bool = False
) -> Source:
    """The source of one of ``PROVIDERS``; ``ValueError`` for another name.

    ``endpoint``: the metadata service's ``http://host:port`` where it is not the documented one; ECI has none.
    """
    there = (endpoint,) if endpoint else ()
    match provider:
        case "eci" if endpoint:
            raise ValueError("eci is asked at its socket (--eci-socket): it has no --metadata-endpoint")
        case "eci":
            from spot_training.node.sources.eci import eci

            return eci(eci_socket)
        case "aws":
            from spot_training.node.sources.aws import aws

            return aws(*there)
        case "gcp":
            from spot_training.node.sources.gcp import gcp

            return gcp(*there)
        case "azure":
            from spot_training.node.sources.azure import azure

            return azure(endpoint, azure_approve) if endpoint else azure(approvals=azure_approve)
        case "alibaba":
            from spot_training.node.sources.alibaba import alibaba

            return alibaba(*there)
        case "tencent":
            from spot_training.node.sources.tencent import tencent

            return tencent(*there)
    raise ValueError(f"{provider!r} is none of the known providers: {', '.join(PROVIDERS)}")
