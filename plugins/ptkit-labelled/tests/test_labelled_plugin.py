from __future__ import annotations

import subprocess
import sys

import ptkit_labelled
from ptkit_labelled.choices import ChoicesFormat
from ptkit_labelled.text import LabelledTextFormat

from ptkit import ChoiceRecord, LabelledRecord


def test_what_is_registered():
    assert ptkit_labelled.ptkit_register_dataset_formats() == [LabelledTextFormat, ChoicesFormat]
    assert (LabelledTextFormat.name, LabelledTextFormat.record) == ("labelled-text", LabelledRecord)
    assert (ChoicesFormat.name, ChoicesFormat.record) == ("choices-jsonl", ChoiceRecord)


def test_importing_the_plugin_is_light():
    code = "import ptkit_labelled, sys; print({'pydantic', 'torch', 'csv'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
