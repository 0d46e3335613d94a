"""What `mkdocs build` puts into the pages: each fact stands once, in the code, and a page names who tells it.

A line `<!-- made: NAME -->` of a page becomes what the function of that name in `MAKERS` returns, as Markdown. A line
that ends with `<!-- left out of the site -->` is for whoever reads the page in the repository, where nothing is made.
"""

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel
from site_maths import maths, prose

DIRECTIVE = re.compile(r"^<!-- made: (\w+) -->$", re.MULTILINE)
LEFT_OUT = re.compile(r"^.*<!-- left out of the site -->\n\n?", re.MULTILINE)


class Meaning:
    """A setting as several schemas have it: its field, and by default who has that one."""

    def __init__(self, field: Any) -> None:
        self.field = field
        self.by_default: dict[str, list[str]] = {}

    def add(self, name: str, field: Any) -> None:
        """Another schema that has it."""
        from burnish.cli.config import default_of

        self.by_default.setdefault(default_of(field), []).append(name)

    @property
    def names(self) -> list[str]:
        """The schemas that have it."""
        return [name for names in self.by_default.values() for name in names]


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """mkdocs calls this with each page."""
    markdown = markdown.replace("```sh fails\n", "```sh\n")  # that it must fail is said to the test
    markdown = LEFT_OUT.sub("", markdown)
    return DIRECTIVE.sub(lambda found: MAKERS[found[1]](), markdown)


def commands() -> str:
    """Every command, as its `--help` has it."""
    from burnish.cli.app import app

    text = app.generate_docs(output_format="markdown", heading_level=1)
    text = re.sub(r"^## Table of Contents\n.*?(?=^\*\*Commands)", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^# burnish\n", "", text)
    text = re.sub(r" \*\[default: (False|\(\))\]\*", "", text)
    return re.sub(r"^(Example: )(burnish .*)$", r"\1`\2`", text, flags=re.MULTILINE)


def settings() -> str:
    """Every setting of every algorithm, of an evaluation, a server, and receivers of alerts."""
    from burnish.algorithms.session import schema_for
    from burnish.cli.config import OTHER_SCHEMAS
    from burnish.config.loading import read_algorithm, shipped_recipes

    lines = [*_training_settings({read_algorithm(recipe): schema_for(recipe) for recipe in shipped_recipes()})]
    for name, schema in OTHER_SCHEMAS.items():
        lines += ["", f"## `{name}` {{ #{name} }}", "", _flat(_doc(schema)), ""]
        for key, meanings in _rows({name: schema}).items():
            lines += _described(key, meanings, 1, prefix=f"{name}-")
    return "\n".join(lines)


def _training_settings(algorithms: Mapping[str, type[BaseModel]]) -> Iterator[str]:
    rows = _rows(algorithms)
    for section in dict.fromkeys(map(_section_of, rows)):
        inside = {key: meanings for key, meanings in rows.items() if _section_of(key) == section}
        having = {name for meanings in inside.values() for each in meanings for name in each.names}
        users = [name for name in algorithms if name in having]
        yield from ("", f"## `{section}` {{ #{section} }}" if section else "## At the top { #top }", "")
        if section and (docs := _section_docs(algorithms, section)):
            yield from (_flat(docs), "")
        if len(users) < len(algorithms):
            yield from (f"In {_listed(users)}.", "")
        for key, meanings in inside.items():
            yield from _described(key, meanings, len(users))


def _section_of(key: str) -> str:
    return key.rpartition(".")[0] and key.partition(".")[0]


def _section_docs(schemas: Mapping[str, type[BaseModel]], section: str) -> str:
    """What the section is about: the docstring of its class, the same words once."""
    docs = {}
    for schema in schemas.values():
        if section in schema.model_fields:
            kind = schema.model_fields[section].annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                docs[_doc(kind)] = None
    return " ".join(docs)


def _doc(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def _rows(schemas: Mapping[str, type[BaseModel]]) -> dict[str, list[Meaning]]:
    """The meanings that each key has in these schemas."""
    from burnish.config.loading import leaf_fields

    rows: dict[str, list[Meaning]] = {}
    for name, schema in schemas.items():
        for key, field in leaf_fields(schema):
            if key == "algorithm":
                continue
            for known in (meanings := rows.setdefault(key, [])):
                if known.field.annotation == field.annotation and known.field.description == field.description:
                    known.add(name, field)
                    break
            else:
                meanings.append(Meaning(field))
                meanings[-1].add(name, field)
    return rows


def _described(key: str, meanings: list[Meaning], num_users: int, *, prefix: str = "") -> Iterator[str]:
    """A setting as a definition, once for each meaning it has."""
    from burnish.cli.config import type_name

    for index, each in enumerate(meanings):
        anchor = prefix + key + (f"-{each.names[0]}" if index else "")
        defaults = [_code(default) for default in each.by_default]
        if key == "name" and len(defaults) > 1:
            defaults = ["default: what the algorithm is called"]
        if len(defaults) > 1:
            defaults = [
                f"{text} in {_listed(names)}" for text, names in zip(defaults, each.by_default.values(), strict=True)
            ]
        elif len(each.names) < num_users:
            defaults[0] += f"; in {_listed(each.names)}"
        yield f"`{key}`{{ #{anchor} .setting }} {type_name(each.field.annotation)}, {', '.join(defaults)}"
        yield f":   {_flat(each.field.description)}"
        yield from _choices(anchor, each.field.annotation)
        yield ""


_CHOICES_AT: dict[tuple[type, ...], str] = {}


def _choices(anchor: str, annotation: Any) -> Iterator[str]:
    """The sections that a setting chooses among, where they are met first; elsewhere, where that was."""
    from burnish.cli.config import choices_of, default_of, type_name

    choices = tuple(choices_of(annotation))
    if choices and (first := _CHOICES_AT.setdefault(choices, anchor)) != anchor:
        yield from ("", f"    What may stand in a section: as in [`{first}`](#{first}).")
        return
    for choice in choices:
        yield from ("", f"    {_flat(_doc(choice).partition(chr(10) * 2)[0])}", "")
        for name, each in choice.model_fields.items():
            kind, default = type_name(each.annotation), _code(default_of(each))
            yield f"    - `{name}` {kind}, {default}: {_flat(each.description)}"


def _listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _code(default: str) -> str:
    word, _, value = default.partition(" ")
    return f"{word} `{value}`" if value else word


def _flat(text: str | None) -> str:
    return prose(" ".join((text or "").split()))


def recipes() -> str:
    """Every recipe that ships: what it says of itself, and what it sets otherwise than the defaults."""
    from burnish.algorithms.session import schema_for
    from burnish.cli.config import default_of, type_name
    from burnish.config.loading import flat_settings, leaf_fields, read_algorithm, shipped_recipes

    lines = []
    for name, path in shipped_recipes().items():
        text, fields = path.read_text(encoding="utf-8"), dict(leaf_fields(schema_for(name)))
        comment = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
        lines += [f"## `{name}` {{ #{name} }}", "", _flat(comment), ""]
        lines += [
            f"Algorithm `{read_algorithm(name)}`.",
            "",
            "| setting | here | default | type |",
            "|---|---|---|---|",
        ]
        for key, value in flat_settings(schema_for(name), name).items():
            if key not in ("algorithm", "name") and (fields[key].is_required() or value != fields[key].default):
                default, kind = default_of(fields[key]).removeprefix("default "), type_name(fields[key].annotation)
                link = f"[`{key}`](settings.md#{key})"
                lines.append(f"| {link} | `{json.dumps(value)}` | {_cell(default)} | {_cell(kind)} |")
        lines.append("")
    return "\n".join(lines)


def _cell(text: str) -> str:
    return "required" if text == "required" else f"`{text}`".replace("|", "\\|")


def runbooks() -> str:
    """When each alert fires, how severe it is, and what to do about it."""
    from burnish.monitoring.rules import training_rules
    from burnish.monitoring.runbooks import runbooks_page, section_of
    from burnish.monitoring.serving_rules import SERVING_RULES
    from burnish.monitoring.slo import DEFAULT_OBJECTIVES, burn_rules

    firing: dict[str, list[str]] = {}
    for rule in (*training_rules(), *SERVING_RULES, *(each for slo in DEFAULT_OBJECTIVES for each in burn_rules(slo))):
        words = re.sub(r"^(run )?\{\{.*?\}\}: ", "", rule.summary)
        words = re.sub(r"\{\{ \$labels\.(\w+) \}\}", r"a \1", words)
        held = "" if rule.wait == "0m" else f", once it has held for {rule.wait}"
        firing.setdefault(section_of(rule.name), []).append(f"- `{rule.name}`, *{rule.severity}*{held}: {words}.")
    text = runbooks_page().split("\n\n", 1)[1]
    text = re.sub(r"^## (\w+)\n", lambda found: "\n".join((found[0], *firing[found[1]], "")), text, flags=re.MULTILINE)
    return re.sub(r"^(Look|Do): ", r"\n**\1:** ", text, flags=re.MULTILINE)


MAKERS: Mapping[str, Callable[[], str]] = {
    each.__name__: each for each in (commands, settings, recipes, runbooks, maths)
}
