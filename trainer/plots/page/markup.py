"""HTML in which nothing that is only text can become markup, and the page around it.

Names of classes, files and runs may hold anything. `el()` escapes every child that is not Html already, and every
value of an attribute; what the script of the page reads is one block of JSON without a `<`. The page says which
scripts may run, by their digests, and that nothing may be loaded.
"""

import base64
import hashlib
import html
import importlib.util
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.utils.text import finite, one_line

HERE = Path(__file__).parent
LIBRARY = ("bokeh.min.js", "bokeh-api.min.js")  # 1.4 MB
EMPTY = ("img", "input", "meta", "br")
MOST_CHARS = 400  # of a text on the page


class Html(str):
    """Markup. Any other text is escaped where it is put into some."""

    __slots__ = ()


def el(tag: str, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        tag: its name.
        children: Html as it is, any other text escaped; None is left out.
        attributes: `class_` is class, `data_x` is data-x; None and False are left out, True has no value.
    """
    said = "".join(
        f" {name.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(one_line(value))}"')
        for name, value in attributes.items()
        if value is not None and value is not False
    )
    inside = "".join(
        child if isinstance(child, Html) else html.escape(clean(child)) for child in children if child is not None
    )
    return Html(f"<{tag}{said}>" if tag in EMPTY else f"<{tag}{said}>{inside}</{tag}>")


def clean(text: object) -> str:
    """A text as the page shows it: one line of printable characters, and not too many."""
    return one_line(text, MOST_CHARS)


def together(parts: Iterable[Html | None]) -> Html:
    """Elements beside each other."""
    return Html("".join(part for part in parts if part is not None))


def section(name: str, title: str, *children: object, wide: bool = False) -> Html:
    """A part of the page under a heading, which the list at its top leads to."""
    return el("section", el("h2", title), *children, id=name, class_="wide" if wide else None)


def remark(*text: object) -> Html:
    """A line of explanation."""
    return el("p", *text, class_="note")


def code(text: object) -> Html:
    """What can be typed."""
    return el("pre", el("code", Html(html.escape(one_line(text)))))  # whole: it is to be copied


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names with their values; those without a value are left out."""
    return el("dl", *(together([el("dt", key), el("dd", value)]) for key, value in pairs if value not in (None, "")))


def cards(pairs: Iterable[tuple[str, object, str]]) -> Html:
    """Large figures: (what it is, the figure, a remark)."""
    return el(
        "div",
        *(
            el("div", el("span", key), el("strong", value), el("small", remark or None), class_="card")
            for key, value, remark in pairs
        ),
        class_="cards",
    )


def rows_table(head: Sequence[str], rows: Iterable[Sequence[object]], *, filtered: str = "", caption: str = "") -> Html:
    """A table that can be sorted by each column.

    Args:
        head: the names of the columns.
        rows: cells: Html, text, or numbers, which are sorted as such; a pair is (number to sort by, what is shown).
        filtered: what the field says in which a reader types what rows have to hold; none: there is no such field.
        caption: what it shows, for those who cannot see it.
    """
    search = (
        el("input", type="search", placeholder=filtered, aria_label=filtered, class_="filter") if filtered else None
    )
    titles = (el("th", el("button", name, type="button"), scope="col") for name in head)
    body = (el("tr", *map(cell, row)) for row in rows)
    table = el("table", el("thead", el("tr", *titles)), el("tbody", *body), class_="rows", aria_label=caption or None)
    return el("div", search, el("div", table, class_="scroll"), class_="table")


def cell(value: object) -> Html:
    """A cell of a table, which knows the number that it is sorted by."""
    if value is None:
        return el("td")
    by, shown = value if isinstance(value, tuple) else (value, value)
    if type(by) in (int, float):
        text = shown if not isinstance(shown, float) else f"{shown:.4g}"
        return el("td", text, class_="number", data_by=repr(by))
    return el("td", shown)


def figure(index: int, *caption: object, wrong: bool = False) -> Html:
    """An image of the page, which the script fills in, with what it shows."""
    picture = el("img", data_image=index, alt="")
    return el("figure", picture, el("figcaption", *caption), class_="wrong" if wrong else None)


def fraction(value: float) -> str:
    """A share as a person reads it: 97.3 %."""
    return f"{100 * value:.1f} %" if math.isfinite(value) else "-"


def in_script(data: Mapping[str, Any]) -> str:
    """Data as JSON that no parser of HTML takes for the end of its script, in ASCII; what is not finite is null."""
    return json.dumps(finite(data), separators=(",", ":")).replace("<", "\\u003c")


def library_scripts() -> list[str]:
    """The scripts of the plotting library, from its installed package, which is not imported: that takes a second.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    spec = importlib.util.find_spec("bokeh")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("bokeh is not installed. Type: pip install -r requirements.txt")
    folder = Path(spec.origin).parent / "server" / "static" / "js"
    return [(folder / name).read_text(encoding="utf-8") for name in LIBRARY]


def page(title: str, body: Sequence[Html], data: Mapping[str, Any]) -> str:
    """The page as one text, which loads nothing.

    Args:
        title: of the window.
        body: what it shows.
        data: for page.js: `charts` by the name of their place, `images` as addresses of data, `cells`.
    """
    own = (HERE / "page.js").read_text(encoding="utf-8")
    # no parser may find the end of a script in one; in their strings and patterns \/ is a /
    scripts = [
        script.replace("</script", "<\\/script").replace("<!--", "<\\!--") for script in (*library_scripts(), own)
    ]
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    head = together(
        [
            el("meta", charset="utf-8"),
            el("meta", http_equiv="Content-Security-Policy", content=policy),
            el("meta", name="viewport", content="width=device-width, initial-scale=1"),
            el("meta", name="color-scheme", content="light dark"),
            el("title", title),
            el("style", Html((HERE / "page.css").read_text(encoding="utf-8"))),
        ]
    )
    block = el("script", Html(in_script(data)), type="application/json", id="data")
    inline = (el("script", Html(script)) for script in scripts)
    return f"<!doctype html>\n{el('html', el('head', head), el('body', *body, block, *inline), lang='en')}\n"
