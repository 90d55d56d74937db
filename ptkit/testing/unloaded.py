"""What a backbone says of itself before its weights are loaded."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Mapping
from functools import partial

from ptkit.models import Backbone
from ptkit.records import Geometry
from ptkit.testing.faults import Subject

_LIGHT = """
import pickle, sys
kind, settings = pickle.load(sys.stdin.buffer)
backbone = kind(settings)
for what in ("importing it", "geometry", "variant", "tokenizer"):
    if what == "tokenizer":
        backbone.tokenizer.encode("a b")
    elif what != "importing it":
        getattr(backbone, what)
    if "torch" in sys.modules:
        print(what)
        break
"""


def check_unloaded(subject: Subject, backbone: Backbone, other: Backbone | None) -> Geometry:
    """Check what needs no ``load()``, and return the geometry; ``other`` as in `check_backbone`."""
    _check_light(subject, backbone)
    _check_fingerprint(subject, backbone, other)
    return _check_geometry(subject, backbone)


def _check_light(subject: Subject, backbone: Backbone) -> None:
    """All but load() and fingerprint without torch; tried in a fresh interpreter.

    A class that can't be found by its name there (in a test file, a script) is passed over.
    """
    try:
        made = pickle.dumps((type(backbone), backbone.settings))
    except Exception:  # a class inside a function
        return
    command = [sys.executable, "-P", "-c", _LIGHT]
    tried = subprocess.run(command, input=made, capture_output=True, check=False)
    found = tried.stdout.decode().strip()
    if tried.returncode == 0 and found:
        raise subject.fault(
            f"{found} imports torch, which costs `ptkit check` and every command seconds; only "
            "load() and fingerprint may import it"
        )


def _check_fingerprint(subject: Subject, backbone: Backbone, other: Backbone | None) -> None:
    again = subject.call("making it again", lambda: type(backbone)(backbone.settings))
    first, second = (
        subject.call("fingerprint", partial(getattr, b, "fingerprint")) for b in (backbone, again)
    )
    if not isinstance(first, str) or not first:
        raise subject.fault(f"fingerprint must be a text, got {first!r}")
    if first != second:
        raise subject.fault(
            f"fingerprint is {first!r}, then {second!r} for the same settings; make it from the "
            "model's files alone"
        )
    if other is not None and other.fingerprint == first:
        raise subject.fault(
            "fingerprint is the same for other weights, so that an adapter would be taken for "
            "theirs; make it from the weights, such as a hash of some of them"
        )
    variant = subject.call("variant", lambda: backbone.variant)
    if not isinstance(variant, Mapping) or not all(
        isinstance(text, str) for pair in variant.items() for text in pair
    ):
        raise subject.fault(f"variant must map texts to texts, got {variant!r}")
    for note in subject.call("notes", lambda: list(backbone.notes)):
        if not isinstance(note, str) or "\n" in note:
            raise subject.fault(f"notes must be texts of one line, got {note!r}")
    if not isinstance(backbone.quantization, str):
        raise subject.fault(f"quantization must be a text, got {backbone.quantization!r}")


def _check_geometry(subject: Subject, backbone: Backbone) -> Geometry:
    geometry = subject.call("geometry", lambda: backbone.geometry)
    if not isinstance(geometry, Geometry):
        raise subject.fault(f"geometry must be a ptkit.Geometry, got {type(geometry).__name__}")
    return geometry
