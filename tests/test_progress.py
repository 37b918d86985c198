import io

import pytest
from rich.console import Console

from tfds_epilepsy import progress
from tfds_epilepsy.progress import count, duration, track


def said(**options):
    file = io.StringIO()
    return file, Console(file=file, width=80, **options)


def test_a_log_file_gets_one_line_a_step_and_no_bar():
    file, console = said()
    assert list(track(iter("abc"), "score test", 3, console=console)) == ["a", "b", "c"]
    assert file.getvalue() == "score test: 3 of 3, 0 s\n"


def test_a_long_step_says_every_minute_where_it_is(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", -1.0)
    file, console = said()
    list(track([1, 2, 3], "score", console=console))
    lines = ["score: 1 of 3, 0 s", "score: 2 of 3, 0 s", "score: 3 of 3, 0 s"]
    assert file.getvalue().splitlines() == lines


def test_a_terminal_gets_a_bar_and_keeps_the_line():
    file, console = said(force_terminal=True, legacy_windows=False, color_system=None)
    list(track([1, 2], "score [bold]", console=console))
    assert "━" in file.getvalue()
    assert "score [bold]: 2 of 2" in file.getvalue()


def test_nothing_to_do_says_nothing():
    file, console = said()
    assert list(track([], "score", console=console)) == []
    assert file.getvalue() == ""


def test_a_step_that_breaks_is_not_said_to_be_done():
    file, console = said()
    broken = map(int, ["1", "one"])
    with pytest.raises(ValueError, match="one"):
        list(track(broken, "fit", 2, console=console))
    assert file.getvalue() == ""


def test_amounts_are_in_their_own_words():
    file, console = said()
    with count("files", 5_000_000, amount=lambda size: f"{size / 1e6:.0f} MB", console=console) as advance:
        advance(5_000_000)
    assert file.getvalue() == "files: 5 MB of 5 MB, 0 s\n"


@pytest.mark.parametrize(
    ("seconds", "words"), [(3.4, "3 s"), (119, "119 s"), (150, "2 min"), (7500, "2 h 5 min")]
)
def test_durations_are_said_in_two_figures(seconds, words):
    assert duration(seconds) == words
