"""The command ``ptkit dialogue-stats``."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner
from ptkit import PtkitError

from ptkit_dialogues.command import stats
from ptkit_dialogues.format import DialogueCsv

TEXT = (
    "conversation,role,text\na,user,ab\na,assistant,aab\na,user,abcd\na,assistant,a\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.csv"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_what_is_counted(file: Path) -> None:
    result = CliRunner().invoke(stats, [str(file)])
    # replies: a a b a; aa ab
    assert (result.exit_code, result.output) == (
        0,
        (
            "conversations  1\n"
            "replies        2\n"
            "history        0.5 earlier exchanges (mean), longest 1\n"
            "prompt         3 characters (median), longest 4\n"
            "reply          2 characters (median), longest 3\n"
            "distinct-1     50.0 %\n"
            "distinct-2     100.0 %\n"
            "bad rows       0\n"
        ),
    )


def test_words_and_the_settings_of_the_format(file: Path) -> None:
    file.write_text(
        "id;role;text\nb;user;q\na;user;how are you\nb;assistant;fine fine\n"
        "a;bot;oh\na;assistant;well I\n",
        encoding="utf-8",
    )
    options = "--conversation-column id --separator ; --interleaved --tokens words"
    given = [str(file), *options.split(), "--on-bad-row", "skip"]
    result = CliRunner().invoke(stats, given)
    assert result.exit_code == 0
    assert result.stdout == (
        "conversations  2\n"
        "replies        1\n"
        "history        0.0 earlier exchanges (mean), longest 0\n"
        "prompt         1 words (median), longest 1\n"
        "reply          2 words (median), longest 2\n"
        "distinct-1     50.0 %\n"
        "distinct-2     100.0 %\n"
        "bad rows       2\n"
    )
    first, second = result.stderr.splitlines()
    assert first.startswith(f"{file}:5: column 'role' has the unknown role 'bot'")
    assert second.startswith(f"{file}:6: can't be used, since line 5 of")


def refused(*given: str) -> str:
    with pytest.raises(PtkitError) as caught:
        CliRunner().invoke(stats, given, catch_exceptions=False)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_it_refuses(file: Path) -> None:
    missing = str(file.with_name("y.csv"))
    assert refused(missing).startswith(f"{missing}: no such file")
    assert refused(str(file), "--text-column", "txt") == (
        f"{file}:1: the header has no column 'txt' (did you mean 'text'?), but: "
        "conversation, role, text; set dataset.text_column, or dataset.separator "
        "(now ',')"
    )
    assert refused(str(file), "--user-role", "assistant") == (
        "user_role and assistant_role must be two names, got 'assistant' twice"
    )
    assert refused(str(file), "--max-history", "-1") == (
        "--max-history: Input should be greater than or equal to 0"
    )
    file.write_text(f"{TEXT}a,user,\na,zz,r\na,assistant,r\n", encoding="utf-8")
    assert refused(str(file)) == (
        f"{file}:6: column 'text' is empty; give it a text, or drop such rows with "
        'dataset.on_bad_row = "skip" (and 2 more such rows)'
    )
    file.write_text(TEXT.splitlines()[0], encoding="utf-8")
    said = f"{file}: has no replies; see the rows below its header"
    assert refused(str(file)) == said


def test_its_options_are_the_settings_of_the_format() -> None:
    options = {option.name: option for option in stats.params}
    defaults = DialogueCsv.Settings.model_fields
    for name in set(defaults) - {"train", "validation", "test", "split", "limit"}:
        assert options[name].default == defaults[name].default


def test_it_is_found_and_costs_no_torch() -> None:
    (found,) = entry_points(group="ptkit.commands", name="dialogue-stats")
    assert found.load() is stats
    code = (
        "import ptkit_dialogues.command, sys; "
        "print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_on_the_command_line(file: Path) -> None:
    ptkit = str(Path(sys.executable).with_name("ptkit"))

    def run(*given: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [ptkit, "dialogue-stats", *given],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    code, out, err = run(str(file))
    assert (code, out.splitlines()[1], err) == (0, "replies        2", "")
    code, out, err = run(f"{file}.gone")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"{file}.gone: no such file")
