"""What installed distributions give by entry points, and loading one of them without harm.

Standard library only, so that finding a plugin's command doesn't cost what plugins cost.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from importlib.metadata import Distribution, EntryPoint, distributions
from typing import Any

from ptkit import __version__

PLUGINS = "ptkit"
COMMANDS = "ptkit.commands"
"""The entry point groups: plugins, and commands beside those of ptkit."""
DISABLE_VARIABLE = "PTKIT_DISABLE_PLUGINS"
SLOW = 1.0  # seconds
HEAVY = ("torch", "transformers")
"""What no plugin may import before it is needed: every command would wait for it."""
KEBAB = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_SHOWN = 60  # characters of what a plugin prints


@dataclass(frozen=True)
class Owner:
    """A plugin: its entry point name and the distribution and version that it comes from."""

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"{self.distribution} {self.version}"


class LoadError(Exception):
    """Why an entry point can't be used, on one line."""


@dataclass(frozen=True)
class Found:
    """An entry point that isn't loaded yet, and whose it is.

    ``requires``: what its distribution depends on, as in its metadata.
    """

    entry_point: EntryPoint
    owner: Owner
    requires: tuple[str, ...] = ()

    def load(self) -> Any:
        """What the entry point names. Raises `LoadError`, also for what exits while imported."""
        unmet = unmet_requirement(self.requires, __version__)
        if unmet is not None:
            raise LoadError(
                f"needs {unmet}, and this is ptkit {__version__}; install that ptkit, or another "
                f"version of {self.owner.distribution}"
            )
        try:
            return self.entry_point.load()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise LoadError(f"can't be imported: {one_line(error)}") from error


@dataclass(frozen=True)
class Entries:
    """What was found: entry points to load, and those that ``PTKIT_DISABLE_PLUGINS`` leaves out.

    Both in alphabetical order of their names, then of distributions.
    """

    wanted: tuple[Found, ...]
    disabled: tuple[Found, ...]

    def of(self, group: str) -> Entries:
        """Those of one entry point group."""

        def chosen(some: tuple[Found, ...]) -> tuple[Found, ...]:
            return tuple(found for found in some if found.entry_point.group == group)

        return Entries(chosen(self.wanted), chosen(self.disabled))


def find_entries(
    environment: Mapping[str, str] = os.environ,
    installed: Iterable[Distribution] | None = None,
) -> Entries:
    """The plugins and commands of all installed distributions; none of them is imported.

    ``PTKIT_DISABLE_PLUGINS=a,b`` names entry points or distributions. Of several copies of a
    distribution, the first on sys.path counts.
    """
    found: list[Found] = []
    seen = set()
    for distribution in distributions() if installed is None else installed:
        entry_points = [e for e in distribution.entry_points if e.group in (PLUGINS, COMMANDS)]
        if not entry_points:
            continue
        name = distribution.name or "unknown"  # None where the metadata file is missing
        if normal_name(name) in seen:
            continue
        seen.add(normal_name(name))
        version, requires = distribution.version, tuple(distribution.requires or ())
        found += [Found(e, Owner(e.name, name, version), requires) for e in entry_points]
    found.sort(key=lambda one: (one.owner.plugin, one.owner.distribution))
    unwanted = {normal_name(name) for name in environment.get(DISABLE_VARIABLE, "").split(",")}

    def is_disabled(one: Found) -> bool:
        names = {normal_name(one.owner.plugin), normal_name(one.owner.distribution)}
        return bool(names & (unwanted - {""}))

    return Entries(
        tuple(one for one in found if not is_disabled(one)),
        tuple(one for one in found if is_disabled(one)),
    )


def unmet_requirement(requires: Sequence[str], version: str) -> str | None:
    """The one of ``requires`` on ptkit that ``version`` doesn't meet, as ``ptkit>=0.2,<0.3``.

    >>> unmet_requirement(["ptkit>=0.2", "torch"], "0.1.0")
    'ptkit>=0.2'
    """
    ours = [line for line in requires if re.match(r"\s*ptkit\b(?![-_.])", line, re.IGNORECASE)]
    if not ours:
        return None
    from packaging.requirements import InvalidRequirement, Requirement

    for line in ours:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue  # pip's to complain about
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and not requirement.specifier.contains(version, prereleases=True):
            return f"{requirement.name}{requirement.specifier}"
    return None


# ------------------------------------------------------------------------------------------ loading


@dataclass
class Watch:
    """What loading something cost: ``seconds``, what it ``printed``, the heavy modules it got."""

    seconds: float = 0.0
    printed: str = ""
    imported: tuple[str, ...] = ()
    _modules: frozenset[str] = field(default_factory=lambda: frozenset(sys.modules))

    def warnings(self) -> list[str]:
        """What an author should mend, a line each."""
        lines = []
        if self.printed:
            text = " ".join(self.printed.split())
            short = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
            lines.append(f"printed {short!r} to stdout while it was loaded; print nothing there")
        if self.seconds > SLOW:
            got = f" and imported {' and '.join(self.imported)}" if self.imported else ""
            lines.append(
                f"took {self.seconds:.1f} s to load{got}; import what is slow inside the "
                "functions that need it"
            )
        return lines


class _Held:
    """Stands in for stdout: keeps what is written, and passes it on once it is let go.

    What was handed it at import, such as a logging handler, may use it for as long as it likes.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.texts: list[str] | None = []

    def write(self, text: str) -> int:
        if self.texts is None:
            self._stream.write(text)
        else:
            self.texts.append(text)
        return len(text)

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def watched() -> Iterator[Watch]:
    """Measure what is loaded inside, and keep what it prints from the output of the command.

    What a C library writes to the file descriptor itself is not held back.
    """
    watch = Watch()
    held: Any = _Held(sys.stdout)
    started = time.perf_counter()
    try:
        with redirect_stdout(held):
            yield watch
    finally:
        watch.seconds = time.perf_counter() - started
        watch.printed, held.texts = "".join(held.texts), None
        watch.imported = tuple(
            name for name in HEAVY if name in sys.modules and name not in watch._modules
        )


# ------------------------------------------------------------------------------------------- words


def one_line(error: BaseException) -> str:
    """An exception as ``Type: message`` on one line, without the link behind pydantic's."""
    text = " ".join(str(error).split()).partition(" For further information visit https://")[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def collision(name: str, owners: Sequence[Owner]) -> str:
    """What is wrong with a ``name`` that several plugins use, and what to do."""
    both = "both " if len(owners) == 2 else ""
    return (
        f"{name!r} is registered by {both}{' and '.join(map(str, owners))}; "
        f"set {DISABLE_VARIABLE}={owners[-1].distribution} or uninstall one of them"
    )


def normal_name(name: str) -> str:
    """The form in which names of distributions are compared: ``My_Name`` is ``my-name``."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
