"""``dataset_description.json``: what makes a folder a BIDS derivative."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from tfds_epilepsy.files import write_json

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
    """Write the description of a derivative that epizoo makes.

    Args:
        folder: of the derivative.
        name: of the data set.
        made_by: which part of epizoo.
        parameters: what it was called with.
        source: the folder that it was made from, or the name of a data set of ours.
        **fields: further ones, in the words of BIDS: ``License``, ``Authors``.

    Returns:
        The file.
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
    return write_json(Path(folder) / "dataset_description.json", description)
