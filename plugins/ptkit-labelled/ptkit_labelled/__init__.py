"""ptkit plugin: dataset formats for ptkit: labelled texts and multiple-choice questions."""

from __future__ import annotations
