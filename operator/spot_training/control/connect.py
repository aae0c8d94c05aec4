"""How the operator is known to the API server: as its pod, or, run by hand, as the user's kubeconfig says."""

import os
import ssl

from spot_training.cluster.client import Connection, in_cluster


def connection() -> Connection:
    """The pod's service account where there is one, else the kubeconfig's current context.

    The kubeconfig is read by the ``kubernetes`` client, which knows every way to log in; it is imported only here,
    since in a pod it would only cost memory.
    """
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if host:
        return in_cluster(host, os.environ.get("KUBERNETES_SERVICE_PORT", "443"))
    from kubernetes import client, config

    said = client.Configuration()
    config.load_kube_config(client_configuration=said)
    tls = ssl.create_default_context(cafile=said.ssl_ca_cert)
    if said.cert_file:
        tls.load_cert_chain(said.cert_file, said.key_file)
    # What the client itself would send: the name under which it keeps a token has changed between its versions.
    bearer = said.auth_settings().get("BearerToken", {}).get("value")
    return Connection(said.host, tls, token=bearer.removeprefix("Bearer ") if bearer else None)
