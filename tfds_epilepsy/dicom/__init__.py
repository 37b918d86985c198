"""A scanner's files to BIDS: which series is which, converted by dcm2niix, under a pseudonym.

``series`` reads headers, ``choice`` says what each series is, ``importing`` converts what was chosen.
"""

from __future__ import annotations

from tfds_epilepsy.dicom.choice import Choice, choose
from tfds_epilepsy.dicom.importing import Imported, import_dicom
from tfds_epilepsy.dicom.series import Series, read_series

__all__ = ["Choice", "Imported", "Series", "choose", "import_dicom", "read_series"]
