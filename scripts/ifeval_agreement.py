"""Count where `burnish.rewards.instructions` and the published checks of IFEval give another verdict.

    python scripts/ifeval_agreement.py IFEVAL_ROWS.jsonl TEXTS.json [rounds]

needs lm-eval (for its copy of the published code), nltk with the data `punkt_tab`, immutabledict and langdetect. The
texts are any strings in a JSON file; each is changed at random so that it follows some of the instructions.
"""

import collections
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lm_eval.tasks.ifeval import utils as published

from burnish.records import Task
from burnish.rewards.instructions import followed_instructions


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def changed(text: str, row: dict[str, Any], rng: random.Random) -> str:
    for _ in range(rng.randint(0, 5)):
        words = text.split(" ")
        some = rng.randrange(len(words))
        marked = [
            form.format(word) if index == some else word
            for index, word in enumerate(words)
            for form in [rng.choice(["[{}]", "*{}*", "**{}**", "***{}***", "* {} *"])]
        ]
        divider = rng.choice([".\n***\n", ".\n\n", ".\n* ", ".\n - ", ".\n\n***\n\n"])
        title = rng.choice(["<<a title>>\n", "<< >>", "<<t>> x >>"])
        postscript = rng.choice(["\n\nP.S. bye", "\nP.P.S bye", "\np. s. x", "\nP. P. S x", "PS: x"])
        text = rng.choice(
            [
                text.upper(),
                text.lower(),
                f'"{text}"',
                text.replace(",", ""),
                text.replace(". ", divider, rng.randint(1, 6)),
                " ".join(marked),
                title + text,
                text + postscript,
                f"{text}******{rng.choice([text, 'other', ''])}",
                "\n".join(
                    f"{rng.choice(['SECTION', 'Section', 'Day'])} {i}\n{text[:30]}" for i in range(rng.randint(1, 6))
                ),
                rng.choice(["```json\n", "```", ""]) + json.dumps({"a": text}) + rng.choice(["```", ""]),
                f"My answer is {rng.choice(['yes.', 'no.', 'maybe.', 'maybe'])} {text}",
                text[: rng.randint(1, 60)],
                f"Sure! Here it is:\n{text}\nHope it helps",
                rng.choice(["!!!", "123", "", " ", "यह हिन्दी में है।", "이것은 한국어입니다."]),
                obedient(text, row, rng),
                obedient(text, row, rng),
            ]
        )
    return text


def obedient(text: str, row: dict[str, Any], rng: random.Random) -> str:
    for given in row["kwargs"]:
        text = rng.choice(["", given.get("prompt_to_repeat", "") + " "]) + text + " " + given.get("end_phrase", "")
        for word in [*given.get("keywords", []), *given.get("forbidden_words", []), given.get("keyword", "")]:
            text += f" {rng.choice([word, word.upper(), word + 's'])}" * rng.randint(0, 4)
        if "first_word" in given:
            paragraphs = ["text"] * (given["num_paragraphs"] + rng.choice([0, 0, 1]))
            paragraphs[given["nth_paragraph"] - 1] = f"{rng.choice(['', '*'])}{given['first_word'].title()}, x"
            text = rng.choice(["\n\n", "\n\n\n\n"]).join(paragraphs)
        elif "num_paragraphs" in given:
            text = rng.choice(["\n***\n", "***"]).join(["text"] * given["num_paragraphs"])
        if "num_bullets" in given:
            text = "\n".join(rng.choice(["* text", "- text"]) for _ in range(given["num_bullets"]))
    return text


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    texts = [text for text in strings(json.loads(Path(sys.argv[2]).read_text())) if len(text) > 150]
    rng = random.Random(0)
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for row in rows * int(sys.argv[3] if len(sys.argv) > 3 else 1):
        text = changed(rng.choice(texts)[:1500], row, rng)
        ours = followed_instructions(text, Task(id="", messages=(), answer="", extra=row))
        example = published.InputExample(row["key"], row["instruction_id_list"], row["prompt"], row["kwargs"])
        theirs = published.test_instruction_following_strict(example, text).follow_instruction_list
        for kind, given, mine, wanted in zip(row["instruction_id_list"], row["kwargs"], ours, theirs, strict=True):
            if given.get("letter") not in ("#", "!"):  # for which lm-eval draws a letter
                counts[kind].update(checked=1, followed=wanted, different=mine != wanted)
    for kind, count in sorted(counts.items()):
        print(f"{kind:45} " + "  ".join(f"{name} {count[name]:5}" for name in ("checked", "followed", "different")))
    print("in all", dict(sum(counts.values(), collections.Counter())))


if __name__ == "__main__":
    main()
