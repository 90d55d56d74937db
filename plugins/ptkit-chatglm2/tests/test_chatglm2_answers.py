"""Which tokens of the published prompts belong to earlier answers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ptkit_chatglm2.tokenizer import ChatGLM2Tokenizer, ChatGLM3Tokenizer
from ptkit_nano import ptkit_resolve_source
from ptkit_tasks.generation import Generation

import ptkit

FOLDER = ptkit_resolve_source("nano")
assert FOLDER is not None
TOKENIZERS = [made(FOLDER / "tokenizer.model") for made in (ChatGLM2Tokenizer, ChatGLM3Tokenizer)]
SETTINGS = {"max_source_tokens": 100_000, "max_target_tokens": 100_000}
ANSWER, ALL = (
    Generation(Generation.Settings(train_on=train_on, **SETTINGS))  # type: ignore[arg-type]
    for train_on in ("answer", "all-answers")
)


def row(head: Generation, tokenizer: ptkit.Tokenizer, *turns: tuple[str, str]) -> ptkit.Row:
    *history, (prompt, response) = turns
    record = ptkit.GenerationRecord(
        origin=ptkit.Origin("a.json", 1), prompt=prompt, response=response, history=tuple(history)
    )
    (found,) = head.encode(record, tokenizer)
    return found


def answers(found: ptkit.Row, tokenizer: ptkit.Tokenizer) -> list[str]:
    """The text of each run of labels."""
    runs: list[list[int]] = [[]]
    for token, label in zip(found.tokens, found.labels, strict=True):
        assert label in (token, ptkit.IGNORE)
        if label == ptkit.IGNORE:
            runs.append([])
        else:
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: type(t).__name__)
def test_a_conversation(tokenizer: ptkit.Tokenizer) -> None:
    turns = [("红色的裙", "好看。"), ("答：", "\n是 \U0001f600"), ("几点？", "九点\n\n[Round 2]")]
    last, every = (row(head, tokenizer, *turns) for head in (ANSWER, ALL))
    assert last.tokens == every.tokens
    assert answers(last, tokenizer) == ["九点\n\n[Round 2]"]
    assert answers(every, tokenizer) == [answer for _, answer in turns]
    assert every.labels.count(tokenizer.eos_id) == 1
    assert every.labels[-1] == tokenizer.eos_id


# U+2581 is sentencepiece's blank, and a blank at an end may be taken for its own
texts = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs"], exclude_characters="\u2581"))
turn = st.tuples(texts, texts.filter(len))


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: type(t).__name__)
@given(turns=st.lists(turn, min_size=1, max_size=4))
def test_all_answers_are_labels_and_the_tokens_stay(
    tokenizer: ptkit.Tokenizer, turns: list[tuple[str, str]]
) -> None:
    last, every = (row(head, tokenizer, *turns) for head in (ANSWER, ALL))
    assert last.tokens == every.tokens
    assert answers(every, tokenizer) == [answer for _, answer in turns]
    assert answers(last, tokenizer) == [turns[-1][1]]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=lambda t: type(t).__name__)
@given(turns=st.lists(turn, max_size=3), query=texts)
def test_offsets_of_prompts(
    tokenizer: ptkit.Tokenizer, turns: list[tuple[str, str]], query: str
) -> None:
    parts = tokenizer.prompt(query, turns)
    ids, spans = tokenizer.prompt_offsets(parts)
    assert ids == tokenizer.encode_prompts([parts])[0]
    assert len(ids) == len(spans)
    assert all(0 <= start <= stop <= len(parts.text) for start, stop in spans)
