"""The output of a prediction job: lines that survive a kill, and become a file when they are
complete.

They grow in ``FILE.part``, and ``FILE.part.json`` says which job they are of. The same job goes on
behind the last whole window of lines; another job is refused.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ptkit.engine.files import explained, rename, write_json
from ptkit.errors import PtkitError

FORMAT = 1


class AnswerFile:
    """Lines of JSON objects with an "origin", in the order of the input.

    ``job``: what the lines depend on, name to JSON value. ``overwrite``: a complete file is
    replaced (when the new one is complete), and what is left of another job is removed.
    """

    def __init__(self, path: Path, job: Mapping[str, Any], *, overwrite: bool = False) -> None:
        self.path = path
        self.growing = path.with_name(f"{path.name}.part")
        self.state = path.with_name(f"{path.name}.part.json")
        self.job = {"format": FORMAT, **job}
        self.overwrite = overwrite
        self._file: IO[bytes] | None = None
        self._line = 0

    def check(self) -> None:
        """Raise `PtkitError` if there is something that this job must not touch."""
        if self.path.is_dir():
            raise PtkitError(f"{self.path}: is a folder; name a file in it with --output")
        if not self.path.parent.is_dir():
            raise PtkitError(f"{self.path}: there is no folder {self.path.parent}")
        if self.overwrite:
            return
        if self.path.exists():
            raise PtkitError(
                f"{self.path}: exists already; name another file with --output, or replace it with "
                "--overwrite"
            )
        if self.growing.exists():
            differences = self._differences()
            if differences:
                raise PtkitError(
                    *(f"{self.growing}: {difference}" for difference in differences),
                    "it holds the answers of another job; name another file with --output, or "
                    "begin anew with --overwrite",
                )

    def _differences(self) -> list[str]:
        try:
            then = json.loads(self.state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return [f"there is no {self.state.name} that says what it is"]
        except (OSError, ValueError) as error:
            return [f"{self.state.name} can't be read: {error}"]
        if not isinstance(then, dict):
            return [f"{self.state.name} can't be read: it must hold an object"]
        return [
            f"was begun with {key} {_shown(then.get(key))}, now it is {_shown(self.job.get(key))}"
            for key in dict.fromkeys((*then, *self.job))
            if then.get(key) != self.job.get(key)
        ]

    def __enter__(self) -> AnswerFile:
        with explained(self.growing):
            if not self.growing.exists() or self._differences():
                # in this order: lines never stand beside the description of another job
                self.growing.unlink(missing_ok=True)
                write_json(self.state, self.job)
            self._file = self.growing.open("r+b" if self.growing.exists() else "w+b")
            _lock(self._file, self.growing)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def kept(self, origins: Sequence[str]) -> list[dict[str, Any]] | None:
        """The next lines, if an earlier process wrote one for each of ``origins``.

        Otherwise None: what there is of them is cut off, and they are to be written.
        Raises `PtkitError` for a line that is not the answer to its origin.
        """
        assert self._file is not None
        start = self._file.tell()
        lines: list[dict[str, Any]] = []
        with explained(self.growing):
            for origin in origins:
                line = self._file.readline()
                if not line.endswith(b"\n"):
                    self._file.seek(start)
                    self._file.truncate()
                    return None
                lines.append(self._checked(line, origin, self._line + len(lines) + 1))
        self._line += len(lines)
        return lines

    def _checked(self, line: bytes, origin: str, number: int) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict) or found.get("origin") != origin:
            raise PtkitError(
                f"{self.growing}:{number}: is not the answer to {origin}; the file was changed, "
                "so it can't be gone on with: begin anew with --overwrite"
            )
        return found

    def write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Append the lines of the next window, on the disk too."""
        assert self._file is not None
        text = "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)
        with explained(self.growing):
            append(self._file, text.encode("utf-8", "backslashreplace"))
        self._line += len(lines)

    def finish(self) -> None:
        """Cut off what is behind the last line, and give the file its name."""
        assert self._file is not None
        with explained(self.path):
            self._file.truncate()
            os.fsync(self._file.fileno())
            self._file.close()
            rename(self.growing, self.path)
            self.state.unlink(missing_ok=True)


def _lock(file: IO[bytes], path: Path) -> None:
    """Raise `PtkitError` if another process writes the file; a killed one holds no lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PtkitError(f"{path}: another process is writing it at the moment") from None


def append(file: IO[bytes], data: bytes) -> None:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
