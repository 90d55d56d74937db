"""ptkit plugin: backbones for ptkit: encoders and decoder models of transformers, from local folders or the hub."""

from __future__ import annotations
