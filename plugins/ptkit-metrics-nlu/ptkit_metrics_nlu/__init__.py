"""ptkit plugin: metrics for ptkit: classification, correlation, entities, exact match and F1 of answers."""

from __future__ import annotations
