"""Structural CRD schemas from the pydantic models: ``python -m spot_training.api.schema --write crds``.

A small strict converter: what it cannot express as a structural schema it refuses, naming the path, instead of
passing on something that the API server would prune or reject. ``$ref`` is inlined; ``X | None`` is an optional
X (the API server drops a null before it applies defaults); every list, map and string must have a bound, which
also bounds what the CEL rules can cost.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import yaml

from spot_training.api import job, names, pool, status
from spot_training.api.model import Model

Schema = dict[str, Any]

KEPT = {
    "type", "format", "description", "default", "enum", "pattern",
    "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties",
}  # fmt: skip
DROPPED = {
    "title",
    "$defs",
    "additionalProperties",
    "required",
    "properties",
    "items",
    "anyOf",
    "$ref",
    "const",
}


class SchemaError(ValueError):
    """The model says something that a structural schema cannot."""


def structural(model: type[Model]) -> Schema:
    """The structural schema of a model. Raises :class:`SchemaError` naming the path."""
    made = model.model_json_schema(by_alias=True)
    return _convert(made, made.get("$defs", {}), model.__name__)


def without_defaults(schema: Schema) -> Schema:
    """The schema without its defaults: in a status the API server is to add nothing to what was written."""
    made = {key: value for key, value in schema.items() if key != "default"}
    if isinstance(made.get("properties"), dict):
        made["properties"] = {key: without_defaults(value) for key, value in made["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(made.get(key), dict):
            made[key] = without_defaults(made[key])
    return made


def _convert(node: Schema, defs: Schema, path: str) -> Schema:
    node = _resolve(node, defs, path)
    if node.get("x-kubernetes-int-or-string"):
        return {"x-kubernetes-int-or-string": True, "anyOf": node["anyOf"]}
    unknown = {key for key in node if key not in KEPT | DROPPED and not key.startswith("x-kubernetes-")}
    if unknown:
        raise SchemaError(f"{path}: cannot express {sorted(unknown)}")
    made: Schema = {
        key: value for key, value in node.items() if key in KEPT or key.startswith("x-kubernetes-")
    }
    if "const" in node:
        made["enum"] = [node["const"]]
    kind = node.get("type")
    if kind == "object":
        _convert_object(node, made, defs, path)
    elif kind == "array":
        if "maxItems" not in node:
            raise SchemaError(f"{path}: a list needs a bound (max_length)")
        made["items"] = _convert(node["items"], defs, f"{path}[]")
    elif kind == "string":
        if "maxLength" not in node and "enum" not in made:
            raise SchemaError(f"{path}: a string needs a bound (max_length)")
    elif kind not in ("integer", "boolean"):
        raise SchemaError(f"{path}: cannot express type {kind!r}")
    return made


def _convert_object(node: Schema, made: Schema, defs: Schema, path: str) -> None:
    properties = node.get("properties")
    if properties is not None:
        if "default" in made:
            # CEL rules are tried on the default as it stands here, so the fields' own defaults must be in it.
            made["default"] = _without_nulls(made["default"])
        made["properties"] = {
            name: _convert(value, defs, f"{path}.{name}") for name, value in properties.items()
        }
        if node.get("required"):
            made["required"] = sorted(node["required"])
    else:
        values = node.get("additionalProperties")
        if not isinstance(values, dict):
            raise SchemaError(f"{path}: an object needs declared properties or typed values")
        if "maxProperties" not in node:
            raise SchemaError(f"{path}: a map needs a bound (max_length)")
        made["additionalProperties"] = _convert(values, defs, f"{path}[*]")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return value


def _resolve(node: Schema, defs: Schema, path: str) -> Schema:
    """The node with its reference inlined and its ``| None`` taken off."""
    outer = {key: value for key, value in node.items() if key not in ("$ref", "anyOf")}
    if "$ref" in node:
        return _resolve(defs[node["$ref"].rsplit("/", 1)[1]], defs, path) | outer
    if "anyOf" in node and not node.get("x-kubernetes-int-or-string"):
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise SchemaError(f"{path}: cannot express a choice of types")
        if outer.get("default", "") is None:
            del outer["default"]
        return _resolve(options[0], defs, path) | outer
    return node


def _crd(kind: str, plural: str, short: list[str], scope: str, schema: Schema, columns: list[Any]) -> Schema:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "scope": scope,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural,
                "singular": kind.lower(),
                # Not an empty list: the API server keeps none, and each server-side apply would be a conflict.
                **({"shortNames": short} if short else {}),
                "categories": ["spot"],
            },
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def _resource(
    kind: str, spec: type[Model], state: type[Model], about: str, name_rules: list[Schema]
) -> Schema:
    made: Schema = {
        "description": about,
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(spec),
            "status": without_defaults(structural(state)),
        },
    }
    if name_rules:
        made["x-kubernetes-validations"] = name_rules
    return made


def crds() -> dict[str, Schema]:
    """The CRDs by file name."""
    job_name = {
        "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$') && "
        f"size(self.metadata.name) <= {job.MAX_NAME}",
        "message": "metadata.name: must be lower-case letters, digits and '-', begin with a letter, and have at "
        f"most {job.MAX_NAME} characters (it names the pods and their service)",
    }
    resume_from = {
        "rule": "!has(self.spec.checkpoint.resumeFrom) || "
        "self.spec.checkpoint.resumeFrom.job != self.metadata.name",
        "message": "resumeFrom.job: a job finds its own checkpoints by itself; name another job, or leave it out",
        "fieldPath": ".spec.checkpoint.resumeFrom.job",
    }
    training = _resource(
        names.JOB_KIND,
        job.SpotTrainingJobSpec,
        status.SpotTrainingJobStatus,
        "A training program that runs to its end on spot nodes, however often they are taken.",
        [job_name, resume_from],
    )
    capacity = _resource(
        names.POOL_KIND,
        pool.SpotPoolSpec,
        pool.SpotPoolStatus,
        "A named group of interchangeable nodes: where capacity comes from and what it costs.",
        [],
    )
    return {
        f"{names.JOB_PLURAL}.yaml": _crd(
            names.JOB_KIND, names.JOB_PLURAL, ["stj"], "Namespaced", training, job.COLUMNS
        ),
        f"{names.POOL_PLURAL}.yaml": _crd(
            names.POOL_KIND, names.POOL_PLURAL, [], "Cluster", capacity, pool.COLUMNS
        ),
    }


def main(argv: list[str] | None = None) -> int:
    """Write the CRDs, or check that those on disk are what the models say."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FOLDER")
    action.add_argument("--check", type=Path, metavar="FOLDER")
    options = parser.parse_args(argv)
    stale = []
    for name, made in crds().items():
        text = "# Made from the models by `make crds`; do not edit.\n" + yaml.safe_dump(
            made, sort_keys=False, width=110, allow_unicode=True
        )
        if options.write:
            (options.write / name).write_text(text)
        elif not (options.check / name).exists() or (options.check / name).read_text() != text:
            stale.append(str(options.check / name))
    if stale:
        print(f"{', '.join(stale)}: differs from the models; run `make crds`", file=sys.stderr)  # noqa: T201
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
