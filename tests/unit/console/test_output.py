"""What others have written cannot do anything to a person's terminal."""

from __future__ import annotations

import pytest

from console.output import listing, visible


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ünïcode 漢字", "plain ünïcode 漢字"),
        ("\x1b]0;title\x07", "\\u001b]0;title\\u0007"),
        ("a\u202eb", "a\\u202eb"),
        ("\x9b2J", "\\u009b2J"),
    ],
)
def test_controls_are_shown_and_not_obeyed(text: str, shown: str) -> None:
    assert visible(text) == shown


@pytest.mark.parametrize("name", ["[/b]", "[bold]x", "[link=http://evil]click[/link]", "[red]"])
def test_names_are_no_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    listing([{"model": name, "n": 1}], ("model", "n"))
    assert name in capsys.readouterr().out
