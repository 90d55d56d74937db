"""The generation head: rows, cuts, losses by hand, constants."""

from __future__ import annotations

import re

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
    assert Generation in ptkit_tasks.ptkit_register_task_heads()
    assert isinstance(TinyBackbone().tokenizer, WordTokenizer)


# ------------------------------------------------------------------------------ train_on


class Talk(Letters):
    """Letters whose template has an answer behind its own prompt: ``Q query A answer ;``."""

    def prompt(self, query: str, history: object = ()) -> ptkit.PromptParts:
        past = "".join(f"Q{q}A{r};" for q, r in history)  # type: ignore[attr-defined]
        return ptkit.PromptParts(f"{past}Q", query, "A")


def trained(row: ptkit.Row) -> list[str]:
    """The text of each run of labels."""
    runs = [""]
    for token, label in zip(row.tokens, row.labels, strict=True):
        if label == IGNORE:
            runs.append("")
        else:
            assert label == token
            runs[-1] += chr(label)
    return [run for run in runs if run]


TALK = (("ab", "cd"), ("ef", "gh"))


def test_all_answers_are_trained_on_and_the_last_one_has_the_eos() -> None:
    both = [head(train_on=value) for value in ("answer", "all-answers")]
    (last,), (every,) = (made.encode(record("ij", "kl", history=TALK), Talk()) for made in both)
    assert Letters().decode(last.tokens) == "QabAcd;QefAgh;QijAkl\x02"
    assert last.tokens == every.tokens
    assert trained(last) == ["kl\x02"]
    assert trained(every) == ["cd", "gh", "kl\x02"]


@pytest.mark.parametrize(
    ("settings", "runs", "cut", "cut_targets"),
    [
        ({"max_source_tokens": 18}, ["gh", "kl\x02"], 7, 2),
        ({"max_source_tokens": 12}, ["gh", "kl\x02"], 7, 2),
        ({"max_source_tokens": 11}, ["kl\x02"], 14, 4),
        ({"max_source_tokens": 4}, ["kl\x02"], 15, 4),
        ({"max_target_tokens": 1}, ["cd", "gh", "k\x02"], 1, 1),
        # the tail of the prompt is cut; an answer at its end loses the label of its last letter, or
        # nothing would tell it from the row's own answer
        ({"max_source_tokens": 14, "truncation": "published"}, ["cd", "g", "kl\x02"], 5, 1),
        ({"max_source_tokens": 15, "truncation": "published"}, ["cd", "gh", "kl\x02"], 4, 0),
        ({"max_source_tokens": 12, "truncation": "published"}, ["cd", "kl\x02"], 7, 2),
    ],
)
def test_answers_that_were_cut(
    settings: dict[str, object], runs: list[str], cut: int, cut_targets: int
) -> None:
    made = head(train_on="all-answers", **settings)
    (row,) = made.encode(record("ij", "kl", history=TALK), Talk())
    assert (row.cut, row.cut_targets) == (cut, cut_targets)
    assert trained(row) == runs


def test_rows_to_be_answered_have_no_labels() -> None:
    made = head(train_on="all-answers")
    (row,) = made.encode(record("ij", None, history=TALK), Talk())
    assert set(row.labels) == {IGNORE}


def test_predictions_begin_behind_the_whole_prompt() -> None:
    model = tiny_model(TinyBackbone())
    tokenizer = TinyBackbone().tokenizer
    talk = record("红 裙", "好 看", history=(("蓝 裙", "不 错"),))
    answers = []
    for train_on in ("answer", "all-answers"):
        made = head(train_on=train_on, max_target_tokens=6)
        rows = [ptkit.EncodedRow(made.encode(talk, tokenizer)[0], 0)]
        answers.append(made.predict(model, None, rows))
    unanswered = record("红 裙", None, history=talk.history)
    rows = [ptkit.EncodedRow(head().encode(unanswered, tokenizer)[0], 0)]
    answers.append(head(max_target_tokens=6).predict(model, None, rows))
    assert answers[0] == answers[1] == answers[2]


def test_the_contract_holds_with_all_answers() -> None:
    records = [record(f"裙 {i}", f"这 是 {i}", history=(("裤", "好 看"),) * i) for i in range(4)]
    made = head(max_target_tokens=6, train_on="all-answers")
    check_task_head(made, records, unanswered=[record("x", None)], backbone=TinyBackbone())


class Merging(Talk):
    """Takes ``Ac`` and ``d;`` for one token each."""

    def offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        spans = [found.span() for found in re.finditer("Ac|d;|.", text)]
        return [900 if stop - start > 1 else ord(text[start]) for start, stop in spans], spans

    def encode(self, text: str) -> list[int]:
        return self.offsets(text)[0]


def test_tokens_across_the_edge_of_an_answer_are_not_trained_on() -> None:
    """Where an answer is written, its prompt has ended: such a token can't come there."""
    talk = record("ij", "kl", history=(("ab", "cxd"),))
    (row,) = head(train_on="all-answers").encode(talk, Merging())
    assert row.tokens == (1000, *map(ord, "Qab"), 900, ord("x"), 900, *map(ord, "QijAkl\x02"))
    assert trained(row) == ["x", "kl\x02"]


class OtherIds(Talk):
    def encode_prompts(self, prompts: object) -> list[list[int]]:
        return [[*ids, 7] for ids in super().encode_prompts(prompts)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Letters(), "needs a prompt template in which an earlier answer stands behind its own"),
        (OtherIds(), r"needs a tokenizer whose prompt_offsets\(\) gives the ids of encode_prompts"),
    ],
)
def test_templates_that_do_not_fit_are_refused(tokenizer: ptkit.Tokenizer, message: str) -> None:
    talk = record("ij", "kl", history=TALK)
    head().encode(talk, tokenizer)
    with pytest.raises(ptkit.RecipeError, match=message):
        head(train_on="all-answers").encode(talk, tokenizer)
