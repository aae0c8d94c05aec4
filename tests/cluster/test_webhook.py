"""What goes out of the cluster goes only to who can prove who he is."""

import json

from spot_training.node.post import Posted, post
from tests.kit.kube import kubectl


async def test_a_server_whose_certificate_nobody_vouches_for_is_told_nothing() -> None:
    cluster = json.loads(kubectl("config", "view", "-o", "json"))["clusters"][0]["cluster"]
    # The API server's certificate is the cluster's own authority's, which this client has not been told of.
    assert await post(cluster["server"], {}, 10) == Posted(0, "ClientConnectorCertificateError")
