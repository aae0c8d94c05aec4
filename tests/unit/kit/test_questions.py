"""What is asked in kubectl's words."""

import pytest

from tests.kit.questions import Kind, parsed

PODS = Kind("/api/v1", "pods", namespaced=True)
NODES = Kind("/api/v1", "nodes", namespaced=False)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("pods", ("pods", [], {"namespace": "default"})),
        ("pod/a -n there", ("pod", ["a"], {"namespace": "there"})),
        ("nodes a b", ("nodes", ["a", "b"], {"namespace": "default"})),
        ("pods -A -l x=y,z", ("pods", [], {"namespace": "", "labelSelector": "x=y,z"})),
        ("events --field-selector a=b", ("events", [], {"namespace": "default", "fieldSelector": "a=b"})),
    ],
)
def test_words_are_understood(words: str, meant: object) -> None:
    assert parsed(words.split()) == meant


def test_words_that_are_not_understood_are_refused() -> None:
    with pytest.raises(ValueError, match="'-w' is not understood"):
        parsed(["pods", "-w"])


def test_where_objects_are() -> None:
    assert PODS.path("there", "a") == "/api/v1/namespaces/there/pods/a"
    assert PODS.path("") == "/api/v1/pods"
    assert NODES.path("default", "a") == "/api/v1/nodes/a"
