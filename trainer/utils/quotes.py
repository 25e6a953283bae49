"""Quotes of the command line: text that Hydra's grammar is to take as it is, and what is printed to be typed."""

import re
import shlex

ITEM = r"""\s*(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[^,\]]*)\s*"""
IN_BRACKETS = re.compile(rf"\[({ITEM}(?:,{ITEM})*)\]")


def unquote(text: str) -> str:
    """The text between quotes that `quote` put round it."""
    if len(text) < 2 or not text[0] == text[-1] == "'":
        return text
    return re.sub(r"(\\+)('|$)", lambda found: found[1][: len(found[1]) // 2] + found[2], text[1:-1])


def quote(text: str) -> str:
    """Text as a quoted value of Hydra's grammar; null stays null, which is how a setting is unset."""
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if text == "null" or quoted:
        return text
    # in the grammar a backslash is one by itself, as in C:\images, but not in front of a quote or at the end
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{text}'"


def quote_items(text: str, several: bool = False) -> str:
    """A list of names as it was typed, [id,full name] or one alone, with each of them quoted.

    Args:
        text: as typed.
        several: it may be several lists, [a],[b,c].
    """
    if text == "null" or (several and not text.startswith("[")):
        return text
    lists = text if text.startswith("[") else f"[{text}]"
    return IN_BRACKETS.sub(
        lambda found: "[" + ",".join(quote(i.strip()) for i in re.findall(ITEM, found[1]) if i.strip()) + "]", lists
    )


def typed_list(key: str, *names: str) -> str:
    """What to type for a setting that is a list of these names."""
    return shlex.quote(f"{key}=[{','.join(quote(name) if is_odd(name) else name for name in names)}]")


def is_odd(name: str) -> bool:
    """Whether a name needs quotes in a list."""
    return name in ("", "null") or name != name.strip() or not {*name}.isdisjoint("[],'\"\\")
