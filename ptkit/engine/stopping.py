"""Ctrl-C and SIGTERM: the first asks the run to save and stop, the second ends it at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from ptkit.errors import PtkitError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(PtkitError):
    """The run was asked to stop. ``exit_code`` is a shell's for the signal."""

    def __init__(self, number: int, *lines: str) -> None:
        super().__init__(*lines)
        self.number = number
        self.exit_code = 128 + number


class StopSignals:
    """Catches the signals inside a with block, in the main thread; elsewhere they stay as they are.

    Outside of training nothing needs saving: there a signal raises `Interrupted` from where the
    program is. While ``deferred``, it only sets ``received``.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._restore()  # so that the next one has its usual effect
        self.received = number
        if not self.deferred:
            raise Interrupted(number)
