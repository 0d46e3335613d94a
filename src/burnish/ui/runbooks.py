"""The runbooks as a page, each alert's under its name: where alerts say that theirs is, by default."""

from __future__ import annotations

import re
from html import escape

from burnish.monitoring.runbooks import sections

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Runbooks: burnish</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/style.css">
</head>
<body>
<header><a class="brand" href="/">burnish</a></header>
<main class="runbooks">
<h1>Runbooks</h1>
<p>What an alert means, what to look at, what to do.</p>
{sections}
</main>
</body>
</html>
"""
_CODE, _AS_CODE = re.compile(r"`([^`]+)`"), r"<code>\1</code>"


def runbooks_html() -> str:
    """The page. What stands between backquotes is code, and what begins a line stands alone: nothing else is marked."""
    return _PAGE.format(sections="\n".join(_section(name, text) for name, text in sections().items()))


def _section(name: str, text: str) -> str:
    parts = "\n".join(f"<p>{_CODE.sub(_AS_CODE, escape(each))}</p>" for each in _parts(text))
    return f'<section id="{name}">\n<h2>{name}</h2>\n{parts}\n</section>'


def _parts(text: str) -> list[str]:
    """What it means, Look and Do, each in one line."""
    return [" ".join(each.split()) for each in re.split(r"\n(?=Look:|Do:)", text)]
