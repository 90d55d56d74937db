from __future__ import annotations

import subprocess
import sys

import ptkit_qa
from ptkit_qa.instruction import InstructionFormat
from ptkit_qa.messages import MessagesFormat

from ptkit import GenerationRecord


def test_what_is_registered():
    assert ptkit_qa.ptkit_register_dataset_formats() == [MessagesFormat, InstructionFormat]
    assert (MessagesFormat.name, InstructionFormat.name) == ("messages", "instruction")
    assert MessagesFormat.record is InstructionFormat.record is GenerationRecord


def test_importing_the_plugin_is_light():
    code = "import ptkit_qa, sys; print({'pydantic', 'torch', 'json'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
