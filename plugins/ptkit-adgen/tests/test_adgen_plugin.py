from __future__ import annotations

import subprocess
import sys

import ptkit_adgen
from ptkit_adgen.attributes import AttributeShare
from ptkit_adgen.format import AdgenFormat

from ptkit import GenerationRecord


def test_what_is_registered():
    assert ptkit_adgen.ptkit_register_dataset_formats() == [AdgenFormat]
    assert ptkit_adgen.ptkit_register_metrics() == [AttributeShare]
    assert (AdgenFormat.name, AttributeShare.name) == ("adgen", "attribute-share")


def test_the_control_stands_beside_every_score():
    assert AdgenFormat.controls == (AttributeShare,)
    assert AdgenFormat.record is GenerationRecord


def test_importing_the_plugin_is_light():
    code = "import ptkit_adgen, sys; print({'pydantic', 'torch', 'json'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
