"""Recipes: what they become, and a line for every mistake in them."""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field, field_validator, model_validator

import ptkit
from ptkit.recipe import PrefixSettings, Recipe, TrainSettings
from ptkit.registry import Owner, Registry, empty_registry
from ptkit.schema import recipe_schema
from ptkit.settings import dump


@dataclass(frozen=True, kw_only=True)
class LabelRecord(ptkit.Record):
    label: str


class Lines(ptkit.DatasetFormat):
    """A line is a prompt."""

    name = "lines"
    record = ptkit.GenerationRecord

    class Settings(ptkit.DatasetFormat.Settings):
        prompt_column: str = "content"
        """The key of the prompt."""

    def read(self, path: Path, name: str) -> Iterator[ptkit.Record | ptkit.BadRow]:
        yield from ()


class Labels(Lines):
    name = "labels"
    record = LabelRecord


class Write(ptkit.TaskHead):
    name = "write"
    accepts = ptkit.GenerationRecord
    predicts = "text"

    class Settings(ptkit.Settings):
        max_target_tokens: int = Field(64, ge=1)

    def encode(self, record: Any, tokenizer: Any) -> list[ptkit.Row]:
        return []

    def loss(self, module: Any, states: Any, rows: Any) -> Any: ...

    def decode(self, record: Any, rows: Any, outputs: Any, tokenizer: Any) -> Any: ...

    def reference(self, record: Any) -> Any: ...


class Classify(Write):
    name = "classify"
    accepts = LabelRecord
    predicts = "label"


class Overlap(ptkit.Metric):
    name = "overlap"
    scores = "text"

    class Settings(ptkit.Settings):
        average: Literal["macro", "micro"] = "macro"

    def score(self, pairs: Sequence[ptkit.Pair]) -> dict[str, float]:
        return {}


class Accuracy(Overlap):
    name = "accuracy"
    scores = "label"


class Tiny(ptkit.Backbone):
    name = "tiny"

    @property
    def geometry(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def fingerprint(self) -> str:
        return ""

    def load(self, device: str, dtype: str) -> Any: ...


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Inner(ptkit.Settings):
    share: float = Field(0.5, multiple_of=0.5)
    names: list[str] = []


class Plain(BaseModel):
    text: str = ""


class Everything(ptkit.Transform):
    """Has a field of every type that a plugin may think of."""

    name = "everything"

    class Settings(ptkit.Settings):
        whole: int = Field(1, gt=0, lt=10)
        number: float = Field(0.5, le=1)
        flag: bool = False
        text: str = Field("abc", min_length=2, max_length=4, pattern="^[a-c]+$")
        path: Path = Path("here")
        colour: Colour = Colour.RED
        pair: tuple[int, int] = (1, 2)
        words: list[str] = Field([], max_length=2)
        some: set[str] = Field({"a"}, min_length=1)
        table: dict[str, int] = {}
        inner: Inner = Inner()
        inners: list[Inner] = []
        either: Inner | list[int] | Annotated[int, Field(ge=1)] | None = None
        named: Literal["none", "even"] | dict[str, Annotated[int, Field(gt=0)]] = "none"
        day: date | None = None
        plain: Plain = Plain()
        class_: str = Field("x", alias="class")
        even: int = 2
        odd: Any = None

        @field_validator("even")
        @classmethod
        def _check_even(cls, value: int) -> int:
            if value % 2:
                raise AssertionError
            return value

        @field_validator("odd")
        @classmethod
        def _check_odd(cls, value: Any) -> Any:
            if value == "empty":
                raise ValueError
            return value

    def apply(self, records: Sequence[ptkit.Record], *, seed: int) -> Iterable[ptkit.Record]:
        return records


class Broken(Everything):
    name = "broken"

    class Settings(ptkit.Settings):
        how: str = "value"

        @model_validator(mode="after")
        def _check(self) -> Any:
            if self.how == "ptkit":
                raise ptkit.DataError("one thing", "another")
            if self.how == "bug":
                raise KeyError("a\nb")
            raise ValueError("this is\nnever right")


class Memory(ptkit.Tracker):
    name = "memory"

    def start(self, run: Any) -> None: ...

    def event(self, kind: str, values: Any) -> None: ...

    def finish(self) -> None: ...


class Toy:
    """A plugin with all of the above."""

    @ptkit.hookimpl
    def ptkit_register_backbones(self) -> list[Any]:
        return [Tiny]

    @ptkit.hookimpl
    def ptkit_register_dataset_formats(self) -> list[Any]:
        return [Lines, Labels]

    @ptkit.hookimpl
    def ptkit_register_transforms(self) -> list[Any]:
        return [Everything, Broken]

    @ptkit.hookimpl
    def ptkit_register_task_heads(self) -> list[Any]:
        return [Write, Classify]

    @ptkit.hookimpl
    def ptkit_register_metrics(self) -> list[Any]:
        return [Overlap, Accuracy]

    @ptkit.hookimpl
    def ptkit_register_trackers(self) -> list[Any]:
        return [Memory]

    @ptkit.hookimpl
    def ptkit_resolve_source(self, source: str) -> Path | None:
        if source == "toy:gone":
            return Path("/nowhere/at/all")
        if source.startswith("toy") and source != "toy":
            raise ptkit.PluginError(f"toy has no {source!r}", "it has 'toy'")
        return Path(__file__).parent if source == "toy" else None


def make_registry() -> Registry:
    registry = empty_registry()
    registry.register(Toy(), Owner("toy", "ptkit-toy", "1.0"))
    assert registry.failures == []
    return registry


REGISTRY = make_registry()  # read only
GOOD = """\
ptkit = 1
[backbone]
kind = "tiny"
source = "toy"
[prefix]
length = 3
[dataset]
kind = "lines"
train = "train.json"
[task]
kind = "write"
[[metrics]]
kind = "overlap"
[train]
max_steps = 5
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.json").write_text("{}")
    return tmp_path


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return Recipe.load(path, overrides=overrides, registry=REGISTRY)


def lines(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(ptkit.RecipeError) as caught:
        load(folder, text, *overrides)
    found = list(caught.value.lines)
    assert not any("\n" in line or "pydantic" in line or "Input should" in line for line in found)
    return [line.replace(f"{folder / 'recipe.toml'}", "recipe.toml") for line in found]


def line(folder: Path, text: str, *overrides: str) -> str:
    found = lines(folder, text, *overrides)
    assert len(found) == 1, found
    return found[0].removeprefix("recipe.toml: ")


def transform(folder: Path, text: str) -> str:
    return line(folder, f'{GOOD}[[transforms]]\nkind = "everything"\n{text}\n')


# ------------------------------------------------------------------------------ good ones


def test_a_recipe_becomes_settings_and_classes(folder: Path) -> None:
    recipe = load(folder, GOOD)
    assert recipe.name == "recipe"
    assert recipe.path == folder / "recipe.toml"
    assert recipe.backbone.kind == "tiny"
    assert recipe.prefix == PrefixSettings(length=3)
    assert recipe.train == TrainSettings(max_steps=5)
    assert [metric.kind for metric in recipe.metrics] == ["overlap"]
    assert recipe.transforms == recipe.trackers == ()
    dataset: Any = recipe.dataset.settings
    assert dataset.train.path == folder / "train.json"
    assert not dataset.train.named
    backbone: Any = recipe.backbone.settings
    assert backbone.source.named
    head = recipe.task.create(labels=["a"])
    assert isinstance(head, Write)
    assert head.labels == ("a",)
    assert head.settings is recipe.task.settings


def test_resolved_has_defaults_and_absolute_paths(folder: Path) -> None:
    resolved = load(folder, GOOD).resolved()
    assert list(resolved) == ["ptkit", "backbone", "prefix", "dataset", "task", "metrics", "train"]
    assert resolved["backbone"] == {
        "kind": "tiny",
        "source": "toy",
        "dtype": "auto",
        "embeddings": "device",
    }
    assert resolved["dataset"]["train"] == str(folder / "train.json")
    assert resolved["train"]["learning_rate"] == 2e-2
    assert resolved["train"]["betas"] == [0.9, 0.999]
    assert "epochs" not in resolved["train"]


EVERYTHING = """
[[transforms]]
kind = "everything"
number = 1
pair = [3, 4]
colour = "blue"
some = ["b"]
table = {x = 1}
either = {share = 1.5}
inners = [{names = ["é\\n"]}, {}]
day = 2024-02-29
class = "y"
plain = {text = "1"}
[[transforms]]
kind = "everything"
either = 4
[[trackers]]
kind = "memory"
"""


@pytest.mark.parametrize("more", ["", EVERYTHING])
def test_the_resolved_recipe_loads_as_itself(folder: Path, tmp_path: Path, more: str) -> None:
    recipe = load(folder, GOOD + more, "dataset.limit={train = 3}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = load(elsewhere, recipe.to_toml())
    assert again.resolved() == recipe.resolved()
    assert again.to_toml() == recipe.to_toml()


def test_arrays_and_strings_become_what_a_field_wants(folder: Path) -> None:
    found: Any = load(folder, GOOD + EVERYTHING).transforms[0].settings
    assert found.pair == (3, 4)
    assert found.colour is Colour.BLUE
    assert found.path == Path("here")
    assert found.number == 1.0
    assert isinstance(found.number, float)
    assert found.class_ == "y"


def test_a_byte_order_mark_and_crlf_are_fine(folder: Path) -> None:
    path = folder / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert Recipe.load(path, registry=REGISTRY).train.max_steps == 5


def test_from_dict_takes_the_same_data(folder: Path) -> None:
    recipe = load(folder, GOOD)
    again = Recipe.from_dict(recipe.resolved(), folder=folder, name="mine", registry=REGISTRY)
    assert again.resolved() == recipe.resolved()
    assert (again.name, again.path) == ("mine", None)
    with pytest.raises(ptkit.RecipeError, match=r"^mine: must be a table, got 3$"):
        Recipe.from_dict(3, folder=folder, name="mine", registry=REGISTRY)  # type: ignore[arg-type]


def test_keys_that_toml_could_not_have(folder: Path) -> None:
    data: Any = {**load(folder, GOOD).resolved(), "prefix": {3: 1}, 4: 1}
    data["train"] = {"max_steps": 1, "seed": 9**9999}
    with pytest.raises(ptkit.RecipeError) as caught:
        Recipe.from_dict(data, folder=folder, name="r", registry=REGISTRY)
    assert sorted(caught.value.lines) == [
        "r: 4: unknown key; known: ptkit, backbone, prefix, dataset, transforms, task, metrics, "
        "train, trackers",
        "r: prefix.3: keys must be strings",
        "r: train.seed: must be less than 4294967296, got a value of type int",
    ]


def test_prefix_length_is_as_published_or_follows_the_text() -> None:
    assert PrefixSettings().length == 128
    assert PrefixSettings(init="text", init_text="广告").length is None
    assert PrefixSettings(init="text", init_text="广告", length=7).length == 7


def test_prefix_and_most_of_train_are_optional(folder: Path) -> None:
    text = GOOD.replace("[prefix]\nlength = 3\n", "").replace("max_steps = 5", "epochs = 2")
    recipe = load(folder, text)
    assert recipe.prefix == PrefixSettings()
    assert recipe.train.epochs == 2.0


# ------------------------------------------------------------------------------ all at once


def test_five_mistakes_give_five_lines(folder: Path) -> None:
    text = """\
ptkit = 1
[backbone]
kind = "tyni"
source = "toy"
colour = "red"
[prefix]
length = 0
[dataset]
kind = "lines"
train = "tran.json"
[task]
kind = "write"
max_target_tokens = "many"
[train]
max_steps = 5
learnig_rate = 0.1
"""
    assert lines(folder, text) == [
        "recipe.toml: backbone.kind: unknown kind 'tyni' (did you mean 'tiny'?); installed: tiny",
        "recipe.toml: prefix.length: must be at least 1, got 0",
        "recipe.toml: dataset.train: no such file, folder or named source "
        f"(did you mean 'train.json'?); looked for {folder / 'tran.json'}",
        "recipe.toml: task.max_target_tokens: must be a whole number, got 'many'",
        "recipe.toml: train.learnig_rate: unknown key (did you mean 'learning_rate'?)",
    ]


def test_lines_come_in_the_order_of_the_file(folder: Path) -> None:
    text = "[train]\nseed = -1\nmax_steps = 1\n[prefix]\nlength = 0\n"
    assert [found.split(":")[1] for found in lines(folder, text)] == [
        " ptkit",
        " train.seed",
        " prefix.length",
        " backbone",
        " dataset",
        " task",
    ]


# ------------------------------------------------------------------------------ the file


def test_files_that_cannot_be_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(path: str | Path) -> str:
        with pytest.raises(ptkit.RecipeError) as caught:
            Recipe.load(path, registry=REGISTRY)
        (found,) = caught.value.lines
        return found

    load(folder, GOOD)
    assert problem(folder / "recpie.toml") == (
        f"{folder / 'recpie.toml'}: no such file (did you mean 'recipe.toml'?); "
        "`ptkit new recipe` writes one"
    )
    assert problem(folder / "no" / "a.toml").startswith(
        f"{folder / 'no' / 'a.toml'}: no such file;"
    )
    assert problem(folder) == f"{folder}: is a folder; name the recipe file in it"
    assert problem("a\0b.toml") == "'a\\x00b.toml': can't be read: embedded null byte"
    latin = folder / "latin.toml"
    latin.write_bytes(b"ptkit = 1\n# caf\xe9\n")
    assert problem(latin) == f"{latin}:2: is not UTF-8; save the file as UTF-8"

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert problem(latin) == f"'{latin}': can't be read: Permission denied"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ptkit = 1\nx = \n", "recipe.toml:2: not valid TOML: invalid value"),
        ("ptkit = 1\n\n[a", "recipe.toml:3: not valid TOML: expected ']' at the end of a table"),
        ("a = 1\na = 2\n", "recipe.toml:2: not valid TOML: cannot overwrite a value"),
        ("a = " + "[" * 9999, "recipe.toml: not valid TOML: arrays or tables are nested too deep"),
        ("a = " + "1" * 9999, "recipe.toml: not valid TOML: Exceeds the limit"),
    ],
)
def test_toml_errors_name_the_line(folder: Path, text: str, expected: str) -> None:
    (found,) = lines(folder, text)
    assert found.startswith(expected)


# ------------------------------------------------------------------------------ sections


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "ptkit = 1\n",
            "",
            "ptkit: is missing; write ptkit = 1 at the top, above all sections",
        ),
        (
            "ptkit = 1",
            "ptkit = 2",
            "ptkit: this recipe is made for another version of ptkit: it has format 2, this ptkit "
            "reads format 1",
        ),
        (
            "ptkit = 1",
            "ptkit = true",
            "ptkit: must be the version of the recipe format, 1, got true",
        ),
        ("ptkit = 1", "pktit = 1", "pktit: unknown key (did you mean 'ptkit'?)"),
        ("[train]", "[trian]", "trian: unknown section (did you mean 'train'?)"),
        ("[prefix]", "[perfix]", "perfix: unknown section (did you mean 'prefix'?)"),
        (
            "[train]",
            "[zzz]\n[train]",
            "zzz: unknown section; known: ptkit, backbone, prefix, dataset, transforms, task, "
            "metrics, train, trackers",
        ),
        (
            "[train]",
            "[metric]\n[train]",
            "metric: unknown section (did you mean 'metrics'?)",
        ),
        (
            '[task]\nkind = "write"\n',
            "",
            "task: the section is missing; add [task] with a kind (installed: classify, write)",
        ),
        (
            "[train]\nmax_steps = 5\n",
            "",
            "train: the section is missing; add [train] with max_steps or epochs",
        ),
        ("[[metrics]]", "[metrics]", "metrics: is a list; write [[metrics]] with double brackets"),
        (
            "[train]",
            "[[train]]",
            "train: is a single section; write [train] with single brackets, once",
        ),
        (
            "[backbone]",
            "[[backbone]]",
            "backbone: is a single section; write [backbone] with single brackets, once",
        ),
        ("ptkit = 1", "ptkit = 1\ntransforms = 3", "transforms: must be a list of tables, "),
        ("ptkit = 1", "ptkit = 1\ntransforms = [3]", "transforms.0: must be a table, got 3"),
        ("ptkit = 1", 'ptkit = 1\n"a b" = 3', '"a b": unknown key; known: ptkit, '),
    ],
)
def test_sections(folder: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    assert line(folder, GOOD.replace(old, new)).startswith(expected)


def test_a_section_that_is_no_table(folder: Path) -> None:
    assert line(folder, "prefix = 3\n" + GOOD.replace("[prefix]\nlength = 3\n", "")) == (
        "prefix: must be a table, got 3"
    )
    text = "task = 3\n" + GOOD.replace('[task]\nkind = "write"\n', "")
    assert line(folder, text) == "task: must be a table, got 3"


def test_a_misspelt_section_is_judged_too(folder: Path) -> None:
    text = GOOD.replace("[train]\nmax_steps = 5", "[trian]\nmax_steps = 0")
    assert lines(folder, text) == [
        "recipe.toml: trian: unknown section (did you mean 'train'?)",
        "recipe.toml: trian.max_steps: must be at least 1, got 0",
    ]


@pytest.mark.parametrize(
    ("new", "expected"),
    [
        ("", "task.kind: is missing; installed: classify, write"),
        ("kind = 3", "task.kind: must be a string, got 3"),
        ('knid = "write"', "task.knid: unknown key (did you mean 'kind'?)"),
        (
            'kind = "wirte"\nx = 1',
            "task.kind: unknown kind 'wirte' (did you mean 'write'?); installed: classify, write",
        ),
        ('kind = "WRITE"', "task.kind: unknown kind 'WRITE' (did you mean 'write'?); installed: "),
    ],
)
def test_kinds(folder: Path, new: str, expected: str) -> None:
    assert line(folder, GOOD.replace('kind = "write"', new)).startswith(expected)


def test_with_no_plugin_at_all(folder: Path) -> None:
    path = folder / "recipe.toml"
    path.write_text(GOOD.replace('[task]\nkind = "write"\n', ""))
    with pytest.raises(ptkit.RecipeError) as caught:
        Recipe.load(path, registry=empty_registry())
    found = [text.removeprefix(f"{path}: ") for text in caught.value.lines]
    assert found == [
        "backbone.kind: unknown kind 'tiny'; none is installed",
        "dataset.kind: unknown kind 'lines'; none is installed",
        "metrics.0.kind: unknown kind 'overlap'; none is installed",
        "task: the section is missing; add [task] with a kind (none is installed)",
    ]


# ------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('whole = "5"', "whole: must be a whole number, got '5'"),
        ("whole = true", "whole: must be a whole number, got true"),
        ("whole = 1.0", "whole: must be a whole number, got 1.0"),
        ("whole = [1]", "whole: must be a whole number, got [1]"),
        ("whole = [1,2,3,4,5,6,7,8,9]", "whole: must be a whole number, got an array of 9"),
        ("whole = {a = 1}", "whole: must be a whole number, got a table"),
        ("whole = 2024-01-01", "whole: must be a whole number, got datetime.date(2024, 1, 1)"),
        ("whole = 0", "whole: must be more than 0, got 0"),
        ("whole = 10", "whole: must be less than 10, got 10"),
        ('number = "5"', "number: must be a number, got '5'"),
        ("number = true", "number: must be a number, got true"),
        ("number = nan", "number: must be a finite number, got nan"),
        ("number = inf", "number: must be a finite number, got inf"),
        ("number = 2", "number: must be at most 1, got 2"),
        ("flag = 1", "flag: must be true or false, got 1"),
        ('flag = "true"', "flag: must be true or false, got 'true'"),
        ("text = 1", "text: must be a string, got 1"),
        ('text = "a"', "text: must have at least 2 characters, got 'a'"),
        ('text = "aaaaa"', "text: must have at most 4 characters, got 'aaaaa'"),
        ('text = "xyz"', "text: String should match pattern '^[a-c]+$'"),
        ("path = 3", "path: must be a path, got 3"),
        ('colour = "bleu"', "colour: must be 'red' or 'blue', got 'bleu' (did you mean 'blue'?)"),
        ("colour = 3", "colour: must be 'red' or 'blue', got 3"),
        ("pair = [1]", "pair: must have 2 values, got 1"),
        ("pair = []", "pair: must have 2 values, got 0"),
        ("pair = [1, 2, 3]", "pair: must have at most 2 values, got [1, 2, 3]"),
        ("pair = 3", "pair: must be an array, got 3"),
        ("pair = [1, 'x']", "pair.1: must be a whole number, got 'x'"),
        ("words = {}", "words: must be an array, got a table"),
        ("some = []", "some: must have at least 1 value, got []"),
        ("some = 3", "some: must be an array, got 3"),
        ("table = 3", "table: must be a table, got 3"),
        ("table = {'a b' = 'x'}", "table.\"a b\": must be a whole number, got 'x'"),
        ("inner = 3", "inner: must be a table, got 3"),
        ("inner = {share = 0.7}", "inner.share: must be a multiple of 0.5, got 0.7"),
        ("inner = {shaer = 0.5}", "inner.shaer: unknown key (did you mean 'share'?)"),
        ("inner = {zzz = 0.5}", "inner.zzz: unknown key; known: share, names"),
        ("inners = [{}, {naems = []}]", "inners.1.naems: unknown key (did you mean 'names'?)"),
        ("either = 0", "either: must be at least 1, got 0"),
        ("either = [0, 'x']", "either.1: must be a whole number, got 'x'"),
        ("either = {shaer = 1}", "either.shaer: unknown key (did you mean 'share'?)"),
        ("either = {share = 'x'}", "either.share: must be a number, got 'x'"),
        (
            "either = 'x'",
            "either: must be a whole number or a table or an array, got 'x'",
        ),
        ("named = 'evn'", "named: must be 'none' or 'even', got 'evn' (did you mean 'even'?)"),
        ("named = {x = 0}", "named.x: must be more than 0, got 0"),
        ("named = {x = 'y'}", "named.x: must be a whole number, got 'y'"),
        ("named = 3", "named: must be 'none' or 'even' or a table, got 3"),
        ("named = [3]", "named: must be 'none' or 'even' or a table, got [3]"),
        ("day = 'x'", "day: must be a valid date or datetime, input is too short, got 'x'"),
        ("calss = 'x'", "calss: unknown key (did you mean 'class'?)"),
        ("even = 3", "even: is not valid, got 3 (kind 'everything')"),
        ("odd = 'empty'", "odd: is not valid, got 'empty' (kind 'everything')"),
        (f"whole = '{'x' * 99}'", f"whole: must be a whole number, got '{'x' * 59}…"),
        ("whole = 'a\u2028b'", "whole: must be a whole number, got 'a\\u2028b'"),
        ('whole = "a\\nb"', "whole: must be a whole number, got 'a\\nb'"),
    ],
)
def test_a_wrong_value_is_one_plain_line(folder: Path, text: str, expected: str) -> None:
    assert transform(folder, text) == f"transforms.0.{expected}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limit = 0", "limit: must be at least 1, got 0"),
        ("limit = 'x'", "limit: must be a whole number or a table, got 'x'"),
        ("limit = {trian = 3}", "limit.trian: unknown key (did you mean 'train'?)"),
        ("limit = {train = 0}", "limit.train: must be at least 1, got 0"),
        ("split = 1", "split: must be less than 1, got 1"),
        (
            'on_bad_row = "skpi"',
            "on_bad_row: must be 'error' or 'skip', got 'skpi' (did you mean 'skip'?)",
        ),
        (
            'split = 0.1\nvalidation = "train.json"',
            "split: is given together with validation; remove one of them",
        ),
        (
            "validation = 3",
            "validation: must be a path or the name of a source, as a non-empty string",
        ),
        (
            'validation = ""',
            "validation: must be a path or the name of a source, as a non-empty string",
        ),
        (
            'test = "a\\u0000b"',
            "test: must be a path or the name of a source, as a non-empty string",
        ),
        ('test = "toy:x"', "test: toy has no 'toy:x'; it has 'toy'"),
        ('test = "toy:gone"', "test: 'toy:gone' stands for /nowhere/at/all, which does not exist"),
    ],
)
def test_dataset(folder: Path, text: str, expected: str) -> None:
    text = GOOD.replace('train = "train.json"', f'train = "train.json"\n{text}')
    assert line(folder, text) == f"dataset.{expected}"


def test_a_missing_key(folder: Path) -> None:
    assert line(folder, GOOD.replace('source = "toy"\n', "")) == "backbone.source: is missing"
    # a misspelt key is one mistake, though its right name is missing then
    assert line(folder, GOOD.replace("source =", "sorce =")) == (
        "backbone.sorce: unknown key (did you mean 'source'?)"
    )


def test_paths_that_the_file_system_refuses(folder: Path) -> None:
    for name in ("x" * 300, "train.json/x", "~nobody-of-this-name/x"):
        found = line(folder, GOOD.replace("train.json", name))
        assert found == (
            f"dataset.train: no such file, folder or named source; looked for {folder / name}"
        ), found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            'init = "text"',
            'prefix.init_text: is missing; init = "text" takes the keys and values of this prompt',
        ),
        (
            'init = "text"\ninit_txt = "x"',
            "prefix.init_txt: unknown key (did you mean 'init_text'?)",
        ),
        (
            'init_text = "x"',
            'prefix.init_text: is given, but init is not "text"; set init = "text" or remove it',
        ),
        (
            'init = "text"\ninit_text = "x"\nprojection = true',
            'prefix.projection: can\'t be used with init = "text", which sets the values '
            "themselves; choose one",
        ),
        (
            'init = "txt"\ninit_text = "x"',
            "prefix.init: must be 'normal', 'zero' or 'text', got 'txt' (did you mean 'text'?)",
        ),
        ("dropout = 1", "prefix.dropout: must be less than 1, got 1"),
        ("init_std = 0", "prefix.init_std: must be more than 0, got 0"),
    ],
)
def test_prefix(folder: Path, text: str, expected: str) -> None:
    assert line(folder, GOOD.replace("length = 3", text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "train: max_steps or epochs is missing; give one"),
        ("max_stpes = 3", "train.max_stpes: unknown key (did you mean 'max_steps'?)"),
        (
            "max_steps = 3\nepochs = 1",
            "train.epochs: is given together with max_steps; remove one of them",
        ),
        ('max_steps = "x"', "train.max_steps: must be a whole number, got 'x'"),
        (
            "max_steps = 3\nwarmup_steps = 3",
            "train.warmup_steps: must be less than max_steps (3), got 3",
        ),
        ("max_steps = 3\nbetas = [0.9, 1]", "train.betas.1: must be less than 1, got 1"),
        ("max_steps = 3\nclip_norm = -1", "train.clip_norm: must be at least 0, got -1"),
        (
            "max_steps = 3\nbackbone_dropout = 1",
            "train.backbone_dropout: must be less than 1, got 1",
        ),
        (
            "max_steps = 3\nseed = 4294967296",
            "train.seed: must be less than 4294967296, got 4294967296",
        ),
    ],
)
def test_train(folder: Path, text: str, expected: str) -> None:
    assert line(folder, GOOD.replace("max_steps = 5", text)) == expected


def test_a_missing_duration_does_not_hide_another_mistake(folder: Path) -> None:
    assert lines(folder, GOOD.replace("max_steps = 5", "batch_size = 0")) == [
        "recipe.toml: train: max_steps or epochs is missing; give one",
        "recipe.toml: train.batch_size: must be at least 1, got 0",
    ]


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("value", "this is never right (kind 'broken')"),
        (
            "bug",
            "kind 'broken' (ptkit-toy 1.0): checking the settings raised KeyError: 'a\\nb'; report "
            "it to the plugin's author with the traceback that PTKIT_DEBUG=1 shows",
        ),
    ],
)
def test_validators_of_plugins(folder: Path, how: str, expected: str) -> None:
    text = f'{GOOD}[[transforms]]\nkind = "broken"\nhow = "{how}"\n'
    assert line(folder, text) == f"transforms.0: {expected}"


def test_a_plugin_may_raise_our_errors(folder: Path) -> None:
    text = f'{GOOD}[[transforms]]\nkind = "broken"\nhow = "ptkit"\n'
    assert lines(folder, text) == [
        "recipe.toml: transforms.0: one thing (kind 'broken')",
        "recipe.toml: transforms.0: another (kind 'broken')",
    ]


# ------------------------------------------------------------------------------ what fits


def test_records_must_suit_the_head(folder: Path) -> None:
    assert lines(folder, GOOD.replace('"lines"', '"labels"')) == [
        "recipe.toml: task.kind: 'write' takes GenerationRecord, but dataset.kind 'labels' gives "
        "LabelRecord; heads that fit: classify",
    ]


def test_predictions_must_suit_the_metric(folder: Path) -> None:
    assert lines(folder, GOOD.replace('"overlap"', '"accuracy"')) == [
        "recipe.toml: metrics.0.kind: 'accuracy' scores 'label', but task.kind 'write' predicts "
        "'text'; metrics that fit: overlap",
    ]


def test_fitting_is_checked_beside_other_mistakes(folder: Path) -> None:
    text = GOOD.replace('"labels"', '"labels"\nsplit = 3').replace('"overlap"', '"accuracy"')
    assert len(lines(folder, text.replace("length = 3", "length = 0"))) == 2


def test_a_metric_may_come_twice_but_not_the_same(folder: Path) -> None:
    twice = GOOD + '[[metrics]]\nkind = "overlap"\naverage = "micro"\n'
    assert len(load(folder, twice).metrics) == 2
    same = GOOD + '[[metrics]]\nkind = "overlap"\naverage = "macro"\n'
    assert line(folder, same) == "metrics.1: repeats metrics.0; remove one of them"


# ------------------------------------------------------------------------------ --set


def test_overrides_change_settings(folder: Path) -> None:
    recipe = load(
        folder,
        GOOD,
        "train.max_steps = 7",
        'metrics.0.average="micro"',
        'metrics.1.kind="overlap"',
        'transforms.0.kind="everything"',
        "prefix={length = 2}",
        "train.betas=[0.9, 0.99]",
        "train.betas.0=0.5",
    )
    assert recipe.train.max_steps == 7
    assert recipe.train.betas == (0.5, 0.99)
    assert recipe.prefix.length == 2
    assert [metric.resolved()["average"] for metric in recipe.metrics] == ["micro", "macro"]
    assert len(recipe.transforms) == 1


def test_paths_of_overrides_are_relative_to_the_current_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "other.json").write_text("{}")
    monkeypatch.chdir(here)
    dataset: Any = load(folder, GOOD, 'dataset.train="other.json"').dataset.settings
    assert dataset.train.path == here / "other.json"
    assert dataset.train.name == "other.json"
    whole = load(folder, GOOD, 'dataset={kind = "lines", train = "other.json"}')
    assert dump(whole.dataset.settings)["train"] == str(here / "other.json")
    assert line(folder, GOOD.replace("train.json", "other.json")).startswith(
        "dataset.train: no such file, folder or named source"
    )


def test_problems_say_that_an_override_is_to_blame(folder: Path) -> None:
    assert lines(folder, GOOD, "train.max_steps=0", "train.sede=3") == [
        "recipe.toml: train.max_steps: must be at least 1, got 0 (given by --set)",
        "recipe.toml: train.sede: unknown key (did you mean 'seed'?) (given by --set)",
    ]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b", "--set a.b: has no '='; write --set section.key=value"),
        ("=3", "--set =3: a key is empty; write --set section.key=value"),
        ("a..b=3", "--set a..b=3: a key is empty; write --set section.key=value"),
        (
            "a b=3",
            "--set 'a b=3': 'a b' is not a key; keys are letters, digits, '_' and '-'",
        ),
        ("a.b=", "--set a.b=: has no value; an empty string is --set 'a.b=\"\"'"),
        (
            "backbone.source=nano",
            "--set backbone.source=nano: not a TOML value; a string needs quotes: "
            "--set 'backbone.source=\"nano\"'",
        ),
        (
            'a.b=it\'s "x"',
            "--set 'a.b=it'\"'\"'s \"x\"': not a TOML value; a string needs quotes: "
            '--set \'a.b="it\'"\'"\'s \\"x\\""\'',
        ),
        ("a.b=True", "--set a.b=True: not a TOML value; write --set a.b=true"),
        ("a.b=[1", "--set 'a.b=[1': not a TOML value: unclosed array"),
        (
            "a.b=1\nc=2",
            "--set 'a.b=1 c=2': not a TOML value; a string needs quotes: --set 'a.b=\"1\\nc=2\"'",
        ),
        (
            "a.b=" + "[" * 5000,
            "--set 'a.b="
            + "[" * 75
            + "…: not a TOML value: arrays or tables are nested too deeply",
        ),
        (
            "ptkit.x=1",
            "--set ptkit.x=1: 'ptkit' is neither a table nor a list, so it has no 'x'",
        ),
        ("metrics.kind=1", "--set metrics.kind=1: 'metrics' is a list; write metrics.0.kind=…"),
        (
            "metrics.2.kind=1",
            "--set metrics.2.kind=1: 'metrics' has 1 item, so 1 is the highest index",
        ),
    ],
)
def test_bad_overrides(folder: Path, override: str, expected: str) -> None:
    assert lines(folder, GOOD, override) == [expected]


def test_all_bad_overrides_at_once(folder: Path) -> None:
    assert len(lines(folder, GOOD, "a", "train.seed=1", "b=x")) == 2


# ------------------------------------------------------------------------------ schema


def test_schema_accepts_what_loads_and_refuses_a_typo(folder: Path) -> None:
    schema = recipe_schema(REGISTRY)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    data: dict[str, Any] = load(folder, GOOD + EVERYTHING).resolved()
    validator.validate(data)
    for keys, value in [
        (("trian",), {}),
        (("train", "learnig_rate"), 1),
        (("train", "epochs"), 1),
        (("backbone", "kind"), "tyni"),
        (("backbone", "sorce"), "x"),
        (("task", "average"), "micro"),
        (("ptkit",), 2),
        (("metrics",), [{"kind": "nope"}]),
    ]:
        changed = {k: dict(v) if isinstance(v, dict) else v for k, v in data.items()}
        at = changed
        for key in keys[:-1]:
            at = at[key]
        at[keys[-1]] = value
        assert not validator.is_valid(changed), keys
    for key in ("ptkit", "backbone", "dataset", "task", "train"):
        assert not validator.is_valid({k: v for k, v in data.items() if k != key})


def test_schema_carries_the_docstrings() -> None:
    schema = recipe_schema(REGISTRY)
    lines_schema = schema["$defs"]["dataset.lines"]
    assert lines_schema["properties"]["kind"] == {
        "const": "lines",
        "description": "A line is a prompt.",
    }
    assert lines_schema["properties"]["prompt_column"]["description"] == "The key of the prompt."
    assert lines_schema["additionalProperties"] is False
    train = schema["properties"]["train"]["properties"]
    assert all(field["description"] for field in train.values())
    prefix = schema["properties"]["prefix"]["properties"]
    assert all(field["description"] for field in prefix.values())


def test_schema_without_plugins_and_with_odd_settings(folder: Path) -> None:
    schema = recipe_schema(empty_registry())
    Draft202012Validator.check_schema(schema)
    data = load(folder, GOOD).resolved()
    assert not Draft202012Validator(schema).is_valid(data)

    class Tree(ptkit.Settings):
        below: list[Tree] = []

    class Grow(Everything):
        name = "grow"

        class Settings(Tree):
            pass

    class Opaque(Everything):
        name = "opaque"

        class Settings(ptkit.Settings):
            model_config = {"arbitrary_types_allowed": True}
            thing: math.__class__ = math  # type: ignore[name-defined]

    class Odd:
        @ptkit.hookimpl
        def ptkit_register_transforms(self) -> list[Any]:
            return [Grow, Opaque]

    registry = make_registry()
    registry.register(Odd(), Owner("odd", "odd", "1"))
    assert registry.failures == []
    schema = recipe_schema(registry)
    validator = Draft202012Validator(schema)
    validator.validate(data)
    validator.validate({**data, "transforms": [{"kind": "opaque", "thing": 1}]})
    validator.validate({**data, "transforms": [{"kind": "grow", "below": [{"below": []}]}]})
    bad = {**data, "transforms": [{"kind": "grow", "below": [{"x": []}]}]}
    assert not validator.is_valid(bad)


# ------------------------------------------------------------------------------ anything

_KEYS = st.sampled_from(
    [
        *("ptkit", "backbone", "prefix", "dataset", "transforms", "task", "metrics", "train"),
        *("kind", "source", "length", "init", "init_text", "limit", "validation", "split"),
        *("max_steps", "epochs", "betas", "warmup_steps", "either", "inner", "inners", "table"),
        *("pair", "some", "class", "trian", "knid", "", "a b", "\n"),
    ]
) | st.text(max_size=5)
_SCALARS = (
    st.integers()
    | st.floats()
    | st.booleans()
    | st.text(max_size=5)
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.sampled_from(["tiny", "lines", "write", "overlap", "everything", "broken", "toy", "text"])
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)
_FAST = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=150)


def only_recipe_errors(data: dict[str, Any]) -> None:
    found: tuple[str, ...] = ()
    recipe = None
    try:
        recipe = Recipe.from_dict(data, folder=Path(), name="r", registry=REGISTRY)
    except ptkit.RecipeError as error:
        found = error.lines
    assert (recipe is None) == bool(found)
    assert all(text.startswith("r: ") and len(text.splitlines()) == 1 for text in found)
    if recipe is not None:
        again = Recipe.from_dict(recipe.resolved(), folder=Path(), name="r", registry=REGISTRY)
        assert again.resolved() == recipe.resolved()


@_FAST
@given(st.dictionaries(_KEYS, _VALUES, max_size=8))
def test_any_data_gives_a_recipe_or_lines(data: dict[str, Any]) -> None:
    only_recipe_errors(data)


@_FAST
@given(st.data())
def test_any_change_to_a_good_recipe_gives_a_recipe_or_lines(data: st.DataObject) -> None:
    recipe: dict[str, Any] = {
        "ptkit": 1,
        "backbone": {"kind": "tiny", "source": "toy"},
        "prefix": {},
        "dataset": {"kind": "lines", "train": "toy"},
        "task": {"kind": "write"},
        "metrics": [{"kind": "overlap"}],
        "transforms": [{"kind": "everything", "inner": {}, "inners": [{}], "either": {}}],
        "train": {"max_steps": 3},
    }
    only_recipe_errors(recipe)
    for _ in range(data.draw(st.integers(1, 3))):
        at: Any = recipe
        while data.draw(st.booleans()):
            below = [v for v in (at.values() if isinstance(at, dict) else at) if v]
            below = [v for v in below if isinstance(v, dict | list)]
            if not below:
                break
            at = data.draw(st.sampled_from(below))
        if isinstance(at, list):
            at.append(data.draw(_VALUES))
        else:
            keys = st.sampled_from(sorted(at)) | _KEYS if at else _KEYS
            at[data.draw(keys)] = data.draw(_VALUES)
    only_recipe_errors(recipe)


@_FAST
@given(st.text(max_size=30), st.text(max_size=30))
def test_any_override_gives_a_recipe_or_lines(key: str, value: str) -> None:
    from ptkit.overrides import apply_overrides

    for override in (key, f"{key}={value}", f"train.{key}={value}", f"train.seed={value}"):
        try:
            apply_overrides({"train": {"seed": 1}}, [override])
        except ptkit.RecipeError as error:
            (found,) = error.lines
            assert len(found.splitlines()) == 1


@_FAST
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda t: t.encode(errors="replace")))
def test_any_file_gives_a_recipe_or_lines(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(content)
    with pytest.raises(ptkit.RecipeError):
        Recipe.load(path, registry=REGISTRY)
