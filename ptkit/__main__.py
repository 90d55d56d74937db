"""``python -m ptkit``."""

import sys

from ptkit.cli import main

sys.exit(main())
