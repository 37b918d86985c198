"""The one error that bad input raises."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Input that cannot be used: what was received, where, and what to do.

    All problems of a data set travel in one error, so that they are mended in one go. The command line
    prints them as a list and exits with 2.

    Example:
        >>> try:
        ...     raise InputError(["sub-01: no T1w.", "sub-02: no brain mask."])
        ... except InputError as error:
        ...     print(len(error.problems), "problems;", error.problems[0])
        2 problems; sub-01: no T1w.

    Args:
        problems: one message, or one message a problem.
    """

    def __init__(self, problems: str | Sequence[str]):
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def words(error: Exception) -> str:
    """An error in a line: its message, after its type where the message alone says little.

    Example:
        >>> words(KeyError("T1w")), words(InputError("no T1w."))
        ("KeyError: 'T1w'", 'no T1w.')
    """
    speaks = isinstance(error, InputError | RuntimeError | OSError) and str(error)
    return speaks or f"{type(error).__name__}: {error}"
