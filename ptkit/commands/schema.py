"""``ptkit schema``."""

from __future__ import annotations

import json

import click


@click.command(name="schema")
def command() -> None:
    """Print the JSON Schema of a recipe.

    It covers what is installed, for editors that complete and check TOML: draft 2020-12.
    """
    from ptkit.registry import load_plugins
    from ptkit.schema import recipe_schema

    click.echo(json.dumps(recipe_schema(load_plugins()), ensure_ascii=False, indent=2))
