"""The cases to choose on and the cases to judge by: two lists of kinds, two cohorts, two poorer scanners.

    python -m benchmarks.cases choosing OUT
    python -m benchmarks.cases judging OUT

Written down before anything was chosen: what is decided on ``CHOOSING`` is told by ``JUDGING``, once. Every
family has other kinds in each: tissue is *lost*, cortex is *folded* otherwise, grey matter is *misplaced*, or
the *signal* alone is another. OUT gets pickles: ``train`` (controls), ``healthy`` (held-out controls),
``cases`` (pairs of kind and patient), and ``scanner_...``, the same from a noisier and blurrier scanner with
ten controls of its own. Nobody is in two of them. A kind's patients are on anatomies of their own.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.kinds import COHORT, with_lesion
from tfds_epilepsy import phantom
from tfds_epilepsy.files import replacing
from tfds_epilepsy.lesions import LesionSpec, implant_in_subject
from tfds_epilepsy.phantom import Conditions, PhantomConfig
from tfds_epilepsy.volumes import Subject

DYSPLASIA = ("fcd_2a", "fcd_2b", "fcd_1")
CASES = 8  # patients of a kind
TRAIN, HEALTHY = 40, 20
LOCAL, LOCAL_HEALTHY, LOCAL_CASES = 10, 8, 12  # of the poorer scanner


@dataclass(frozen=True)
class Kind:
    """A kind of lesion and who makes it.

    Attributes:
        family: ``dysplasia``, ``loss``, ``folding``, ``misplaced`` or ``signal``.
        lesions: kinds of ``tfds_epilepsy.lesions`` in turn, or the one of ``benchmarks.kinds``.
        by: ``phantom``: in its tissue; in the image of a control: ``implant``, as ``tfds_epilepsy.lesions``
            does it, or ``image``, as ``benchmarks.kinds`` does.
        settings: of the phantom's patients.
    """

    family: str
    lesions: tuple[str, ...]
    by: str = "phantom"
    settings: Mapping[str, Any] = field(default_factory=dict)


CHOOSING = {
    "dysplasia": Kind("dysplasia", DYSPLASIA),
    "sclerosis, half": Kind("loss", ("hippocampal_sclerosis",), settings={"contrast": 0.5}),
    "sulci": Kind("loss", ("sulci",)),
    "scar": Kind("loss", ("scar",), "image"),
    "pachygyria": Kind("folding", ("pachygyria",)),
    "cleft": Kind("folding", ("cleft",)),
    "nodule, 7 to 10 mm": Kind("misplaced", ("heterotopia",), settings={"visible": True}),
    "tumour": Kind("misplaced", ("tumour",), "image"),
    "spot": Kind("signal", ("spot",), "image"),
}
JUDGING = {
    "sclerosis": Kind("loss", ("hippocampal_sclerosis",)),
    "atrophy": Kind("loss", ("atrophy",)),
    "encephalocele": Kind("loss", ("encephalocele",)),
    "polymicrogyria": Kind("folding", ("polymicrogyria",)),
    "nodule, 4 to 7 mm": Kind("misplaced", ("heterotopia",)),
    "band": Kind("misplaced", ("band",)),
    "tuber": Kind("signal", ("tuber",)),
    "blur": Kind("signal", ("blur",)),
    "faint FLAIR": Kind("signal", ("faint_flair",)),
    # Kinds of the other list, from another cohort.
    "dysplasia": Kind("dysplasia", DYSPLASIA),
    "dysplasia, implanted": Kind("dysplasia", DYSPLASIA, "implant"),
    "sulci": Kind("loss", ("sulci",)),
    "scar": Kind("loss", ("scar",), "image"),
    "pachygyria": Kind("folding", ("pachygyria",)),
    "tumour": Kind("misplaced", ("tumour",), "image"),
    "spot": Kind("signal", ("spot",), "image"),
}
JUDGED = replace(
    COHORT,
    seed=25,
    conditions=Conditions(
        residual=1.3,
        folds=1.2,
        ageing=1.5,
        brain_error=0.05,
        grey=(0.8, 1.25),
        fluid=(1.2, 0.8),
        spread=1.5,
        fine=1.2,
        broad=1.2,
        bias=1.5,
    ),
)
# Their scanners: what makes each poorer than the cohort's own; and the kinds of its patients, in turn.
CHOOSING_SCANNER = {"noise": 1.6, "blur": 0.8, "unsteady": 0.1}
CHOOSING_SCANNED = ("dysplasia", "sulci", "pachygyria", "nodule, 7 to 10 mm")
JUDGING_SCANNER = {"noise": 2.0, "blur": 1.0, "unsteady": 0.2, "spread": 2.0}
JUDGING_SCANNED = ("dysplasia", "sclerosis", "polymicrogyria", "faint FLAIR")


def main(which: str, out: str) -> None:
    choosing(Path(out)) if which == "choosing" else judging(Path(out))


def choosing(out: Path) -> None:
    """Write the cases to choose on: the cohort of ``benchmarks.kinds``, of the default scanner."""
    _write(out, COHORT, CHOOSING, CHOOSING_SCANNER, CHOOSING_SCANNED)


def judging(out: Path) -> None:
    """Write the cases to judge by: other people, who differ more, at another contrast."""
    _write(out, JUDGED, JUDGING, JUDGING_SCANNER, JUDGING_SCANNED)


def read(out: Path, name: str) -> Any:
    """One of the pickles that ``choosing`` and ``judging`` write."""
    with (out / f"{name}.pkl").open("rb") as file:
        return pickle.load(file)


def patients(
    config: PhantomConfig, name: str, kind: Kind, n: int, first: int
) -> Iterator[tuple[str, Subject]]:
    """Patients of a kind, each on an anatomy of its own: ``n`` labels from ``first`` on."""
    for number in range(first, first + n):
        if kind.by == "phantom":
            own = replace(config, kinds=kind.lesions, **kind.settings)
            yield name, phantom.subject(own, f"patient{number:03d}")
            continue
        control, rng = (
            phantom.subject(config, f"control{number:03d}"),
            np.random.default_rng([config.seed, number]),
        )
        lesion = kind.lesions[number % len(kind.lesions)]
        if kind.by == "image":
            yield name, with_lesion(control, lesion, rng)
        else:
            spec = LesionSpec.draw(rng, lesion)
            (patient,) = implant_in_subject(control, config.modalities, [(spec, [config.seed, number])])
            yield name, patient


def _write(
    out: Path,
    config: PhantomConfig,
    kinds: Mapping[str, Kind],
    scanner: Mapping[str, float],
    scanned: Sequence[str],
) -> None:
    poorer = replace(config, conditions=replace(config.conditions, **scanner))
    _save(out, "train", _controls(config, 1, TRAIN))
    _save(out, "healthy", _controls(config, 41, HEALTHY))
    numbered = enumerate(kinds.items(), start=1)
    _save(
        out,
        "cases",
        [c for i, (name, kind) in numbered for c in patients(config, name, kind, CASES, 1000 * i)],
    )
    _save(out, "scanner_train", _controls(poorer, 61, LOCAL))
    _save(out, "scanner_healthy", _controls(poorer, 81, LOCAL_HEALTHY))
    each = LOCAL_CASES // len(scanned)
    cases = [
        case
        for i, name in enumerate(scanned, start=1)
        for case in patients(poorer, name, kinds[name], each, 1000 * i + 500)
    ]
    _save(out, "scanner_cases", cases)


def _controls(config: PhantomConfig, first: int, n: int) -> list[Subject]:
    return [phantom.subject(config, f"control{number:03d}") for number in range(first, first + n)]


def _save(out: Path, name: str, content: list[Any]) -> None:
    with replacing(out / f"{name}.pkl") as partial, partial.open("wb") as file:
        pickle.dump(content, file, protocol=pickle.HIGHEST_PROTOCOL)
    print(f"{name}: {len(content)}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
