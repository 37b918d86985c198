"""``dataset_description.json``: what makes a folder a BIDS derivative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tfds_epilepsy.bids.finding import read_object
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.files import write_json, write_text

BIDS_VERSION = "1.10.0"


def write_description(
    folder: str | Path,
    name: str,
    *,
    made_by: str = "epizoo",
    parameters: Mapping[str, Any] | None = None,
    source: str | Path | None = None,
    **fields: Any,
) -> Path:
    """Write the description of a derivative that epizoo makes; fields that are there already stay.

    Example:
        >>> write_description(folder, "my maps").name
        'dataset_description.json'

    Args:
        folder: of the derivative.
        name: of the data set.
        made_by: which part of epizoo.
        parameters: what it was called with.
        source: the folder that it was made from, or the name of a data set of ours.
        **fields: further ones, in the words of BIDS: ``License``, ``Authors``.

    Returns:
        The file.

    Raises:
        InputError: there is one, and it is no JSON object.
    """
    maker = {"Name": made_by, "Version": metadata.version("epizoo")}
    description: dict[str, Any] = {
        "Name": name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        **fields,
        "GeneratedBy": [maker if parameters is None else {**maker, "Parameters": parameters}],
    }
    if source is not None:
        place = Path(source)
        url = place.resolve().as_uri() if place.is_dir() else f"urn:epizoo:{source}"
        description["SourceDatasets"] = [{"URL": url}]
    path = Path(folder) / "dataset_description.json"
    there = read_object(path) if path.is_file() else {}
    if description.keys() <= there.keys():
        return path
    return write_json(
        path, {**there, **{name: description[name] for name in description if name not in there}}
    )


def reference_of(folder: str | Path) -> str:
    """What a derivative's lesion masks mark, by the field ``LesionMasks`` of its description.

    Example:
        >>> reference_of(derivative_folder)
        'lesion'

    Raises:
        InputError: a word that is neither ``lesion`` nor ``resection``.
    """
    path = Path(folder) / "dataset_description.json"
    word = read_object(path).get("LesionMasks", "lesion") if path.is_file() else "lesion"
    if word not in ("lesion", "resection"):
        raise InputError(f"{path}: LesionMasks {word!r}: write lesion or resection.")
    return str(word)


def write_bidsignore(folder: str | Path, patterns: Sequence[str]) -> Path:
    """Write the patterns of files that are not BIDS; others that are there already stay.

    Example:
        >>> write_bidsignore(folder, ["*.html"]).read_text().split()
        ['*.html']
    """
    path = Path(folder) / ".bidsignore"
    there = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    missing = [pattern for pattern in patterns if pattern not in there]
    return write_text(path, "\n".join([*there, *missing]) + "\n") if missing else path
