"""Which series is the T1w, the FLAIR, the PET: guessed from headers, with the reason in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tfds_epilepsy.bids.finding import SCOUT
from tfds_epilepsy.dicom.series import Series
from tfds_epilepsy.errors import InputError

KINDS = ("T1w", "FLAIR", "pet")
NOT_TAKEN = "none"
FEWEST_SLICES = 16
# Words in a description, of series that are neither T1w nor FLAIR whatever their times are.
OTHER = re.compile(
    r"swi|susc|asl|perf|dti|dwi|diff|adc|tensor|bold|fmri|epi\b|tof|angio|mra\b|phase|pha\b|field.?map|b0|b1"
    r"|spectro|t2\*|t2star|qsm|r2\*|t1.?map|t2.?map|mt\b"
)
FLAIR = re.compile(r"flair|dark.?fl|da.fl|tirm")
T1W = re.compile(r"t1|mpr|bravo|spgr|tfe|vibe|flash|mp2")
CONTRAST = re.compile(r"(?<![a-z])(gd|gado\w*|km|ce|post|contrast|kontrast|\+c|c\+)(?![a-z])")
NO_AGENT = ("", "no", "none", "n", "na", "n/a", "0")


@dataclass(frozen=True, eq=False)
class Choice:
    """What a series is taken as.

    Attributes:
        series: the series.
        kind: ``T1w``, ``FLAIR``, ``pet`` or ``none``.
        why: the reason in words.
    """

    series: Series
    kind: str
    why: str

    def row(self) -> dict[str, object]:
        """As a line of the table."""
        one, size = self.series, self.series.voxel
        return {
            "series": one.number,
            "study": one.study,
            "taken as": self.kind,
            "why": self.why,
            "description": one.description,
            "modality": one.kind,
            "slices": len(one.frames),
            "voxel (mm)": " x ".join(f"{x:.3g}" for x in size) if size else "",
            "TR/TE/TI (ms)": "/".join(
                "-" if (value := one.figure(name)) is None else f"{value:.4g}"
                for name in ("RepetitionTime", "EchoTime", "InversionTime")
            ),
        }


def choose(series: Sequence[Series], overrides: Mapping[int, str] | None = None) -> list[Choice]:
    """What every series is: one at most of each kind by itself, as many as are asked for by ``overrides``.

    Of several that could be the T1w, the finest is taken, then the last; a FLAIR is of the T1w's study.

    Args:
        series: of one patient.
        overrides: number of a series -> ``T1w``, ``FLAIR``, ``pet`` or ``none``.

    Raises:
        InputError: overrides that name no series or no kind, or a series that is no volume.
    """
    overrides = overrides or {}
    guesses = [Choice(one, *_guess(one)) for one in series]
    said = {name.lower(): name for name in (*KINDS, NOT_TAKEN)}
    numbers = [one.number for one in series]
    problems = []
    for number, kind in overrides.items():
        if number not in numbers:
            problems.append(f"series {number}: there are series 1 to {len(series)}.")
        elif kind.lower() not in said:
            problems.append(f"series {number}={kind}: choose one of {', '.join(said.values())}.")
        elif kind.lower() != NOT_TAKEN and (trouble := series[numbers.index(number)].problem):
            problems.append(f"series {number}: {trouble}.")
    if problems:
        raise InputError(problems)
    asked = {number: said[kind.lower()] for number, kind in overrides.items()}
    free = [guess for guess in guesses if guess.series.number not in asked]
    held = set(asked.values())
    taken: dict[str, Choice] = {}
    for kind in KINDS:
        fitting = [guess for guess in free if guess.kind == kind and kind not in held]
        home = {guess.series.study for guess in taken.values()}
        near = [guess for guess in fitting if kind == "pet" or not home or guess.series.study in home]
        if near:
            taken[kind] = max(near, key=_merit)
    choices = []
    for guess in guesses:
        number = guess.series.number
        if number in asked:
            choices.append(replace(guess, kind=asked[number], why="as you said"))
        elif guess.kind != NOT_TAKEN and taken.get(guess.kind) is not guess:
            why = _left(guess.kind, taken.get(guess.kind), guess.kind in held)
            choices.append(replace(guess, kind=NOT_TAKEN, why=why))
        else:
            choices.append(guess)
    return choices


def _left(kind: str, taken: Choice | None, said: bool) -> str:
    """Why a series that could be of a kind is not taken as it."""
    if taken is not None:
        return f"a {kind} too; series {taken.series.number} is taken"
    return f"a {kind} too; another was named" if said else f"a {kind} of another study than the T1w"


def _merit(choice: Choice) -> tuple[float, int]:
    """The finest, by its coarsest side; of equals the last, which is often a scan repeated for motion."""
    size = choice.series.voxel
    assert size is not None
    return -round(max(size), 1), choice.series.number


def _guess(series: Series) -> tuple[str, str]:
    """What a series is by itself, and why."""
    kind = series.kind
    words = "\\".join(
        series.text(name)
        for name in ("SeriesDescription", "ProtocolName", "SequenceName", "PulseSequenceName")
    ).lower()
    image_type = series.text("ImageType").upper().split("\\")
    if kind not in ("MR", "PT"):
        return NOT_TAKEN, f"{kind or 'of no modality'}: neither MR nor PET"
    if "LOCALIZER" in image_type or any(SCOUT.search(word) for word in re.split(r"[\\_\W]+", words)):
        return NOT_TAKEN, "a localiser"
    if series.problem:
        return NOT_TAKEN, series.problem
    if len(series.frames) < FEWEST_SLICES:
        return NOT_TAKEN, f"{len(series.frames)} slices are no whole head"
    if image_type[0] == "DERIVED" or "SECONDARY" in image_type:
        return NOT_TAKEN, "derived from another series"
    if kind == "PT":
        return _guess_pet(series)
    if {"P", "PHASE", "REAL", "IMAGINARY", "ADC", "MIP", "MPR", "SUBTRACTION"} & set(image_type[2:]):
        return NOT_TAKEN, "no magnitude image, or a reformatted one"
    agent = series.text("ContrastBolusAgent").strip().lower()
    if agent not in NO_AGENT or CONTRAST.search(words):
        return NOT_TAKEN, "contrast-enhanced"
    if OTHER.search(words):
        return NOT_TAKEN, "another contrast, by its name"
    guess, why = _guess_mr(series, words)
    if guess != NOT_TAKEN and series.text("MRAcquisitionType").upper() != "3D":
        return NOT_TAKEN, f"{guess}, but not 3-D"
    return guess, why


def _guess_pet(series: Series) -> tuple[str, str]:
    corrected = series.text("CorrectedImage").upper().split("\\")
    if "ATTN" not in corrected:
        return NOT_TAKEN, "PET without correction of attenuation"
    return "pet", "PET, corrected for attenuation"


def _guess_mr(series: Series, words: str) -> tuple[str, str]:
    echo, repetition, inversion = (
        series.figure(name) for name in ("EchoTime", "RepetitionTime", "InversionTime")
    )
    times = f"TE {echo:.4g} ms" if echo is not None else "no TE"
    times += f", TI {inversion:.4g} ms" if inversion else ""
    if echo is not None and echo > 60 and ((inversion or 0) > 1400 or FLAIR.search(words)):
        return "FLAIR", f"inversion, late echo ({times})"
    short = echo is not None and echo < 15
    if short and 300 < (inversion or 0) < 1400:
        return "T1w", f"inversion, early echo ({times})"
    if short and (repetition or 0) and T1W.search(words) and not FLAIR.search(words):
        return "T1w", f"named T1, early echo ({times})"
    return NOT_TAKEN, f"neither T1w nor FLAIR ({times})"
