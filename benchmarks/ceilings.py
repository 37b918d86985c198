"""What a network that has seen such lesions finds: the ceiling of each kind that judges.

    python -m benchmarks.cases judging JUDGING
    python -m benchmarks.ceilings JUDGING OUT

The supervised reference, taught 16 other patients of each kind of ``benchmarks.cases.JUDGING`` that no other
list has, and of dysplasia: people of another seed, under the same conditions, so that no patient that is
judged, nor an anatomy of one, teaches. One network for all kinds, as for a hospital that has such patients.
OUT keeps the patients and the network epoch by epoch: a killed command goes on where it was.
"""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks.cases import CHOOSING, JUDGED, JUDGING, patients, read
from benchmarks.contrast import score
from benchmarks.kinds import report
from epizoo.evaluation import evaluate
from epizoo.supervised import fit_supervised
from tfds_epilepsy.files import replacing, write_json
from tfds_epilepsy.volumes import Subject

TAUGHT = [name for name, kind in JUDGING.items() if name not in CHOOSING and kind.by == "phantom"] + [
    "dysplasia"
]
EACH = 16  # patients of a kind
TRAINING = {"epochs": 12, "steps_per_epoch": 50, "batch_size": 16}
TEACHERS = replace(JUDGED, seed=JUDGED.seed + 1)


def main(judging: str, out: str) -> None:
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    reference = fit_supervised(_teaching(folder), **TRAINING, folder=folder)
    cases = read(Path(judging), "cases")
    found = {}
    print(f"{'':20} {'':10} n   AUROC, AUPRC, in the first 5 clusters")
    for kind in TAUGHT:
        rows = evaluate(
            (score(reference, case) for name, case in cases if name == kind), resamples=10
        ).annotated
        report("supervised", kind, rows)
        found[kind] = [[row.voxel.auroc, row.voxel.auprc, row.lesion["overlap"].rank <= 5] for row in rows]
    write_json(folder / "ceilings.json", found)


def _teaching(folder: Path) -> list[Subject]:
    path = folder / "teaching.pkl"
    if not path.is_file():
        made = [
            patient
            for number, name in enumerate(TAUGHT, start=1)
            for _, patient in patients(TEACHERS, name, JUDGING[name], EACH, 1000 * number)
        ]
        with replacing(path) as partial, partial.open("wb") as file:
            pickle.dump(made, file, protocol=pickle.HIGHEST_PROTOCOL)
    return list(pickle.loads(path.read_bytes()))


if __name__ == "__main__":
    main(*sys.argv[1:])
