"""ptkit plugin: dataset formats for ptkit: words with tags, and texts with spans."""

from __future__ import annotations
