"""A model's file that nobody vouches for: what is checked before Keras reads it.

Keras itself takes classes of its own and those that are registered alone, and no Python code, unless somebody
in the process has called ``keras.config.enable_unsafe_deserialization``. Here is the rest: no code even then,
what an archive may hold, and that what it asks for is no larger than what it brings.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import keras

from tfds_epilepsy.files import read_keras_config, zip_problem

WEIGHTS = "model.weights.h5"
ENTRIES = {"metadata.json", "config.json", WEIGHTS}
CODE = ("Lambda", "__lambda__")  # what Keras calls it
VARIABLES_A_BYTE = 4  # a weight takes 4 bytes of the file, an optimiser keeps up to 3 of its size beside it
SMALL = 2**22  # variables that any file may ask for


def load(path: str | Path) -> keras.Model:
    """``keras.saving.load_model`` of a ``.keras`` file, in bounds.

    Raises:
        ValueError: of what stands in the file; Keras and ``h5py`` raise their own beside it.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if problem := zip_problem(archive, ENTRIES):
                raise ValueError(problem)
            with archive.open(WEIGHTS) as file:
                check_weights(file, archive.getinfo(WEIGHTS).file_size)
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    check_config(read_keras_config(path))
    with bounded(path.stat().st_size):
        return keras.saving.load_model(path, safe_mode=True)


def check_config(config: Any) -> None:
    """Whether a configuration holds Python code.

    Raises:
        ValueError: it does.
    """
    parts = [config]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if part.get("class_name") in CODE:
                raise ValueError("it holds Python code (a Lambda), which is not run")
            parts.extend(part.values())
        elif isinstance(part, list):
            parts.extend(part)


def check_weights(file: str | Path | IO[bytes], size: int) -> None:
    """Whether a weights file holds its own arrays, and none that is larger than the file.

    Args:
        file: HDF5.
        size: of the file, bytes.

    Raises:
        ValueError: arrays that stand elsewhere, or that a small file unfolds.
    """
    total = 0

    def visit(group: h5py.Group) -> None:
        nonlocal total
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"its array {name!r} is a link to another place")
            item = group[name]
            if isinstance(item, h5py.Group):
                visit(item)
                continue
            if item.is_virtual or item.external:
                raise ValueError(f"its array {name!r} stands in another file")
            total += item.dtype.itemsize * math.prod(item.shape or ())
            if total > size:
                raise ValueError(f"its arrays unfold to more than the {size} bytes that it has")

    with h5py.File(file, "r") as stored:
        visit(stored["/"])


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Refuse variables that a file of ``size`` bytes cannot fill, before they are made.

    Raises:
        ValueError: the variables that were asked for are too large.
    """
    room = SMALL + VARIABLES_A_BYTE * size
    make = keras.Variable.__init__

    def make_in_bounds(self: Any, initializer: Any, shape: Any = None, *others: Any, **options: Any) -> None:
        nonlocal room
        room -= math.prod(shape or ())
        if room < 0:
            raise ValueError(f"its configuration asks for more weights than {size} bytes can hold")
        make(self, initializer, shape, *others, **options)

    keras.Variable.__init__ = make_in_bounds
    try:
        yield
    finally:
        keras.Variable.__init__ = make
