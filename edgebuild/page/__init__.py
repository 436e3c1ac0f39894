"""The report as one page of HTML that needs nothing else: a pure function of the report's JSON.

It answers in this order: is it good, what is wrong, where along the network, how that looks, what it weighs, how it
was measured.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgebuild.page import sections
from edgebuild.page.markup import Markup, joined, tag, text

__all__ = ["render"]

_STYLE = Path(__file__).with_name("style.css")


def render(report: Mapping[str, Any]) -> str:
    """The page. What a report lacks is left out; nothing that it holds becomes markup."""
    title = f"{report['name']} {report['version']} for {report['target']}"
    body = tag(
        "main",
        sections.head(report, title),
        sections.verdict(report),
        sections.findings(report),
        sections.network(report),
        sections.worst(report),
        sections.costs(report),
        sections.fallback(report),
        sections.size(report),
        sections.operators(report),
        sections.measured(report),
    )
    head = joined([
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; style-src 'unsafe-inline'"),
        tag("title", title),
        Markup(f"<style>\n{_STYLE.read_text(encoding='utf-8')}</style>"),
    ])  # fmt: skip
    return f'<!doctype html>\n<html lang="en">\n<head>{text(head)}</head>\n<body>{body}</body>\n</html>\n'
