"""The data sets of `nlu_quality.py`: what is learnt from them, and their rows, encoded."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Task:
    """A data set, what is learnt from it, and what counts.

    ``files``: train, validation and test, relative to the data folder; without the second a tenth
    of the training rows is held out. ``prompt``: the text that a text start begins with.
    ``coarse``: of a label such as HUM:ind, only what stands before the colon. ``seconds``: what a
    job took on an H100 that 14 share, roughly; longer ones are begun earlier. ``graphs``: whether
    packs of rows come in so few sizes that a CUDA graph of each is worth its capture.
    """

    files: tuple[str, str | None, str]
    form: str
    head: str
    metric: str
    score: str
    prompt: str
    epochs: int
    seconds: int
    length: int = 16
    cap: int | None = None
    coarse: bool = False
    graphs: bool = True
    dataset: dict[str, Any] = field(default_factory=dict)
    task: dict[str, Any] = field(default_factory=dict)


POOLED = {"hidden": "tanh", "dropout": 0.1}
LINEAR = {"hidden": "none", "dropout": 0.0}  # of those, what a linear probe has
SMOOTH = {**POOLED, "label_smoothing": 0.1}
LINES = {"file_type": "lines"}
TASKS = {
    "sst2": Task(
        ("sst2/train.txt", "sst2/dev.txt", "sst2/test.txt"),
        "labelled-text",
        "sequence-classification",
        "accuracy",
        "accuracy",
        "Is this movie review positive or negative? Does the reviewer like the film or not?",
        epochs=6,
        seconds=150,
        dataset=LINES,
        task=SMOOTH,
    ),
    "trec": Task(
        ("trec/TREC.train", None, "trec/TREC.test"),
        "labelled-text",
        "sequence-classification",
        "accuracy",
        "accuracy",
        "What type of question is this? Is it about a person, a place, a number or a thing?",
        epochs=10,
        seconds=170,
        coarse=True,
        dataset={**LINES, "encoding": "latin-1"},
        task=SMOOTH,
    ),
    "rte": Task(
        ("rte/train.tsv", None, "rte/dev.tsv"),
        "labelled-text",
        "sequence-classification",
        "accuracy",
        "accuracy",
        "Does the second sentence follow from the first one? Yes or no?",
        epochs=8,
        seconds=110,
        dataset={"text_column": "sentence1", "second_column": "sentence2"},
        task=SMOOTH,
    ),
    "copa": Task(
        ("copa/train.jsonl", None, "copa/val.jsonl"),
        "choices-jsonl",
        "multiple-choice",
        "choice-accuracy",
        "choice-accuracy",
        "Which of the two is the more likely cause or effect of what happened?",
        epochs=12,
        seconds=50,
        dataset={
            "question_columns": ["premise", "question"],
            "choice_columns": ["choice1", "choice2"],
            "answer_column": "label",
            "question_words": {
                "question": {
                    "cause": "What was the cause?",
                    "effect": "What happened as a result?",
                }
            },
        },
        task=POOLED,
    ),
    "ecommerce": Task(
        ("ecommerce-ner/train.txt", "ecommerce-ner/dev.txt", "ecommerce-ner/test.txt"),
        "conll",
        "token-classification",
        "entity-f1",
        "entity-f1",
        "Find the brands and the products in this title of an offer.",
        epochs=5,
        seconds=90,
        length=64,
        cap=3000,
        dataset={"joiner": ""},
        task={"max_tokens": 128},
    ),
    "squad": Task(
        ("squad/train_44articles.json", None, "squad/dev.json"),
        "squad",
        "span-extraction",
        "squad",
        "f1",
        "Which words of the passage answer the question?",
        epochs=3,
        seconds=100,
        length=64,
        cap=3000,
        graphs=False,  # 44 sizes in 282 steps
        task={"max_tokens": 320},
    ),
}


class Data:
    """A task's rows, encoded, the frozen model, and what else all jobs of the task share."""

    def __init__(self, task: str, folder: Path, model: str, caps: tuple[int, int]) -> None:
        from ptkit_transformers.backbone import Encoder

        from ptkit.data import encode_part
        from ptkit.registry import load_plugins
        from ptkit.settings import SourcePath

        self.spec, self.folder, self.caps = TASKS[task], folder, caps
        self._registry = load_plugins()
        self.backbone = Encoder(Encoder.Settings(source=SourcePath("minilm", Path(model))))
        train = SourcePath("train", folder / self.spec.files[0])
        form = self.component("dataset", self.spec.form, {"train": train, **self.spec.dataset})
        self.parts = {name: self._part(name, form) for name in ("train", "validation", "test")}
        head = self.component("task", self.spec.head, self.spec.task)
        self.labels = head.collect_labels(iter(self.parts["train"].records))
        head = self.component("task", self.spec.head, self.spec.task, labels=self.labels)
        for part in self.parts.values():
            encode_part(part, head, self.backbone.tokenizer, self.backbone.geometry.max_positions)
        gc.freeze()  # a million small objects, which capturing a CUDA graph would look through

    def component(self, section: str, kind: str, values: dict[str, Any], **kwargs: Any) -> Any:
        cls = self._registry.components[section][kind].component
        return cls(cls.Settings(**values), **kwargs)

    def _part(self, name: str, form: Any) -> Any:
        from ptkit.data import Part
        from ptkit.records import BadRow
        from ptkit.settings import SourcePath

        most, most_tested = self.caps
        train, validation, test = self.spec.files
        own = {"train": train, "validation": validation or train, "test": test}[name]
        path = self.folder / own
        records = [r for r in form.read(path, own) if not isinstance(r, BadRow)]
        if self.spec.coarse:
            records = [replace(r, label=r.label.split(":")[0]) for r in records]
        if validation is None and name != "test":
            drawn = np.random.default_rng(0).permutation(len(records)).tolist()
            held = len(records) // 10
            chosen = drawn[:held] if name == "validation" else drawn[held:]
            records = [records[i] for i in chosen]
        elif name == "train":
            order = np.random.default_rng(0).permutation(len(records)).tolist()
            records = [records[i] for i in order]
        cap = min(self.spec.cap or most, most) if name == "train" else most_tested
        if name == "test" and len(records) > cap:  # whole articles would come first
            picked = np.random.default_rng(0).permutation(len(records))[:cap]
            records = [records[i] for i in sorted(picked.tolist())]
        return Part.of(name, SourcePath(own, path), records[:cap])


data_of = cache(Data)  # for each process
