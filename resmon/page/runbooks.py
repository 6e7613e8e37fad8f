"""A runbook as a page: the text of the installation, which nobody's run has a word in."""

from __future__ import annotations

import re
from html import escape

from resmon.handbook import pages as handbook

_LINK = re.compile(r'href="(?:\./)?([a-z0-9-]+)\.md"')


def page(name: str) -> str | None:
    """The page; None where there is no runbook of that name."""
    from markdown_it import MarkdownIt

    if name not in handbook.names():
        return None
    text = MarkdownIt("commonmark", {"html": False}).enable("table").render(handbook.runbook(name).text)
    text = _LINK.sub(r'href="\1"', text)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f'<title>{escape(name)} · resmon</title><link rel="stylesheet" href="/static/colours.css">'
        '<link rel="stylesheet" href="/static/page.css"><link rel="icon" href="/static/icon.svg"></head>'
        f'<body class="text"><header><a class="home" href="/">resmon</a></header><main class="runbook">{text}</main></body></html>'
    )
