from __future__ import annotations

import subprocess
import sys

import ptkit_seqlabel
from ptkit_seqlabel.conll import ConllFormat
from ptkit_seqlabel.spans import SpanJsonFormat
from ptkit_seqlabel.tagged import TaggedJsonFormat

from ptkit import TaggedRecord


def test_what_is_registered():
    found = ptkit_seqlabel.ptkit_register_dataset_formats()
    assert found == [ConllFormat, TaggedJsonFormat, SpanJsonFormat]
    assert [form.name for form in found] == ["conll", "tagged-jsonl", "span-jsonl"]
    assert {form.record for form in found} == {TaggedRecord}


def test_importing_the_plugin_is_light():
    code = "import ptkit_seqlabel, sys; print({'pydantic', 'torch', 'json'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
