"""Options that several commands share."""

from __future__ import annotations

import click

device = click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where the model runs; auto takes a GPU if there is one.",
)
backbone = click.option(
    "--backbone",
    metavar="SOURCE",
    help="The base model: a folder, or a name such as nano. Needed unless the adapter was made on "
    "one with a name.",
)
no_adapter = click.option(
    "--no-adapter", is_flag=True, help="Leave the adapter off: the base model alone."
)
recipe_overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting, such as --set train.max_steps=50; the value is written as in TOML.",
)
overrides = click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting of the adapter's recipe, such as "
    "--set 'dataset.prompt_column=\"question\"'; the value is written as in TOML.",
)
