"""What a run ran on: versions, device, threads, and the hashes of its data."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import ptkit
from ptkit.registry import Registry

PACKAGES = ("torch", "transformers", "safetensors", "numpy", "pydantic", "pluggy")


def describe(registry: Registry, device: str) -> dict[str, Any]:
    """Versions of Python, packages and plugins, and the device."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    described: dict[str, Any] = {
        "ptkit": ptkit.__version__,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": versions,
        "plugins": {o.distribution: o.version for o in registry.owners.values()},
        "device": device,
        "threads": torch.get_num_threads(),
    }
    if device.startswith("cuda"):
        described["gpu"] = torch.cuda.get_device_name(device)
        described["cuda"] = torch.version.cuda
    return described
