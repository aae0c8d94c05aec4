"""What all resource models share: camelCase names, frozen values, bounded texts."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.config import JsonDict


class Model(BaseModel):
    """A part of a resource. Unknown fields are refused, values cannot be changed."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="forbid")

    def to_json(self) -> dict[str, Any]:
        """As the API server wants it: camelCase, JSON types, without the fields that are not set."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    def as_read(self) -> dict[str, Any]:
        """What was read, without the defaults that only the model adds: the base of a merge patch."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


class StatusModel(Model):
    """A part of a status. What a newer version has written there is passed over, so that going back is possible."""

    model_config = ConfigDict(extra="ignore")


class OpenModel(Model):
    """A part of which we declare only what we look at; the rest is kept and passed on as it is."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})

    def to_json(self) -> dict[str, Any]:
        """As the user wrote it: nothing added, nothing taken away."""
        return self.model_dump(mode="json", by_alias=True, exclude_unset=True)


def rule(
    expression: str, message: str, field_path: str | None = None, reason: str | None = None
) -> dict[str, str]:
    """One CEL rule; ``message`` names the field and says what to do."""
    made = {"rule": expression, "message": message}
    if field_path:
        made["fieldPath"] = field_path
    if reason:
        made["reason"] = reason
    return made


def rules(*made: dict[str, str], **extra: Any) -> ConfigDict:
    """The model configuration that carries CEL rules into the schema."""
    schema: JsonDict = {"x-kubernetes-validations": [dict(each) for each in made], **extra}
    return ConfigDict(json_schema_extra=schema)


Text = Annotated[str, Field(max_length=1024)]
"""A sentence for people."""

Word = Annotated[str, Field(max_length=256)]
"""A name, a reason, an identifier."""

Time = Annotated[
    str, Field(max_length=40), WithJsonSchema({"type": "string", "format": "date-time", "maxLength": 40})
]
"""RFC 3339, UTC."""

DECIMAL = "^[0-9]{1,9}([.][0-9]{1,6})?$"

Decimal = Annotated[str, Field(pattern=DECIMAL, max_length=16)]
"""Money: a decimal string, never a float."""

Label = Annotated[str, Field(max_length=63)]

Quantity = Annotated[
    int | str,
    WithJsonSchema({"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}),
]
"""A Kubernetes quantity, a number or a string."""

LabelMap = Annotated[dict[str, Label], Field(max_length=64)]


class Condition(StatusModel):
    """A ``metav1.Condition``: one fact about the object, with a reason for programs and a message for people."""

    type: Word
    status: Annotated[str, Field(pattern="^(True|False|Unknown)$", max_length=7)]
    reason: Word
    message: Annotated[str, Field(max_length=4096)] = ""
    last_transition_time: Time
    observed_generation: int = 0
