"""Work in progress, on standard error: a bar on a terminal, and everywhere a line for each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import Lock
from typing import TypeVar, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

# One for all, so that a command can silence it (``stderr.quiet``). A line stays one, however long.
stderr = Console(stderr=True, highlight=False, soft_wrap=True)
EVERY = 60.0  # seconds between the lines of a step that lasts, where there is no terminal for a bar


def track(
    items: Iterable[Item], description: str, total: int | None = None, *, console: Console | None = None
) -> Iterator[Item]:
    """The items, with a bar while they last and a line in the end.

    Args:
        items: what is worked through.
        description: of the step, such as ``score test``.
        total: how many they are; their length if None.
        console: where it is shown; ``stderr`` if None.
    """
    total = len(cast(Sequence[Item], items)) if total is None else total
    with count(description, total, console=console) as advance:
        for item in items:
            yield item
            advance(1)


@contextmanager
def count(
    description: str,
    total: int,
    *,
    amount: Callable[[int], str] = str,
    console: Console | None = None,
) -> Iterator[Callable[[int], None]]:
    """A bar while the block lasts, a line when it is done, and one each minute where no bar can be drawn.

    Args:
        description: of the step.
        total: where the count ends; of 0 nothing is shown.
        amount: a number of the count in words, such as megabytes.
        console: where it is shown; ``stderr`` if None.

    Yields:
        A function that is told how many more are done, by any thread.
    """
    console = console or stderr
    started = said = time.monotonic()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[so_far]}", markup=False),
        TimeRemainingColumn(),
    )
    done, alone = 0, Lock()

    def line() -> str:
        seconds = time.monotonic() - started
        return f"{description}: {amount(done)} of {amount(total)}, {duration(seconds)}"

    def say() -> None:
        console.print(line(), markup=False, soft_wrap=True)

    bar = Progress(*columns, console=console, transient=True, disable=total == 0)
    task = bar.add_task(description, total=total, so_far=f"{amount(0)} of {amount(total)}")
    with bar if console.is_terminal else nullcontext():  # rich before 15 leaves an empty line in a log file

        def advance(by: int) -> None:
            nonlocal done, said
            with alone:
                done += by
                bar.update(task, completed=done, so_far=f"{amount(done)} of {amount(total)}")
                if not console.is_terminal and done < total and time.monotonic() - said > EVERY:
                    said = time.monotonic()
                    say()

        yield advance
    if total:
        say()


def duration(seconds: float) -> str:
    """``34 s``, ``12 min``, ``2 h 5 min``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"
