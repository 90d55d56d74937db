from __future__ import annotations

import subprocess
import sys

import ptkit_qa
from ptkit_qa.instruction import InstructionFormat
from ptkit_qa.messages import MessagesFormat
from ptkit_qa.squad import SquadFormat

from ptkit import ExtractionRecord, GenerationRecord


def test_what_is_registered():
    found = ptkit_qa.ptkit_register_dataset_formats()
    assert found == [MessagesFormat, InstructionFormat, SquadFormat]
    assert (MessagesFormat.name, InstructionFormat.name) == ("messages", "instruction")
    assert MessagesFormat.record is InstructionFormat.record is GenerationRecord
    assert (SquadFormat.name, SquadFormat.record) == ("squad", ExtractionRecord)


def test_importing_the_plugin_is_light():
    code = "import ptkit_qa, sys; print({'pydantic', 'torch', 'json'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
