"""ptkit plugin: small English data sets for ptkit's NLU tasks, and a real encoder to tune on them."""

from __future__ import annotations
