"""The JSON Schema of a recipe, made from what is installed."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from ptkit.components import SECTIONS, Section
from ptkit.recipe import FORMAT
from ptkit.registry import Registry
from ptkit.sections import PrefixSettings, TrainSettings
from ptkit.settings import Component

Schema = dict[str, Any]


def recipe_schema(registry: Registry) -> Schema:
    """JSON Schema, draft 2020-12; a section is one of ``$defs``, told apart by ``kind``."""
    definitions: dict[str, Schema] = {}
    train = _table(TrainSettings, "train", definitions)
    train["oneOf"] = [{"required": ["max_steps"]}, {"required": ["epochs"]}]
    properties: dict[str, Schema] = {
        "ptkit": {"const": FORMAT, "description": "The version of the recipe format."},
        "prefix": _table(PrefixSettings, "prefix", definitions),
        "train": train,
    }
    for section in SECTIONS:
        properties[section.key] = _section(section, registry, definitions)
    required = [section.key for section in SECTIONS if section.required]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ptkit recipe",
        "type": "object",
        "properties": properties,
        "required": ["ptkit", *required, "train"],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _section(section: Section, registry: Registry, definitions: dict[str, Schema]) -> Schema:
    branches = []
    for kind in registry.names(section.key):
        name = f"{section.key}.{kind}"
        definitions[name] = _component(
            registry.components[section.key][kind].component, name, definitions
        )
        branches.append({"$ref": f"#/$defs/{name}"})
    one: Schema = {"oneOf": branches} if branches else {"not": {}}  # an empty oneOf is not allowed
    return {"type": "array", "items": one} if section.many else one


def _component(component: type[Component], name: str, definitions: dict[str, Schema]) -> Schema:
    kind: Schema = {"const": component.name}
    if component.__doc__:
        kind["description"] = component.__doc__.strip().splitlines()[0]
    try:
        table = _table(component.Settings, name, definitions)
    except Exception:
        # settings with types that JSON Schema can't express still have a kind
        return {"type": "object", "properties": {"kind": kind}, "required": ["kind"]}
    table["properties"] = {"kind": kind, **table.get("properties", {})}
    table["required"] = ["kind", *table.get("required", [])]
    return table


def _table(model: type[BaseModel], name: str, definitions: dict[str, Schema]) -> Schema:
    """The schema of ``model``; the tables nested in it go to ``definitions`` as ``name.Model``."""
    schema = model.model_json_schema(ref_template=f"#/$defs/{name}.{{model}}")
    nested = schema.pop("$defs", {})
    definitions.update({f"{name}.{model_name}": found for model_name, found in nested.items()})
    if "$ref" in schema:  # a model that contains itself
        schema = dict(nested[model.__name__])
    return {**schema, "title": name}
