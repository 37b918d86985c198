"""What a check may expect: that something is refused, with the right words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any


@contextmanager
def refused(kind: type[BaseException], match: str = "") -> Iterator[SimpleNamespace]:
    """Expect an error; ``value`` of what is yielded is the error afterwards.

    Args:
        kind: of the error.
        match: a regular expression that is found in its message.

    Raises:
        AssertionError: no such error, or other words.
    """
    caught = SimpleNamespace(value=None)
    try:
        yield caught
    except kind as error:
        caught.value = error
        if not re.search(match, str(error)):
            raise AssertionError(f"{kind.__name__} says {str(error)!r}, without {match!r}.") from error
    else:
        raise AssertionError(f"nothing was refused, where {kind.__name__} ({match!r}) is expected.")


@contextmanager
def named(check: Callable[..., Any]) -> Iterator[None]:
    """Say in a failure which property was checked."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"in the check {check.__name__}: {(check.__doc__ or '').strip().splitlines()[:1]}")
        raise
