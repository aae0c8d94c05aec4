"""Reading from the API server over one connection a thread: what waits asks several times a second.

A kubectl for each question takes a tenth of a processor's second, which two processors that also train, compile and
run a cluster do not have. What is asked for is said in kubectl's words.
"""

import base64
import http.client
import json
import ssl
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode, urlsplit

import yaml

from tests.kit import places
from tests.kit.shell import CommandError

Json = dict[str, Any]

OPTIONS: Final = {
    "-n": "namespace",
    "--namespace": "namespace",
    "-l": "labelSelector",
    "--field-selector": "fieldSelector",
}
EVERYWHERE: Final = ("-A", "--all-namespaces")
TIMEOUT_SECONDS: Final = 60.0
_DISCOVERY: Final = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
_own = threading.local()


@dataclass(frozen=True)
class Kind:
    """A kind as the API server serves it: the beginning of its path, and its name there."""

    base: str
    plural: str
    namespaced: bool

    def path(self, namespace: str, name: str = "") -> str:
        """Where its objects are; of all namespaces, where `namespace` is empty."""
        within = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        return f"{self.base}{within}/{self.plural}" + (f"/{quote(name)}" if name else "")


class _Server:
    """The API server that the kubeconfig names, and the kinds that it has."""

    def __init__(self, kubeconfig: str) -> None:
        found = yaml.safe_load(kubeconfig)
        cluster, user = found["clusters"][0]["cluster"], found["users"][0]["user"]
        self.kubeconfig = kubeconfig
        self._address = urlsplit(cluster["server"]).netloc
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._tls = ssl.create_default_context(cadata=authority)
        with tempfile.TemporaryDirectory() as directory:
            certificate, key = Path(directory, "certificate"), Path(directory, "key")
            certificate.write_bytes(base64.b64decode(user["client-certificate-data"]))
            key.write_bytes(base64.b64decode(user["client-key-data"]))
            self._tls.load_cert_chain(certificate, key)
        self._kinds: dict[str, Kind] = {}

    def kind(self, name: str) -> Kind | None:
        """The kind of that name, plural, singular or short, with or without its group."""
        if name not in self._kinds:
            self._kinds = self._discovered()
        return self._kinds.get(name)

    def _discovered(self) -> dict[str, Kind]:
        found: dict[str, Kind] = {}
        for root in ("/api", "/apis"):
            for group in self.answer(root, _DISCOVERY)["items"]:
                suffix = group["metadata"].get("name", "")
                for version in group["versions"]:
                    base = "/".join(part for part in (root, suffix, version["version"]) if part)
                    for each in version.get("resources", []):
                        kind = Kind(base, each["resource"], each["scope"] == "Namespaced")
                        for word in _names(each):
                            # As with kubectl, the first group that has the name is meant, and its first version.
                            found.setdefault(word, kind)
                            found.setdefault(f"{word}.{suffix}", kind)
        return found

    def answer(self, path: str, accept: str = "application/json") -> Json:
        """The object or list at this path; raises as :meth:`text` does."""
        found: Json = json.loads(self.text(path, accept))
        return found

    def text(self, path: str, accept: str = "application/json") -> str:
        """What is at this path. Raises CommandError with the API server's words, or where it does not answer."""
        words = ["GET", path]
        for again in (True, False):
            connection = self._connection()
            try:
                connection.request("GET", path, headers={"Accept": accept})
                response = connection.getresponse()
                body = response.read()
                break
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # One that has lain idle may have been closed at the other end.
                if not again:
                    raise CommandError(words, "was not answered", repr(error)) from error
        if response.status != 200:
            raise CommandError(words, f"was answered {response.status}", body.decode(errors="replace"))
        return body.decode()

    def _connection(self) -> http.client.HTTPSConnection:
        if getattr(_own, "server", None) is not self:
            _own.server = self
            _own.connection = http.client.HTTPSConnection(
                self._address, timeout=TIMEOUT_SECONDS, context=self._tls
            )
        connection: http.client.HTTPSConnection = _own.connection
        return connection


def _names(resource: Json) -> list[str]:
    """By which a kind can be asked for, from what the API server says of it."""
    words = [resource["resource"], resource.get("singularResource", ""), *resource.get("shortNames", [])]
    return [word for word in words if word]


_lock = threading.Lock()
_known: list[_Server] = []


def _server() -> _Server:
    """The server of today's kubeconfig: a cluster that is made anew has another address and other certificates."""
    try:
        text = places.KUBECONFIG.read_text()
    except OSError as error:
        raise CommandError(["GET"], "is asked of nobody", repr(error)) from error
    with _lock:
        if not _known or _known[0].kubeconfig != text:
            _known[:] = [_Server(text)]
        return _known[0]


def objects(words: Sequence[str]) -> list[Json]:
    """The objects that `kubectl get` with these words gives, such as `("pods", "-n", "default", "-l", "a=b")`.

    Raises CommandError where the API server refuses, does not know what is asked for, or does not answer.
    """
    what, names, options = parsed(words)
    namespace = options.pop("namespace")
    server = _server()
    kind = server.kind(what)
    if kind is None:
        raise CommandError(["get", *words], "asks for what is not there", f"no kind {what!r}")
    if names:
        return [server.answer(kind.path(namespace, name)) for name in names]
    answer = server.answer(kind.path(namespace) + (f"?{urlencode(options)}" if options else ""))
    same = {"apiVersion": answer["apiVersion"], "kind": answer["kind"].removesuffix("List")}
    return [{**same, **each} for each in answer["items"]]


def log(namespace: str, pod: str) -> str:
    """What the only container of a pod has written; raises CommandError where there is no such log."""
    return _server().text(f"/api/v1/namespaces/{namespace}/pods/{quote(pod)}/log", accept="*/*")


def parsed(words: Sequence[str]) -> tuple[str, list[str], dict[str, str]]:
    """What kind, which names (none: all), and what narrows it down."""
    options, plain = {"namespace": "default"}, []
    rest = iter(words)
    for word in rest:
        if word in EVERYWHERE:
            options["namespace"] = ""
        elif word in OPTIONS:
            options[OPTIONS[word]] = next(rest)
        elif word.startswith("-"):
            raise ValueError(f"{word!r} is not understood: ask kubectl")
        else:
            plain.append(word)
    what, _, name = plain[0].partition("/")
    return what, [name] if name else plain[1:], options
