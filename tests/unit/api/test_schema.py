"""The CRDs: what is on disk is what the models say, and what cannot be said is refused."""

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from spot_training.api import schema
from spot_training.api.model import Model, OpenModel
from spot_training.api.schema import SchemaError, crds, structural

ROOT = Path(__file__).parents[3]
ANNOTATION_LIMIT = 262_144
"""`kubectl apply` keeps the whole object in one annotation; all annotations together have this much room."""


@pytest.mark.parametrize("name", sorted(crds()))
def test_what_is_on_disk_is_what_the_models_say(name: str) -> None:
    text = (ROOT / "crds" / name).read_text()
    assert yaml.safe_load(text) == crds()[name], "run `make crds`"
    assert len(text) < ANNOTATION_LIMIT / 4


def test_the_command_writes_and_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert schema.main(["--check", str(tmp_path)]) == 1
    assert schema.main(["--write", str(tmp_path)]) == 0
    assert schema.main(["--check", str(tmp_path)]) == 0
    (tmp_path / "spotpools.yaml").write_text("{}")
    assert schema.main(["--check", str(tmp_path)]) == 1
    assert "spotpools.yaml: differs from the models; run `make crds`" in capsys.readouterr().err


class Unbounded(Model):
    words: list[str]


class UnboundedText(Model):
    inner: Annotated[list[str], Field(max_length=3)]


class UnboundedMap(Model):
    labels: dict[str, Annotated[str, Field(max_length=3)]]


class Choice(Model):
    value: int | bool


class Number(Model):
    price: float


class Anything(Model):
    value: Any


class Deep(Model):
    parts: Annotated[list[Number], Field(max_length=3)]


class Odd(Model):
    even: Annotated[int, Field(multiple_of=2)]


@pytest.mark.parametrize(
    ("model", "path", "words"),
    [
        (Unbounded, "Unbounded.words", "a list needs a bound"),
        (UnboundedText, "UnboundedText.inner[]", "a string needs a bound"),
        (UnboundedMap, "UnboundedMap.labels", "a map needs a bound"),
        (Choice, "Choice.value", "a choice of types"),
        (Number, "Number.price", "type 'number'"),
        (Deep, "Deep.parts[].price", "type 'number'"),
        (Anything, "Anything.value", "type None"),
        (Odd, "Odd.even", "multipleOf"),
    ],
)
def test_what_a_structural_schema_cannot_say_is_refused_by_its_path(
    model: type[Model], path: str, words: str
) -> None:
    with pytest.raises(SchemaError) as caught:
        structural(model)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


class Inner(OpenModel):
    word: Annotated[str, Field(max_length=5)]


class Outer(Model):
    one: Inner | None = None
    many: Annotated[tuple[Inner, ...], Field(max_length=2)] = ()
    by_name: Annotated[dict[str, Inner], Field(max_length=2)] | None = None


def test_references_are_inlined_and_optional_is_not_null() -> None:
    inner = {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
        "properties": {"word": {"type": "string", "maxLength": 5}},
        "required": ["word"],
        "description": Inner.__doc__,
    }
    made = structural(Outer)["properties"]
    if Inner.__doc__ is None:
        del inner["description"]
    assert made["one"] == inner
    assert made["many"] == {"type": "array", "maxItems": 2, "default": [], "items": inner}
    assert made["byName"] == {"type": "object", "maxProperties": 2, "additionalProperties": inner}


def parts(node: Any, path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """Every schema in a schema, with its path."""
    found = [(path, node)]
    for name, inner in (node.get("properties") or {}).items():
        found += parts(inner, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "[*]")):
        if isinstance(node.get(key), dict):
            found += parts(node[key], path + mark)
    return found


@pytest.mark.parametrize("name", sorted(crds()))
def test_every_part_is_structural_and_bounded(name: str) -> None:
    made = crds()[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in parts({"properties": {key: made["properties"][key] for key in ("spec", "status")}}):
        if not path:
            continue
        assert "$ref" not in node, path
        assert "nullable" not in node, path
        assert node.get("default", "") is not None, path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert node.get("type") != "array" or "maxItems" in node, path
        assert node.get("type") != "string" or {"maxLength", "enum"} & set(node), path
        for each in node.get("x-kubernetes-validations", ()):
            assert each["message"], path


@pytest.mark.parametrize("name", sorted(crds()))
def test_what_a_rule_looks_at_is_declared(name: str) -> None:
    made = crds()[name]["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    for path, node in parts(made):
        for each in node.get("x-kubernetes-validations", ()):
            for root in re.findall(r"\b(?:self|oldSelf)\.(\w+)", each["rule"]):
                assert root in node.get("properties", {}), f"{path}: {each['rule']}"


@pytest.mark.parametrize("name", sorted(crds()))
def test_columns_show_what_is_there(name: str) -> None:
    version = crds()[name]["spec"]["versions"][0]
    for column in version["additionalPrinterColumns"]:
        node = version["schema"]["openAPIV3Schema"]
        path = column["jsonPath"].split("[")[0].strip(".").split(".")
        if path[0] == "metadata":
            continue
        for part in path:
            assert part in node["properties"], column
            node = node["properties"][part]
