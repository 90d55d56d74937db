"""What `forked.share` runs in each process: the script that it is given, as a launcher would."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any


def work(environment: dict[str, str], script: str, argument: str, errors: str) -> None:
    os.environ.update(environment)
    with open(errors, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 2)
    sys.argv = [script, argument]
    runpy.run_path(script, run_name="__main__")


if __name__ == "forked":
    given: dict[str, Any] = dict(globals()["GIVEN"])
    work(**given)
