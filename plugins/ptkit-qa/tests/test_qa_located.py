from __future__ import annotations

import json

import pytest
from ptkit_qa.located import Item, located

LEVELS = ("data", "qas")


def test_items_know_where_they_stand():
    text = ' {"v": [1], "data": [ {"qas":[7 ,\n "x"]}, {"qas": {"qas": [1]}}, 3 ]} \n'
    found = located(text, LEVELS)
    first, second, third = found["data"]
    assert found["v"] == [1]
    assert first.value == {"qas": [Item(text.index("7"), 7), Item(text.index('"x"'), "x")]}
    assert second.value == {"qas": {"qas": [1]}}
    assert third == Item(text.index("3 ]"), 3)
    assert [text[item.at] for item in (first, second)] == ["{", "{"]


def test_a_document_that_is_a_list():
    assert located('[{"data": [5]}]', LEVELS) == [Item(1, {"data": [Item(11, 5)]})]


@pytest.mark.parametrize("text", ["3", '"a"', "null", "{}", '{"data": []}', '{"data": 3}', "[]"])
def test_other_documents(text):
    assert located(text, LEVELS) == json.loads(text)


def plain(found: object) -> object:
    """The document without the places."""
    if isinstance(found, Item):
        return plain(found.value)
    if isinstance(found, list):
        return [plain(item) for item in found]
    if isinstance(found, dict):
        return {key: plain(value) for key, value in found.items()}
    return found


def test_the_values_are_those_of_json():
    document = {"a": {"b": [1.5, None]}, "data": [{"x": "裙", "qas": [{"id": "\n"}, []]}, []]}
    for indent in (None, 1):
        assert plain(located(json.dumps(document, indent=indent), LEVELS)) == document


@pytest.mark.parametrize(
    "text",
    [
        *('{"data": [1, 2}', '{"data": [1 2]}', '{"data": [1,]}', '{"data" [1]}', '{"data": [1]'),
        *('{"data": [1]} x', "{data: [1]}", '{"a": 1,}', '{"a": 1 "b": 2}', "", "[1", '{"a'),
        *('{"data": [{"qas": [tru]}]}', '{"data": [{"qas": ["a\n"]}]}', '{"a":', "[,1]", "{,}"),
    ],
)
def test_broken_documents(text):
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    with pytest.raises(json.JSONDecodeError):
        located(text, LEVELS)
