"""Tables as Markdown, and docs/benchmarks.md: one section per task, replaced when the task is measured again."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks.md"
INTRO = """\
# What was measured beside other programs
Written by `make bench`; [measuring.md](measuring.md) explains how to read it.
Each section was measured at a time of its own.
"""


@dataclass(frozen=True)
class Section:
    """The result of a task: a table and remarks."""

    name: str
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    remarks: Sequence[str] = ()

    def text(self) -> str:
        """Return it as Markdown, without the heading."""
        return "\n".join([f"{self.title}.", "", table(self.header, self.rows), *(f"\n{line}" for line in self.remarks)])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def number(value: float) -> str:
    """At most three decimals, fewer for larger values: 0.123, 1.23, 12.3, 123."""
    digits = 3 if abs(value) < 1 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}"


def spread(values: Sequence[float]) -> tuple[str, str]:
    """Return the median and all values, as two cells."""
    return number(statistics.median(values)), " ".join(number(value) for value in values)


def verdict(is_met: bool) -> str:
    """Return met or MISSED."""
    return "met" if is_met else "MISSED"


def at_least(ratio: float, goal: float | None) -> tuple[str, str]:
    """Return two cells, the goal of a ratio and whether it is met; empty where there is none."""
    return (f">= {goal:.3g}", verdict(ratio >= goal)) if goal else ("", "")


def write(section: Section, measured_on: str, *, path: Path = RESULTS, order: Sequence[str]) -> None:
    """Replace the section of that name in docs/benchmarks.md; `order` is the order of the sections."""
    _, *found = path.read_text(encoding="utf-8").split("\n## ") if path.is_file() else [""]
    sections = dict(text.split("\n", 1) for text in found)
    sections[section.name] = f"{section.text()}\n\n{measured_on}\n"
    texts = [f"\n## {name}\n{sections[name].rstrip()}\n" for name in order if name in sections]
    path.write_text(INTRO + "".join(texts), encoding="utf-8")
