"""The 25 kinds of instruction that a program can check, of IFEval (Zhou et al. 2023, arXiv 2311.07911).

A row names them as the published file does:

    {"prompt": ..., "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}

What is checked follows the authors' published code (also where that is kinder than the words of the instruction), so
that figures can be compared, with two exceptions: sentences and words are found by rules of our own instead of nltk's
trained tokenizer, and keywords are words, never regular expressions. Against the copy of that code in lm-eval 0.4.13,
with nltk 3.10.4 and its data, `scripts/ifeval_agreement.py` found the same verdict for 49,875 of 49,920 instructions;
43 of the others were numbers of sentences (of 3,120), 2 numbers of words in capitals (of 1,500).

A policy that trains on it can use its kindness: a text without letters has any language, and the two answers of
`combination:two_responses` need differ by no more than a letter.
"""

import inspect
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from burnish.config.extras import requires_extra
from burnish.errors import DataError
from burnish.records import Completion, Task


def follows_instructions(completion: Completion, task: Task) -> float:
    """The share of the row's instructions that the completion follows. An empty completion follows none.

    The mean over tasks is not yet IFEval's figure at the level of prompts: that counts the tasks whose share is 1,
    as a held-out evaluation with `evaluation.right_at` 1 does.

    Raises:
        DataError: the row has no instructions, or one that is not among the 25 or lacks its arguments.
        ConfigError: the row asks for a language, and langdetect is not installed.
    """
    followed = followed_instructions(completion.text, task)
    return sum(followed) / len(followed)


def follows_instructions_loosely(completion: Completion, task: Task) -> float:
    """As `follows_instructions`, counting an instruction that one of eight versions of the completion follows.

    The versions lack the first line, the last, both or neither, each with and without its asterisks (section 2.2).
    """
    lines = completion.text.split("\n")
    cuts = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = [completion.text, *("\n".join(cut).strip() for cut in cuts[1:])]
    versions = [followed_instructions(version, task) for text in texts for version in (text, text.replace("*", ""))]
    followed = [any(instruction) for instruction in zip(*versions, strict=True)]
    return sum(followed) / len(followed)


def followed_instructions(text: str, task: Task) -> list[bool]:
    """Whether `text` follows each instruction of the row.

    Raises:
        DataError, ConfigError: as `follows_instructions`.
    """
    return [bool(text.strip()) and check(text, **arguments) for check, arguments in _instructions(task)]


def _instructions(task: Task) -> list[tuple[Callable[..., bool], dict[str, Any]]]:
    kinds, arguments = task.extra.get("instruction_id_list"), task.extra.get("kwargs")
    if not isinstance(kinds, list) or not isinstance(arguments, list) or not kinds or len(kinds) != len(arguments):
        raise DataError(
            f"task {task.id}: needs 'instruction_id_list' and 'kwargs', lists of the same length, at least 1"
        )
    found = []
    for kind, given in zip(kinds, arguments, strict=True):
        if kind not in CHECKS:
            raise DataError(f"task {task.id}: instruction {kind!r} is not known; known are {', '.join(CHECKS)}")
        named = {key: value for key, value in (given or {}).items() if value is not None}
        try:
            inspect.signature(CHECKS[kind]).bind("", **named)
        except TypeError as error:
            raise DataError(f"task {task.id}: arguments of {kind}: {error}") from error
        found.append((CHECKS[kind], named))
    return found


# keywords


def _has_keywords(text: str, keywords: Sequence[str]) -> bool:
    return all(_count(keyword, text) for keyword in keywords)


def _keyword_frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return _holds(_count(keyword.strip(), text), relation, frequency)


def _lacks_words(text: str, forbidden_words: Sequence[str]) -> bool:
    return not any(re.search(rf"\b{re.escape(word)}\b", text, re.IGNORECASE) for word in forbidden_words)


def _letter_frequency(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return _holds(text.lower().count(letter.lower()), let_relation, let_frequency)


# language and case


def _in_language(text: str, language: str) -> bool:
    return _language_of(text) in (language, None)


def _english_capital(text: str) -> bool:
    return text.isupper() and _in_language(text, "en")


def _english_lowercase(text: str) -> bool:
    return text.islower() and _in_language(text, "en")


def _capital_word_frequency(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(sum(word.isupper() for word in words_of(text)), capital_relation, capital_frequency)


# length


def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return _holds(count_sentences(text), relation, num_sentences)


def _number_words(text: str, num_words: int, relation: str) -> bool:
    return _holds(len(re.findall(r"\w+", text)), relation, num_words)


def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    return _count_parts(re.split(r"\s?\*\*\*\s?", text)) == num_paragraphs


def _nth_paragraph_first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    # The number counts the empty paragraphs before it too, and may not exceed that of the others.
    paragraphs = text.split("\n\n")
    filled = sum(bool(paragraph.strip()) for paragraph in paragraphs)
    if filled != num_paragraphs or not 1 <= nth_paragraph <= filled:
        return False
    words = paragraphs[nth_paragraph - 1].split()
    return bool(words) and re.split(r"""[.,?!'"]""", words[0].lstrip("'").lstrip('"').lower())[0] == first_word.lower()


# content and format


def _number_placeholders(text: str, num_placeholders: int) -> bool:
    return sum(_count_brackets(line) for line in text.split("\n")) >= num_placeholders


def _count_brackets(line: str) -> int:
    # Not a regular expression: for an opening bracket without end it would look through the rest of the line each time.
    number, end = 0, -1
    while (start := line.find("[", end + 1)) >= 0 and (end := line.find("]", start)) >= 0:
        number += 1
    return number


def _postscript(text: str, postscript_marker: str) -> bool:
    patterns = {"P.P.S": r"p\.\s?p\.\s?s", "P.S.": r"p\.\s?s\."}
    pattern = patterns.get(postscript_marker, re.escape(postscript_marker.strip().lower()))
    return re.search(pattern, text.lower()) is not None


def _number_bullets(text: str, num_bullets: int) -> bool:
    stars = re.findall(r"^[^\S\n]*\*[^\*].*$", text, re.MULTILINE)
    dashes = re.findall(r"^[^\S\n]*-.*$", text, re.MULTILINE)
    return len(stars) + len(dashes) == num_bullets


def _constrained_response(text: str) -> bool:
    return any(f"My answer is {option}." in text for option in ("yes", "no", "maybe"))


def _number_highlights(text: str, num_highlights: int) -> bool:
    # **Bold** text counts by both patterns when something stands between its inner asterisks and others, as published.
    single = [found.strip("*") for found in re.findall(r"\*[^\n\*]*\*", text)]
    double = [found[2:-2] for found in re.findall(r"\*\*[^\n\*]*\*\*", text)]
    return sum(bool(found.strip()) for found in single + double) >= num_highlights


def _multiple_sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter)}\s?\d+", text)) >= num_sections


def _json_format(text: str) -> bool:
    text = text.strip()
    for fence in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(fence)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str) -> bool:
    for line in text.split("\n"):
        start, end = line.find("<<"), line.rfind(">>")
        if 0 <= start < end and line[start:end].lstrip("<").rstrip(">").strip():
            return True
    return False


def _two_responses(text: str) -> bool:
    parts = text.split("******")
    answers = {part.strip() for part in parts if part.strip()}
    return _count_parts(parts) == 2 and len(answers) == 2


def _repeats_prompt(text: str, prompt_to_repeat: str) -> bool:
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _ends_with(text: str, end_phrase: str) -> bool:
    return text.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _quotation(text: str) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _no_comma(text: str) -> bool:
    return "," not in text


CHECKS: Mapping[str, Callable[..., bool]] = {
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "combination:repeat_prompt": _repeats_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:json_format": _json_format,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:number_bullet_lists": _number_bullets,
    "detectable_format:number_highlighted_sections": _number_highlights,
    "detectable_format:title": _title,
    "keywords:existence": _has_keywords,
    "keywords:forbidden_words": _lacks_words,
    "keywords:frequency": _keyword_frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _in_language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_words": _number_words,
    "punctuation:no_comma": _no_comma,
    "startend:end_checker": _ends_with,
    "startend:quotation": _quotation,
}

_ABBREVIATION = re.compile(
    r"mr|mrs|ms|dr|prof|rev|gen|col|sgt|capt|lt|sen|rep|gov|st|mt|vs|jr|sr|inc|ltd|corp|co|e\.g|i\.e|cf|al|no|vol|pp|fig|"
    r"jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|u\.s|u\.k|u\.n|a\.m|p\.m|ph\.d|d\.c|approx|dept|est|ave|blvd|[^\W\d_]"
)
# A run of marks, closing quotes or brackets, white space; what comes next decides about a full stop.
_SENTENCE_END = re.compile(r"(?<![.?!])(?P<mark>[.?!]+)[\"'\u201d\u2019)\]*_]*\s+(?=(?P<next>\S))")
_LONGEST_ABBREVIATION = 20  # with the quotes or brackets before it


def count_sentences(text: str) -> int:
    """Sentences by rules for English: a line break ends none, nor the full stop of an abbreviation or initial."""
    ends = 0
    for match in _SENTENCE_END.finditer(text):
        before = text[max(0, match.start() - _LONGEST_ABBREVIATION) : match.start()]
        word = re.split(r"\s", before)[-1]
        ends += _ends_a_sentence(word, *match.group("mark", "next"))
    return ends + bool(text.strip())


def _ends_a_sentence(word: str, mark: str, following: str) -> bool:
    if set(mark) != {"."}:
        return True
    bare = word.lstrip("\"'\u201c\u2018([*_").lower()
    return not following.islower() and not _ABBREVIATION.fullmatch(bare)


def words_of(text: str) -> list[str]:
    """Words without punctuation. A hyphen or a full stop inside a word belongs to it, an apostrophe divides two."""
    return re.findall(r"\w(?:[^\s,;:!?()\[\]{}\"'\u201c\u201d\u2019<>@#$%&]*\w)?", text)


def _language_of(text: str) -> str | None:
    """The ISO 639-1 code that langdetect finds, always the same for the same text; None where it finds no letters."""
    with requires_extra("instructions", "instructions about the language need langdetect"):
        from langdetect import DetectorFactory, LangDetectException, detect
    DetectorFactory.seed = 0
    try:
        return str(detect(text))
    except LangDetectException:
        return None


def _count(keyword: str, text: str) -> int:
    return len(re.findall(re.escape(keyword), text, re.IGNORECASE))


def _count_parts(parts: Sequence[str]) -> int:
    """Parts between separators, of which only the first and the last may be empty; -1 if another one is."""
    if not all(part.strip() for part in parts[1:-1]):
        return -1
    return sum(bool(part.strip()) for part in parts)


def _holds(number: int, relation: str, bound: int) -> bool:
    if relation == "at least":
        return number >= bound
    if relation == "less than":
        return number < bound
    raise DataError(f"relation {relation!r} of an instruction is not known; give 'at least' or 'less than'")
