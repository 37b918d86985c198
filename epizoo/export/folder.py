"""The folder of an export: written whole or not at all, and only if it gives what it was made from."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from epizoo.export import card, formats, verify
from epizoo.export.signature import Signature
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import check_writable, plain, write_json, write_text

VERSION = 2  # of metadata.json
# Of the largest expected value, or of 1. What bfloat16 gives differs between processors.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


@dataclass(frozen=True)
class Export:
    """All that a folder is made of.

    Attributes:
        what: ``encoder`` or ``pipeline``.
        signatures: the first is the one served by default.
        variables: that the signatures use.
        facts: what ``metadata.json`` says besides.
        run: facts of the run that it comes from, for the card; empty without one.
        notes: sentences for the card.
    """

    what: str
    format: str
    precision: str
    signatures: Mapping[str, Signature]
    variables: Sequence[tf.Variable]
    facts: Mapping[str, Any]
    run: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


def check_target(folder: Path, format: str, overwrite: bool) -> list[str]:
    """What speaks against writing an export there."""
    problems = []
    if set(str(folder.resolve())) & set("*?[\\"):
        problems.append(f"{folder}: TensorFlow takes * ? [ \\ for patterns, and finds no model there.")
    if folder.exists() and not overwrite:
        problems.append(
            f"{folder}: exists already; choose another folder, or overwrite it (--overwrite, overwrite=True)."
        )
    elif (
        folder.exists()
        and not (folder / "metadata.json").is_file()
        and (not folder.is_dir() or any(folder.iterdir()))
    ):
        problems.append(f"{folder}: not an export (no metadata.json), so it is not overwritten.")
    try:
        check_writable(folder)
    except InputError as error:
        problems += error.problems
    if format not in formats.WRITERS:
        problems.append(f"format {format!r}: choose one of {', '.join(formats.WRITERS)}.")
    return problems


def write(export: Export, folder: Path) -> Path:
    """Write, verify, and only then give it its name.

    Raises:
        InputError: the format has no form for it, its runtime is not installed, or it gives other values.
    """
    place = folder.resolve()  # a link stays one
    partial = place.with_name(f".partial-{os.getpid()}-{place.name}")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.mkdir()
        formats.WRITERS[export.format](export.signatures, export.variables, partial)
        _write_vectors(export.signatures, partial / "vectors.npz")
        shutil.copyfile(verify.__file__, partial / "verify.py")
        metadata = _metadata(export)
        write_text(partial / "use_it.py", card.script(metadata))
        write_text(partial / "model_card.md", card.text(metadata, export.run, export.notes, _size(partial)))
        files = sorted(path for path in partial.rglob("*") if path.is_file())
        sums = {str(path.relative_to(partial)): _checksum(path) for path in files}
        write_json(partial / "metadata.json", {**metadata, "sha256": sums})
        try:
            verify.verify(partial)
        except ValueError as error:
            raise InputError(
                f"{folder}: not written, since it does not give what epizoo gives: {error}"
            ) from error
        _replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _metadata(export: Export) -> dict[str, Any]:
    metadata: dict[str, Any] = plain(
        {
            "version": VERSION,
            "what": export.what,
            "format": export.format,
            "precision": export.precision,
            **export.facts,
            "background": 0.0,
            "orientation": "RAS+",
            "signatures": {
                name: {
                    "about": signature.about,
                    "inputs": {n: _form(s) for n, s in signature.inputs.items()},
                    "outputs": {
                        n: {
                            **_form(s),
                            "tolerance": TOLERANCE[export.precision if n == "latent" else "float32"],
                        }
                        for n, s in signature.graph.structured_outputs.items()
                    },
                }
                for name, signature in export.signatures.items()
            },
            "versions": {name: version(name) for name in ("epizoo", "tensorflow", "keras", "numpy")},
            "run": export.run,
        }
    )
    return metadata


def _form(spec: Any) -> dict[str, Any]:
    return {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}


def _write_vectors(signatures: Mapping[str, Signature], path: Path) -> None:
    arrays: dict[str, Any] = {}
    for name, signature in signatures.items():
        arrays |= {f"{name}/{key}": value for key, value in signature.given.items()}
        arrays |= {f"{name}/{key}/expected": value for key, value in signature.expected.items()}
        if signature.voxels is not None:
            arrays[f"{name}/voxels"] = signature.voxels
    np.savez_compressed(path, allow_pickle=False, **arrays)


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _replace(new: Path, folder: Path) -> None:
    """Put a folder in place of another, which stays until the new one is whole."""
    old = folder.with_name(f".replaced-{os.getpid()}-{folder.name}")
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)
