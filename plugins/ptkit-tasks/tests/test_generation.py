"""The generation head: rows, cuts, losses by hand, constants."""

from __future__ import annotations

import ptkit_tasks
import pytest
from ptkit_tasks.generation import Generation

import ptkit
from ptkit.testing import TinyBackbone, WordTokenizer, check_task_head, tiny_model

IGNORE = ptkit.IGNORE


class Letters(ptkit.Tokenizer):
    """One id a character, 1000 in front of everything; the template is ``<history>Q query A``."""

    vocab_size = 1001
    pad_id = 0
    eos_id = 2
    start_ids = (1000,)
    fingerprint = "letters"

    def encode(self, text: str) -> list[int]:
        return [ord(char) % 1000 for char in text]

    def pieces(self, text: str) -> list[int]:
        return self.encode(text)

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        return self.encode(text), [(i, i + 1) for i in range(len(text))]

    def decode(self, ids: object) -> str:
        return "".join(chr(i) for i in ids if i < 1000)  # type: ignore[attr-defined]

    def prompt(self, query: str, history: object = ()) -> ptkit.PromptParts:
        past = "".join(f"({q}{r})" for q, r in history)  # type: ignore[attr-defined]
        return ptkit.PromptParts(f"{past}Q", query, "A")


def record(prompt: str, response: str | None = "yz", **kwargs: object) -> ptkit.GenerationRecord:
    origin = ptkit.Origin("a.json", 1)
    return ptkit.GenerationRecord(origin=origin, prompt=prompt, response=response, **kwargs)  # type: ignore[arg-type]


def encoded(head: Generation, of: ptkit.GenerationRecord) -> tuple[str, str, int]:
    """Prompt and trained text of the only row, and how much was cut."""
    (row,) = head.encode(of, Letters())
    assert len(row.tokens) == len(row.labels)
    assert row.tokens[0] == 1000
    trained = [label for label in row.labels if label != IGNORE]
    assert row.tokens[len(row.tokens) - len(trained) :] == tuple(trained)
    prompt = row.tokens[1 : len(row.tokens) - len(trained)]
    return Letters().decode(prompt), "".join(map(chr, trained)), row.cut


def head(**settings: object) -> Generation:
    return Generation(Generation.Settings(**settings))  # type: ignore[arg-type]


def test_a_row_is_prompt_answer_eos() -> None:
    assert encoded(head(), record("abc")) == ("QabcA", "yz\x02", 0)


def test_an_unanswered_record_is_a_prompt() -> None:
    (row,) = head().encode(record("abc", None), Letters())
    assert row.tokens == (1000, *map(ord, "QabcA"))
    assert set(row.labels) == {IGNORE}


def test_a_long_query_is_cut_inside_the_query() -> None:
    assert encoded(head(max_source_tokens=6), record("abcdefgh")) == ("QabcA", "yz\x02", 5)


def test_the_published_cut_loses_the_cue() -> None:
    cut = head(max_source_tokens=6, truncation="published")
    assert encoded(cut, record("abcdefgh")) == ("Qabcd", "yz\x02", 5)


def test_a_long_answer_is_cut_and_still_ends() -> None:
    assert encoded(head(max_target_tokens=3), record("a", "uvwxyz")) == ("QaA", "uvw\x02", 3)


@pytest.mark.parametrize(
    ("limit", "prompt"),
    [(13, "(mn)(op)QabA"), (12, "(op)QabA"), (9, "(op)QabA"), (8, "QabA"), (4, "QaA")],
)
def test_the_oldest_turns_go_first(limit: int, prompt: str) -> None:
    rows = record("ab", history=(("m", "n"), ("o", "p")))
    got, _, cut = encoded(head(max_source_tokens=limit), rows)
    assert got == prompt
    assert cut == len("(mn)(op)QabA") - len(prompt)


def test_a_limit_below_the_template_is_refused() -> None:
    with pytest.raises(
        ptkit.RecipeError, match=r"max_source_tokens = 2 leaves no room .* has 3 tokens"
    ):
        encoded(head(max_source_tokens=2), record("abc"))


def test_an_empty_query_and_a_cut_to_nothing_fit() -> None:
    assert encoded(head(max_source_tokens=3), record("abc"))[0] == "QA"


def test_the_loss_is_summed_over_answer_and_eos() -> None:
    import torch

    backbone = TinyBackbone()
    model = tiny_model(backbone)
    rows = [
        ptkit.EncodedRow(row, index)
        for index, text in enumerate(["好 看", "红色 的 裙"])
        for row in head().encode(record("裙", text), backbone.tokenizer)
    ]
    loss = head().loss(None, model.states(rows), rows)
    for row, total, count in zip(rows, loss.sums, loss.weights, strict=True):
        chosen = [i for i, label in enumerate(row.labels) if label != IGNORE]
        logits = model.logits(row.tokens).log_softmax(-1)
        by_hand = -sum(logits[i - 1, row.labels[i]] for i in chosen)
        torch.testing.assert_close(total, by_hand)
        assert int(count) == len(chosen)


@pytest.mark.parametrize("settings", [{}, {"sampling": {"temperature": 1.0, "seed": 3}}])
def test_it_keeps_the_contract(settings: dict[str, object]) -> None:
    records = [record(f"类型#裙 {i}", f"这 是 {i}") for i in range(4)]
    made = head(max_target_tokens=6, **settings)
    check_task_head(made, records, unanswered=[record("x", None)], backbone=TinyBackbone())


def test_constants_share_most_with_the_others() -> None:
    answers = ["ab ab", "ab ac", "ab ad", "zz zz"]
    records = [record("q", answer) for answer in answers * 3]
    found = head().constants(records, seed=0)
    assert set(found[:3]) == set(answers[:3])
    assert found[-1] == "zz zz"
    assert head().constants(records, seed=0) == found
    assert head().constants([record("q", None)], seed=0) == []
    assert len(head().constants([record("q", f"answer {i}") for i in range(50)], seed=0)) == 8


def test_settings_are_checked() -> None:
    for wrong in ({"max_source_tokens": 0}, {"truncation": "tail"}, {"sampling": {"top_p": 0}}):
        with pytest.raises(ValueError, match="validation error"):
            head(**wrong)


def test_the_plugin_registers_the_head() -> None:
    assert ptkit_tasks.ptkit_register_task_heads() == [Generation]
    assert isinstance(TinyBackbone().tokenizer, WordTokenizer)
