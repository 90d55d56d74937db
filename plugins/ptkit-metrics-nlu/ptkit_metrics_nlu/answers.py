"""Exact match and F1 of answers, as the official scripts of SQuAD and CMRC 2018 count them."""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from ptkit import Metric, Pair
from ptkit_metrics_nlu.checked import CheckedRowMetric, counted, is_names

# ------------------------------------------------------------------------------------ both


class _AnswerMetric(CheckedRowMetric):
    """Compares a text with every answer that is right and takes the best score."""

    scores: ClassVar[str] = "answer"
    wants: ClassVar[str] = 'an answer ({"text": …}, "" for none)'

    def fits(self, value: Any) -> bool:
        # an empty dictionary says nothing; one with other keys comes from another task
        return value == {} or (isinstance(value, dict) and isinstance(value.get("text"), str))

    @property
    def wants_reference(self) -> str:
        return "a list of answers (str), empty for a question without one"

    def fits_reference(self, value: Any) -> bool:
        return is_names(value)

    @abstractmethod
    def best(self, said: str, answers: Sequence[str]) -> tuple[float, float]:
        """Exact match and F1, both 0–1, of what was said; there is at least one answer."""

    @abstractmethod
    def is_nothing(self, said: str) -> bool:
        """Whether a text counts as no answer."""

    def exact_and_f1(self, pair: Pair) -> tuple[float, float]:
        """Exact match and F1, percent."""
        said = pair.prediction.get("text", "")
        if _has_answer(pair):
            exact, f1 = self.best(said, pair.reference)
        else:
            exact = f1 = float(self.is_nothing(said))
        return 100.0 * exact, 100.0 * f1

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        lines = super().warnings(pairs)
        answerable = [pair for pair in self.scored(pairs) if _has_answer(pair)]
        silent = sum(not pair.prediction.get("text") for pair in answerable)
        if silent:
            does = "is" if silent == 1 else "are"
            lines.append(
                f"{silent} of {counted(len(answerable), 'question')} with an answer "
                f"{does} answered with nothing"
            )
        return lines


def _has_answer(pair: Pair) -> bool:
    return any(pair.reference)


# ------------------------------------------------------------------------------------ SQuAD

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_words(text: str) -> list[str]:
    """The words that SQuAD compares: lower case, without ASCII punctuation and English articles.

    >>> squad_words("The U.S. Army's  a-team")
    ['us', 'armys', 'ateam']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split()


class Squad(_AnswerMetric):
    """Exact match and F1 over words, the numbers of SQuAD's official evaluation scripts.

    A question without an answer gives 100 for a prediction that says nothing, else 0, in both. If
    there are such questions, scores of the others (``has-answer-exact-match``, ``has-answer-f1``)
    and of those (``no-answer-accuracy``) stand beside the means. By the rules of 2.0, answers
    without a word ("The") are no answers, and a question with no others is right if the prediction
    has no word either; 1.1 counts exact matches of them, and F1 0.

    Worked example: "the tall Eiffel Tower" for "Eiffel Tower!" has the words tall, eiffel, tower
    against eiffel, tower; exact match 0, F1 2 * 2 / (3 + 2) = 80.
    """

    name = "squad"

    class Settings(Metric.Settings):
        version: Literal["2.0", "1.1"] = "2.0"
        """Whose script; they differ for answers that are but articles and punctuation."""

    settings: Settings

    def compare(self, pair: Pair) -> dict[str, float]:
        exact, f1 = self.exact_and_f1(pair)
        return {"exact-match": exact, "f1": f1}

    def best(self, said: str, answers: Sequence[str]) -> tuple[float, float]:
        given = squad_words(said)
        wanted = [squad_words(answer) for answer in answers]
        if self.settings.version == "2.0":
            wanted = [words for words in wanted if words]
            if not wanted:
                right = float(not given)
                return right, right
        return float(given in wanted), max(_word_f1(given, words) for words in wanted)

    def is_nothing(self, said: str) -> bool:
        return not squad_words(said)

    def score(self, pairs: Sequence[Pair]) -> dict[str, float]:
        scored = self.scored(pairs)
        scores = super().score(scored)
        unanswerable = [pair for pair in scored if not _has_answer(pair)]
        if unanswerable:
            answerable = super().score([pair for pair in scored if _has_answer(pair)])
            scores |= {f"has-answer-{name}": value for name, value in answerable.items()}
            scores["no-answer-accuracy"] = super().score(unanswerable)["exact-match"]
        return scores


def _word_f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    common = (Counter(given) & Counter(wanted)).total()
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


# ------------------------------------------------------------------------------------ CMRC

# the script's list also has "……", which no single character equals, so that "…" is no mark
_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")


class Cmrc(_AnswerMetric):
    """Exact match and F1 over Chinese characters and other words, as CMRC 2018's script has them.

    F1 is of the longest run of segments that both texts share, not of a bag of segments; exact
    match compares the texts without punctuation marks. ``average`` is the mean of both, by which
    CMRC ranks. A question without an answer, which CMRC has none of, gives 100 for a prediction
    that says nothing, else 0. The one difference: English is cut into words by nltk's
    NLTKWordTokenizer alone; the script has it cut into sentences first, which sets a full stop
    inside a piece of English free, and for which nltk must download a model.

    Worked example: "1998年5月" for "1998年" has the segments 1998 年 5 月 against 1998 年; the
    shared run has 2, precision 2 / 4, recall 2 / 2, F1 66.7, exact match 0.
    """

    name = "cmrc"

    def compare(self, pair: Pair) -> dict[str, float]:
        exact, f1 = self.exact_and_f1(pair)
        return {"exact-match": exact, "f1": f1, "average": (exact + f1) / 2}

    def best(self, said: str, answers: Sequence[str]) -> tuple[float, float]:
        exact = any(_without_marks(said) == _without_marks(answer) for answer in answers)
        given = cmrc_segments(said)
        return float(exact), max(_run_f1(given, cmrc_segments(answer)) for answer in answers)

    def is_nothing(self, said: str) -> bool:
        return not _without_marks(said).strip()

    def warnings(self, pairs: Sequence[Pair]) -> list[str]:
        lines = super().warnings(pairs)
        scored = self.scored(pairs)
        unanswerable = sum(not _has_answer(pair) for pair in scored)
        if unanswerable:
            has = "has" if unanswerable == 1 else "have"
            lines.append(
                f"{unanswerable} of {counted(len(scored), 'question')} {has} no answer, for which "
                "CMRC 2018 has no rule: 100 for saying nothing, else 0"
            )
        return lines


def cmrc_segments(text: str) -> list[str]:
    """Chinese characters one by one, what stands between them in words; no punctuation marks.

    >>> cmrc_segments("《Hello World》是1998年。")
    ['hello', 'world', '是', '1998', '年']
    """
    segments: list[str] = []
    other = ""
    for character in _without_marks(text):
        if "\u4e00" <= character <= "\u9fa5":
            segments += [*_english_words(other), character]
            other = ""
        else:
            other += character
    return segments + _english_words(other)


def _without_marks(text: str) -> str:
    return "".join(c for c in text.lower().strip() if c not in _MARKS)


def _english_words(text: str) -> list[str]:
    if not text.strip():
        return []
    from nltk.tokenize import NLTKWordTokenizer  # type: ignore[import-untyped]

    words: list[str] = NLTKWordTokenizer().tokenize(text)
    return words


def _run_f1(given: Sequence[str], wanted: Sequence[str]) -> float:
    run = longest_common_run(given, wanted)
    return 2 * run / (len(given) + len(wanted)) if run else 0.0


def longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """How many elements the longest piece has that stands, unbroken, in both.

    >>> longest_common_run("abcde", "xbcxde")
    2
    """
    places: dict[str, list[int]] = defaultdict(list)
    for place, element in enumerate(second):
        places[element].append(place)
    longest = 0
    ending: dict[int, int] = {}  # the length of the run that ends at each place of ``second``
    for element in first:
        ending = {place: ending.get(place - 1, 0) + 1 for place in places.get(element, ())}
        longest = max(longest, *ending.values(), 0)
    return longest
