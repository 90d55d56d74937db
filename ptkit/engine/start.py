"""What a run starts from: numbers, a text, or an adapter that is trained further."""

from __future__ import annotations

from torch import nn

from ptkit.components import TaskHead
from ptkit.engine.adapter import Adapter, load_adapter
from ptkit.engine.model import Model
from ptkit.engine.prefix import PrefixEncoder
from ptkit.models import Backbone
from ptkit.preparation import prefix_shape, prefix_tokens
from ptkit.recipe import Recipe
from ptkit.reporter import Reporter


def starting_adapter(recipe: Recipe, backbone: Backbone, reporter: Reporter) -> Adapter | None:
    """The adapter that the recipe trains further, if it names one. Raises `PtkitError` for one
    that is damaged or was made for another backbone."""
    if recipe.prefix.start is None:
        return None
    start = load_adapter(recipe.prefix.start.path)
    for warning in start.check_fits(backbone):
        reporter.warning(warning)
    return start


def build_prefix(
    recipe: Recipe, backbone: Backbone, model: Model, start: Adapter | None = None
) -> PrefixEncoder:
    """The prefix encoder of a recipe, initialised as it says, on the model's device.

    ``start``: the recipe's `starting_adapter`.
    """
    settings = recipe.prefix
    length, hidden = prefix_shape(settings, backbone)
    prefix = PrefixEncoder(
        backbone.geometry, length, projection_hidden_size=hidden, dropout=settings.dropout
    )
    if start is not None:
        prefix.load_state_dict(start.prefix.state_dict())
        return prefix.to(model.device)
    tokens = prefix_tokens(settings, backbone.tokenizer)
    std = 0.0 if settings.init == "zero" else settings.init_std
    prefix.initialize(std=std, seed=recipe.train.seed)
    if tokens:  # a shorter text is repeated, a longer one cut
        repeated = (tokens * (length // len(tokens) + 1))[:length]
        prefix.initialize_from(model.keys_and_values(repeated))
    return prefix.to(model.device)


def continue_head(start: Adapter, head: TaskHead, module: nn.Module | None) -> str:
    """Take over the adapter's head, too, if its labels are the same; what was done, in a line."""
    task = start.manifest["task"]
    same = task["kind"] == head.name and task["labels"] == list(head.labels)
    if module is not None and same:
        start.load_head(head, module)
        module.requires_grad_(True)
    new = "; the head starts anew" if module is not None and not same else ""
    return f"start: {start.folder}{new}"
