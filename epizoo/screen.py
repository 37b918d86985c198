"""What a command puts on the screen: what it does and what went wrong; of TensorFlow, errors alone."""

from __future__ import annotations

import functools
import importlib.abc
import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Annotated, Any

import typer

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; results and errors alone.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="What TensorFlow notes, too, and where an error comes from.")
]
# TensorFlow's notes (I), its warnings (W), and the one error (E) that is none: no driver, so no GPU.
NOTES = "|".join(
    (
        r"^WARNING: All log messages before absl::InitializeLog\(\)",
        r"^[IW][0-9]{4} ",
        r"^E[0-9]{4} .* failed call to cuInit: .*UNKNOWN ERROR \(303\)",
    )
)


def command(app: typer.Typer, name: str | None = None, help: str | None = None) -> Callable[..., Any]:
    """Add a command to an app, with ``--quiet`` and ``--verbose``."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def spoken(*args: Any, quiet: bool, verbose: bool, **options: Any) -> None:
            speak(quiet=quiet, verbose=verbose)
            function(*args, **options)

        own = inspect.signature(function, eval_str=True)
        added = [
            inspect.Parameter(flag, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
            for flag, kind in (("quiet", Quiet), ("verbose", Verbose))
        ]
        both = [*own.parameters.values(), *added]
        spoken.__dict__["__signature__"] = own.replace(parameters=both)  # what typer reads
        spoken.__annotations__ = {one.name: one.annotation for one in both}
        app.command(name, help=help)(spoken)
        return function

    return add


def speak(*, quiet: bool = False, verbose: bool = False) -> None:
    """How much a command says from now on."""
    from tfds_epilepsy.progress import stderr

    stderr.quiet = quiet
    if verbose:
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "0"
        logging.getLogger("tensorflow").setLevel(logging.INFO)
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Quietly)]


def is_verbose() -> bool:
    """Whether ``--verbose`` was given, here or to the process that started this one."""
    return os.environ.get("TF_CPP_MIN_LOG_LEVEL") == "0"


def end(result: object | None, *following: str) -> None:
    """The last words of a command: where its result is, on standard output, and what one may do next."""
    from tfds_epilepsy.progress import stderr

    if result is not None:
        typer.echo(result)
    for number, line in enumerate(following):
        stderr.print(f"{'      ' if number else 'next: '}{line}", markup=False, soft_wrap=True)


def silence_tensorflow() -> None:
    """Let TensorFlow write errors alone, here and in processes that this one starts; before its import."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if is_verbose():
        return
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # its advice on how to trace functions
    if not any(isinstance(finder, _Quietly) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Quietly())


class _Quietly(importlib.abc.MetaPathFinder):
    """Imports TensorFlow, which heeds its log level only once it is imported, without its notes."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "tensorflow":
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _QuietLoader(spec.loader.name, spec.loader.path)
        return spec


class _QuietLoader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        with _without_notes():
            super().exec_module(module)
            module.config.list_physical_devices()  # it looks for GPUs, and notes what it finds


@contextmanager
def _without_notes() -> Iterator[None]:
    """Standard error, of C++ too, through a filter: a process, which an abort does not end."""
    try:
        sys.stderr.flush()
        real = os.dup(2)
        sieve = subprocess.Popen(
            ["grep", "-a", "-v", "-E", "--line-buffered", NOTES], stdin=subprocess.PIPE, stdout=real
        )
    except (OSError, AttributeError):  # no standard error, or no grep: then all of it is seen
        yield
        return
    assert sieve.stdin is not None
    try:
        os.dup2(sieve.stdin.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(real, 2)
        os.close(real)
        sieve.stdin.close()
        with suppress(subprocess.TimeoutExpired):  # a process that was started meanwhile may hold it open
            sieve.wait(timeout=5)
