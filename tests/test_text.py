"""utils/text.py: whatever a name holds, what reaches a person is one line of printable characters."""

import io
import os
import pickle
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.utils.errors import ConfigError, failure
from trainer.utils.text import emit, one_line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 10%", "plain text, 10%"),
        ("\x1b[2J\x1b]0;title\x07", "\\x1b[2J\\x1b]0;title\\x07"),
        ("a\nfake line: all fine.png", "a\\nfake line: all fine.png"),
        ("a\rb\tc\x00d\x7f\x9b", "a\\rb\\tc\\x00d\\x7f\\x9b"),
        ("a\u00a0b\u3000c\u200dd\u00ade", "a\\xa0b\\u3000c\\u200dd\\xade"),
        ("a\u202egnp.exe\u2066", "a\\u202egnp.exe\\u2066"),  # right to left: a name that ends in another suffix
        ("\u2028\u2029\ufeff\U000e0041", "\\u2028\\u2029\\ufeff\\U000e0041"),
        (os.fsdecode(b"k\xff\x80l"), "k\\xff\\x80l"),
        ("\ud800", "\\ud800"),
        ("caf\u00e9 \u732b \U0001f600", "caf\u00e9 \u732b \U0001f600"),
    ],
)
def test_what_is_not_printable_is_escaped_and_the_rest_stays(text: str, shown: str) -> None:
    assert one_line(text) == shown


@given(st.text(st.characters(), max_size=300), st.integers(3, 250))
def test_any_text_becomes_one_printable_line_of_at_most_so_many_characters(text: str, most: int) -> None:
    shown = one_line(text, most)
    assert len(shown) <= most
    assert shown.isprintable()
    assert one_line(shown, most) == shown


def test_ten_million_characters_keep_their_beginning_and_end_and_take_no_time() -> None:
    began = time.perf_counter()
    shown = one_line("begin" + "\x1b" * 10**7 + "end")
    assert time.perf_counter() - began < 1
    assert len(shown) <= 4000
    assert shown.startswith("begin\\x1b")
    assert shown.endswith("\\x1bend")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8", "utf-16"])
def test_printing_fails_on_no_encoding(encoding: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    emit("caf\u00e9 \U0001f600", "\ud800\n", file=stream)
    lines = raw.getvalue().decode(encoding).splitlines()
    assert len(lines) == 2
    assert lines[1] == "\\ud800\\n"
    assert lines[0].startswith("caf")


def test_printing_to_a_stream_that_is_closed_or_gone_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    emit("text")


def test_a_message_has_the_lines_of_its_arguments_and_no_others() -> None:
    error = ConfigError("2 files:", "  a\nfake: \x1b[2J", "  b")
    assert str(error) == "2 files:\n  a\\nfake: \\x1b[2J\n  b"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(failure(2, str(error))) == str(error)  # as another process is told it
