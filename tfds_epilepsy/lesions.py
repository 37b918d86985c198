"""Lesions of epilepsy, implanted in tissue maps or in a healthy volume.

Tissue geometry changes first (thickening, junction blur, nodules, folds, loss), intensities after; texture
stays. Sizes and strengths follow what was measured on patients: see ``docs/phantom.md``.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from tfds_epilepsy import bids
from tfds_epilepsy.errors import InputError, words
from tfds_epilepsy.files import LOCK, hold, read_json, replacing, write_json, write_table
from tfds_epilepsy.progress import track
from tfds_epilepsy.regions import HIPPOCAMPAL_AXIS, distance_from_line
from tfds_epilepsy.tissue import Tissue, estimate_tissue
from tfds_epilepsy.volumes import Subject, read_nifti, voxel_to_world, write_nifti

KINDS = (
    "fcd_1",
    "fcd_2a",
    "fcd_2b",
    "heterotopia",
    "hippocampal_sclerosis",
    "sulci",
    "atrophy",
    "encephalocele",
    "pachygyria",
    "cleft",
    "polymicrogyria",
    "tuber",
    "band",
    "blur",
    "faint_flair",
)
DIRECTIONS = {"T1w": -1, "FLAIR": 1, "T2w": 1, "pet": -1}  # of the signal in a lesion: 1 brighter, -1 darker
EDGE = 0.3  # weight of the lesion above which a voxel belongs to its mask
# Template mm, right side: a point of the hippocampus, and how thick it is.
HIPPOCAMPUS = (27.0, -20.0, -17.0)
HIPPOCAMPAL_RADIUS = 6.0  # mm
TEMPORAL_POLE = (38.0, 14.0, -36.0)


@dataclass(frozen=True)
class LesionSpec:
    """What a lesion does to tissue and signal.

    Example:
        >>> LesionSpec("fcd_2b", diameter_mm=15, blur_mm=1, tail_mm=12).contrast
        1.0

    Attributes:
        kind: one of ``KINDS``.
        diameter_mm: of the irregular ball that it fills.
        loss: share of the tissue in it that fluid takes the place of, 0 to 1.
        thickening_mm: cortex gained at the expense of white matter.
        blur_mm: sigma of the blur of the grey-white junction.
        flair: relative gain of the FLAIR signal.
        t1: how far the white matter's T1w signal goes toward that of grey matter, 0 to 1; in hippocampal
            sclerosis the relative loss of the grey matter's.
        tail_mm: length of the transmantle sign toward the ventricle; 0 for none.
        tail_width_mm: its diameter at the cortex.
        pet: relative loss of the PET signal.
        contrast: scales every change; 0 leaves the image as it was.
    """

    kind: str = "fcd_2a"
    diameter_mm: float = 12.0
    thickening_mm: float = 0.0
    blur_mm: float = 0.0
    flair: float = 0.0
    t1: float = 0.0
    tail_mm: float = 0.0
    tail_width_mm: float = 3.0
    pet: float = 0.0
    contrast: float = 1.0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"unknown lesion kind {self.kind!r}: choose one of {', '.join(KINDS)}.")
        if self.diameter_mm <= 0 or self.contrast < 0:
            raise InputError(
                f"lesion of {self.diameter_mm} mm, contrast {self.contrast}: a positive size and a contrast "
                "of 0 or more are needed."
            )

    @classmethod
    def draw(
        cls, rng: np.random.Generator, kind: str, visible: bool = False, contrast: float = 1.0
    ) -> LesionSpec:
        """A lesion of random size and signs: subtle (MRI-negative) or visible to a reader.

        - *fcd_1*, *fcd_2a*, *fcd_2b*: 10 to 25 mm, visible 15 to 35; see ``docs/phantom.md``.
        - *heterotopia*: a nodule by the ventricle, 4 to 7 mm, visible 7 to 10 (Barkovich and Kuzniecky 2000,
          Neurology 55:1603).
        - *hippocampal_sclerosis*: as far from healthy as patients are in the mean, in deviations of healthy
          people: volume 1.7 to 1.9 less (Whelan et al. 2018, Brain 141:391), FLAIR 2 and more brighter
          (Huppertz et al. 2011, Epilepsy Res 97:146). The phantom's people differ less than people do, so
          this is a tenth of its grey matter; a visible one lacks the 20 to 30 % that patients lack.
        - *sulci*: wider, at the expense of 15 to 25 % of the cortex beside them; *atrophy*: so much of cortex
          and white matter (cortex up to 30 % thinner: Lin et al. 2007, Cereb Cortex 17:2007).
        - *encephalocele*: 8 to 14 mm of the temporal pole are gone through the skull base (Saavalainen et al.
          2015, Neurology 85:1467).
        - *pachygyria*: cortex thicker by 1 to 2 mm, sulci shallow; *cleft*: a sulcus lined with cortex where
          none is (both Barkovich et al. 2012, Brain 135:1348); *polymicrogyria*: small gyri that merge, the
          cortex seems thicker by 1 to 2 mm, its junction is stippled, most by the Sylvian fissure (Leventer
          et al. 2010, Brain 133:1415). The signal of each tissue stays normal in these three.
        - *tuber*: 8 to 18 mm, bright on FLAIR, dark on T1w under the cortex, junction blurred (Gallagher et
          al. 2010, J Neurol 257:1373).
        - *band*, *blur*, *faint_flair*: signs of dysplasia one by one (Colombo et al. 2012, Neuroradiology
          54:1065): the transmantle sign, 3 to 5 mm wide; the junction's blur; FLAIR 4 to 10 % brighter.
        """

        def between(subtle: tuple[float, float], plain: tuple[float, float]) -> float:
            return float(rng.uniform(*(plain if visible else subtle)))

        signs = {
            "diameter_mm": between((10, 25), (15, 35)),
            "thickening_mm": between((0.5, 1), (1, 3)),
            "blur_mm": between((0.7, 1.2), (1.2, 2)),
            "flair": between((0.04, 0.10), (0.10, 0.36)),
            "t1": between((0.03, 0.10), (0.10, 0.20)),
            "tail_mm": between((10, 20), (15, 30)) * float(rng.random() < 0.5),
            "tail_width_mm": between((2, 4), (3, 6)),
            "pet": between((0.05, 0.12), (0.12, 0.25)),
        }
        spec = cls(kind=kind, contrast=contrast, **signs)
        if kind == "fcd_1":
            return replace(spec, thickening_mm=0.0, flair=spec.flair / 2, tail_mm=0.0)
        if kind == "fcd_2a":
            return replace(spec, tail_mm=0.0)
        if kind == "fcd_2b":
            return spec
        cortex: Any = {"thickening_mm": 0.0, "blur_mm": 0.0, "tail_mm": 0.0}
        signal: Any = {"flair": 0.0, "t1": 0.0}
        if kind == "heterotopia":
            return replace(spec, diameter_mm=between((4, 7), (7, 10)), **signal, **cortex)
        if kind == "hippocampal_sclerosis":
            strength: Any = {
                "loss": between((0.10, 0.14), (0.25, 0.35)),
                "flair": between((0.10, 0.16), (0.16, 0.25)),
                "t1": between((0.02, 0.05), (0.05, 0.10)),
            }
            return replace(spec, diameter_mm=between((34, 42), (38, 46)), **{**cortex, **strength})
        if kind in ("sulci", "atrophy"):
            loss = between((0.15, 0.25), (0.25, 0.40))
            return replace(spec, diameter_mm=between((16, 26), (20, 35)), loss=loss, **signal, **cortex)
        if kind == "encephalocele":
            diameter = between((8, 14), (12, 20))
            return replace(spec, diameter_mm=diameter, loss=between((0.8, 1), (0.9, 1)), **signal, **cortex)
        if kind in ("pachygyria", "polymicrogyria"):
            thicker = between((0.8, 1.6), (2, 3.5))
            folded = replace(spec, diameter_mm=between((18, 28), (25, 40)), pet=0.0, **signal, **cortex)
            return replace(folded, thickening_mm=thicker)
        if kind == "cleft":
            return replace(spec, diameter_mm=between((12, 18), (16, 26)), pet=0.0, **signal, **cortex)
        if kind == "tuber":
            bright: Any = {
                "flair": between((0.10, 0.25), (0.25, 0.40)),
                "t1": between((0.3, 0.6), (0.5, 0.8)),
            }
            return replace(spec, diameter_mm=between((8, 18), (12, 25)), tail_mm=0.0, **bright)
        if kind == "band":
            length: Any = {"tail_mm": between((15, 25), (20, 35)), "tail_width_mm": between((3, 5), (4, 7))}
            seen: Any = {"flair": between((0.08, 0.15), (0.15, 0.30)), "t1": between((0.15, 0.3), (0.3, 0.5))}
            return replace(spec, **{**cortex, **length, **seen})
        if kind == "blur":
            return replace(spec, **signal, thickening_mm=0.0, tail_mm=0.0, pet=0.0)
        return replace(spec, **cortex, t1=0.0, pet=0.0)  # faint_flair


@dataclass(frozen=True)
class Implant:
    """A lesion in place: ``tissue`` is the changed map, the rest are weights ``(x, y, z)`` in [0, 1].

    Example:
        >>> from tfds_epilepsy.volumes import load_template
        >>> template = load_template()
        >>> tissue = np.stack([template.gm, template.wm, template.csf])
        >>> done = implant_in_tissue(tissue, template.affine, LesionSpec("fcd_2a", blur_mm=1), seed=1)
        >>> done.spec.kind, done.weight.shape
        ('fcd_2a', (75, 94, 79))

    Attributes:
        box: the part of the grid that holds the lesion.
        weight: of the lesion, soft at its irregular edge.
        tail: of the transmantle sign, in white matter.
        centre_mm: world position.
        spec: what it is.
    """

    tissue: Tissue
    box: tuple[slice, slice, slice]
    weight: NDArray[np.float32]
    tail: NDArray[np.float32]
    centre_mm: tuple[float, float, float]
    spec: LesionSpec

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Where the lesion changes tissue or signal (or would, at contrast 0)."""
        return np.maximum(self.weight, self.tail) > EDGE

    def row(self) -> dict[str, Any]:
        """Its description for a table: place, side, and the fields of its spec."""
        x, y, z = (round(v, 1) for v in self.centre_mm)
        side = "right" if x > 0 else "left"
        return {**asdict(self.spec), "hemisphere": side, "x_mm": x, "y_mm": y, "z_mm": z}

    def gain(self, modality: str, grey_over_white: float) -> NDArray[np.float32]:
        """Factor of the signal of a modality inside ``box``.

        Args:
            modality: ``T1w``, ``FLAIR``, ``T2w`` or ``pet``; others stay.
            grey_over_white: ratio of the two tissues' signals in this modality.
        """
        spec = self.spec
        both: NDArray[np.float32] = np.maximum(self.weight[self.box], self.tail[self.box])
        _, white, fluid = self.tissue[(slice(None), *self.box)]
        gain = np.ones_like(both)
        if modality in ("FLAIR", "T2w"):
            gain = 1 + spec.contrast * spec.flair * both * (1 - fluid)
        elif modality == "T1w" and spec.kind == "hippocampal_sclerosis":
            gain = 1 - spec.contrast * spec.t1 * both * (1 - fluid)
        elif modality == "T1w":
            gain = 1 + spec.contrast * spec.t1 * both * white * (grey_over_white - 1)
        elif modality == "pet":
            gain = 1 - min(spec.contrast * spec.pet, 1.0) * both * (1 - fluid)
        return gain


def implant_in_tissue(
    tissue: Tissue,
    affine: ArrayLike,
    spec: LesionSpec,
    seed: int | Sequence[int],
    *,
    centre: Sequence[int] | None = None,
    brain_mask: NDArray[np.bool_] | None = None,
    depth: NDArray[np.floating] | None = None,
) -> Implant:
    """Put a lesion in tissue maps.

    Args:
        tissue: ``(3, x, y, z)`` probabilities of gm, wm, csf.
        affine: ``(4, 4)`` of an isotropic or anisotropic grid in template space.
        spec: the lesion.
        seed: of its place and shape.
        centre: voxel of its centre; drawn if None, where such lesions occur.
        brain_mask: ``(x, y, z)``; by default where there is tissue.
        depth: ``(x, y, z)`` distance to the brain's surface in mm; measured if None.

    Raises:
        InputError: no tissue at which such a lesion could lie.
    """
    rng = np.random.default_rng(seed)
    affine = np.asarray(affine, dtype=np.float64)
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    if centre is None:
        brain = tissue.sum(0) > 0.5 if brain_mask is None else brain_mask
        if depth is None:
            depth = ndimage.distance_transform_edt(brain, sampling=zooms)
        centre = _draw_centre(tissue, brain, depth, affine, spec, rng)
    centre_mm = voxel_to_world([centre], affine)[0]

    reach = spec.diameter_mm * 0.8 + spec.tail_mm + 6
    low = np.maximum(np.floor(np.array(centre) - reach / zooms), 0).astype(int)
    high = np.minimum(np.ceil(np.array(centre) + reach / zooms) + 1, tissue.shape[1:]).astype(int)
    box = (slice(low[0], high[0]), slice(low[1], high[1]), slice(low[2], high[2]))
    local = tissue[(slice(None), *box)].astype(np.float32)
    offsets = np.stack(
        np.meshgrid(*[np.arange(a, b) for a, b in zip(low, high, strict=True)], indexing="ij"), -1
    )
    offsets = (offsets - np.array(centre)) * zooms * np.sign(np.diag(affine)[:3])  # mm from the centre

    ball = irregular_ball(offsets, spec.diameter_mm / 2, zooms, rng)
    changed, weight, tail = _change(local, ball, offsets, centre_mm, spec, zooms, rng)

    new_tissue = tissue.astype(np.float32).copy()
    full_weight, full_tail = (np.zeros(tissue.shape[1:], np.float32) for _ in range(2))
    new_tissue[(slice(None), *box)] = changed
    full_weight[box], full_tail[box] = weight, tail
    x, y, z = (float(v) for v in centre_mm)
    return Implant(new_tissue, box, full_weight, full_tail, (x, y, z), spec)


def implant(
    volumes: Mapping[str, NDArray[np.floating]],
    mask: NDArray[np.bool_],
    affine: ArrayLike,
    spec: LesionSpec,
    seed: int | Sequence[int] = 0,
    *,
    tissue: Tissue | None = None,
    centre: Sequence[int] | None = None,
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_], Implant]:
    """Put a lesion in a real volume of any modalities.

    The tissue is estimated from the volume itself; the signal then moves by what the tissue's change is worth
    in this volume, so that noise, texture and bias stay.

    Example:
        >>> from tfds_epilepsy.volumes import load_template
        >>> template = load_template()
        >>> tissue = np.stack([template.gm, template.wm, template.csf])
        >>> scan, spec = {"T1w": template.t1}, LesionSpec(t1=0.5)
        >>> changed, lesion, done = implant(scan, template.brain_mask, template.affine, spec, tissue=tissue)
        >>> changed["T1w"].shape, bool(lesion.any())
        ((75, 94, 79), True)

    Args:
        volumes: modality -> ``(x, y, z)``; T1w where it is to estimate the tissue.
        mask: ``(x, y, z)`` brain mask.
        affine: ``(4, 4)``.
        spec: the lesion; ``spec.contrast`` 0 gives the volumes back as they were.
        seed: of place and shape.
        tissue: ``(3, x, y, z)``; estimated from the first volume (T1w preferred) if None.
        centre: voxel; drawn if None.

    Returns:
        The volumes with the lesion, its mask, and what was done.

    Raises:
        InputError: no volume, shapes that disagree, an empty mask.
    """
    if not volumes:
        raise InputError("no volume to put a lesion in.")
    wrong = [f"{name} {volume.shape}" for name, volume in volumes.items() if volume.shape != mask.shape]
    if wrong:
        raise InputError(f"volumes and mask {mask.shape} must have one shape: {', '.join(wrong)}.")
    if tissue is None:
        tissue = _tissue_of(volumes, mask, affine)
    done = implant_in_tissue(tissue, affine, spec, seed, centre=centre, brain_mask=mask)
    box = done.box
    before, after = (maps[(slice(None), *box)] for maps in (tissue, done.tissue))
    touched = mask[box] & (np.maximum(done.weight, done.tail)[box] > 0)
    result = {}
    for name, volume in volumes.items():
        means = [_tissue_mean(volume, share, mask, box) for share in tissue]
        change = sum(mean * (new - old) for mean, new, old in zip(means, after, before, strict=True))
        moved = (volume[box] + change) * done.gain(name, means[0] / max(means[1], 1e-6))
        result[name] = volume.astype(np.float32)
        result[name][box] = np.where(touched, moved, volume[box])
    return result, done.mask & mask, done


def implant_in_subject(
    control: Subject,
    modalities: Sequence[str],
    lesions: Iterable[tuple[LesionSpec, int | Sequence[int]]],
) -> Iterator[Subject]:
    """Put lesions in a control, one at a time: each gives a patient with that lesion alone.

    Signals stay within the control's own range in each modality.

    Example:
        >>> from tfds_epilepsy.phantom import PhantomConfig, subject
        >>> healthy = subject(PhantomConfig(), "control001")
        >>> (one,) = implant_in_subject(healthy, ["T1w", "FLAIR"], [(LesionSpec(flair=0.2), 1)])
        >>> one.group, bool(one.lesion_mask.any())
        ('patient', True)

    Args:
        control: in template space.
        modalities: names of the channels of its image.
        lesions: what each is, and the seed of its place and shape.

    Yields:
        The control as a patient, under its own label.
    """
    volumes = {name: control.image[..., channel] for channel, name in enumerate(modalities)}
    tissue = _tissue_of(volumes, control.brain_mask, control.affine)
    darkest, brightest = control.image.min((0, 1, 2)), control.image.max((0, 1, 2))
    for spec, seed in lesions:
        changed, mask, _ = implant(volumes, control.brain_mask, control.affine, spec, seed, tissue=tissue)
        image = np.stack([changed[name] for name in modalities], axis=-1).clip(darkest, brightest)
        yield replace(control, group="patient", image=image.astype(np.float32), lesion_mask=mask)


def implant_in_dataset(
    bids_dir: str | Path,
    out_dir: str | Path,
    *,
    subjects: Sequence[str] | None = None,
    kinds: Sequence[str] = ("fcd_2a", "fcd_2b", "fcd_1"),
    visible: bool = False,
    contrast: float = 1.0,
    seed: int = 0,
    progress: bool = True,
    **reading: Any,
) -> Path:
    """Put lesions in users' own controls: a validation where no annotated patient exists.

    The result is a template-space derivative: all subjects of the input, some of its controls now patients
    with a lesion mask, and ``lesions.tsv``. Training controls are never touched by default. Started again
    after a kill, it goes on where it was.

    Example:
        >>> implant_in_dataset("DERIVATIVE", "IMPLANTED")  # doctest: +SKIP

    Args:
        bids_dir: a template-space derivative.
        out_dir: a folder that is new, empty, or holds a part of the same result.
        subjects: controls that get a lesion; by default every second one outside the train split.
        kinds: of the lesions, in turn.
        visible: lesions that a reader would see, in place of subtle ones.
        contrast: scales every change.
        seed: of the lesions.
        progress: show a bar.
        **reading: ``modalities``, ``space``, ``group_column``, ``groups``, as in ``bids.template_subjects``.

    Raises:
        InputError: problems of the input, all at once; subjects that are no controls outside training; a
            folder that holds something else.
    """
    unknown_kinds = [kind for kind in kinds if kind not in KINDS]
    if unknown_kinds or not kinds:
        raise InputError(f"unknown lesion kinds {unknown_kinds}: choose among {', '.join(KINDS)}.")
    folder = Path(bids_dir)
    everyone, problems = bids.template_subjects(folder, **reading)
    problems += bids.voxel_problems(everyone)
    if problems:
        raise InputError(problems)
    people = [one.participant for one in everyone]
    free = [who.subject for who in people if who.group == "control" and who.split != "train"]
    chosen = free[::2] if subjects is None else [label.removeprefix("sub-") for label in subjects]
    problems = [
        f"{bids_dir}: sub-{label} is no control outside the train split: it gets no lesion."
        for label in chosen
        if label not in free
    ]
    if not chosen:
        problems.append(f"{bids_dir}: no control outside the train split; set 'split' in participants.tsv.")
    if problems:
        raise InputError(problems)
    settings = {
        "source": bids.fingerprint(everyone, list(everyone[0].images), folder),
        "subjects": chosen,
        "kinds": list(kinds),
        "visible": visible,
        "contrast": contrast,
        "seed": seed,
    }
    rows, found, failures = [], [], []
    with open_dataset(out_dir, "epizoo implant", settings) as out:
        for one in track(everyone, "implant") if progress else everyone:
            label = one.subject
            copies = {path: out / path.relative_to(folder) for path in one.files}
            try:
                if label in chosen:
                    spec_seed = [seed, zlib.crc32(label.encode())]
                    kind = kinds[chosen.index(label) % len(kinds)]
                    spec = LesionSpec.draw(np.random.default_rng(spec_seed), kind, visible, contrast)
                    lesion = _implant_in_files(one, copies, spec, spec_seed)
                    found.append({"participant_id": f"sub-{label}", **lesion})
                else:
                    for path, copy in copies.items():
                        _copy(_sidecar(path), _sidecar(copy))
                        _copy(path, copy)
            except Exception as error:  # of one subject: the others go on
                failures.append(f"sub-{label}: {words(error)}")
            who = one.participant
            group = "patient" if label in chosen else who.group
            person = {"group": group, "split": who.split, "age": who.age, "sex": who.sex, "site": who.site}
            rows.append({"participant_id": f"sub-{label}", **person})
        if failures:
            raise InputError(
                [*failures, f"{len(failures)} of {len(everyone)} subjects failed; the others are kept."]
            )
        write_tables(out, {"lesions.tsv": found, "participants.tsv": rows})
    return out


@contextmanager
def open_dataset(out_dir: str | Path, made_by: str, settings: Mapping[str, Any]) -> Iterator[Path]:
    """Hold a folder for a derivative that this library makes, new or begun with the same settings.

    Raises:
        InputError: it holds something else, another process is at work in it, or it cannot be written to.
    """
    out = Path(out_dir)
    settings = json.loads(json.dumps(settings))
    description = out / "dataset_description.json"
    try:
        found = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.exists() else []
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({error.strerror}).") from error
    if description.name in found:
        if _maker(read_json(description)) != (made_by, settings):
            raise InputError(f"{out}: holds a data set of other making; give another folder.")
    elif found:
        raise InputError(f"{out}: is not empty and no data set of {made_by}; give another folder.")
    with hold(out):
        bids.write_bidsignore(out, [LOCK, "lesions.tsv"])
        if not description.exists():
            bids.write_description(out, made_by, made_by=made_by, parameters=settings)
        yield out


def _maker(description: Any) -> tuple[Any, Any]:
    """Who says to have made a data set, with which settings; None where its description does not say."""
    try:
        first = description["GeneratedBy"][0]
        return first["Name"], first["Parameters"]
    except (KeyError, IndexError, TypeError):
        return None, None


def write_tables(out: Path, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Tables of a finished data set, by file name; one that is there may have been edited, and stays."""
    for name, rows in tables.items():
        if not (out / name).exists():
            write_table(out / name, rows)


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name.split(".")[0] + ".json")


def _copy(path: Path, copy: Path) -> None:
    """Copy a file atomically; what is there already stays."""
    if path.is_file() and not copy.exists():
        with replacing(copy) as partial:
            shutil.copyfile(path, partial)


def _implant_in_files(
    one: bids.TemplateSubject, copies: Mapping[Path, Path], spec: LesionSpec, seed: Sequence[int]
) -> dict[str, Any]:
    """The images of one subject with a lesion, its masks, and the lesion's row."""
    image = copies[next(iter(one.images.values()))]
    entities = re.match(r".*?_space-[^_.]+", image.name)
    lesion = image.with_name(f"{entities.group() if entities else image.name}_label-lesion_mask.nii.gz")
    record = _sidecar(lesion)  # written last: the subject is whole
    if not record.exists():
        volumes = {}
        for modality, path in one.images.items():
            volumes[modality], affine = read_nifti(path)
        if one.brain_mask is None:
            mask = bids.stripped_mask(next(iter(volumes.values())))
        else:
            mask = read_nifti(one.brain_mask)[0] > 0.5
            _copy(one.brain_mask, copies[one.brain_mask])
        changed, lesion_mask, done = implant(volumes, mask, affine, spec, seed)
        for modality, path in one.images.items():
            before = volumes[modality]
            _copy(_sidecar(path), _sidecar(copies[path]))
            limited = np.clip(changed[modality], before.min(), before.max())
            write_nifti(copies[path], limited, affine)
        write_nifti(lesion, lesion_mask, affine, dtype=np.uint8)
        write_json(record, {"Type": "Lesion", "Implanted": done.row()})
    row: dict[str, Any] = json.loads(record.read_text())["Implanted"]
    return row


def _tissue_of(
    volumes: Mapping[str, NDArray[np.floating]], mask: NDArray[np.bool_], affine: ArrayLike
) -> Tissue:
    """Estimated from T1w, or from the first volume where there is none."""
    name = "T1w" if "T1w" in volumes else next(iter(volumes))
    return estimate_tissue(volumes[name], mask, affine, modality=name)


def _tissue_mean(
    volume: NDArray[np.floating], share: NDArray[np.float32], mask: NDArray[np.bool_], box: tuple[slice, ...]
) -> float:
    """Mean signal of a tissue, near the lesion where there is enough of it: a bias field is no change."""
    for part in (box, (slice(None),) * 3):
        weights = share[part] * mask[part] * (share[part] > 0.8)
        if weights.sum() > 50:
            break
    return float((weights * volume[part]).sum() / max(float(weights.sum()), 1e-6))


def _draw_centre(
    tissue: Tissue,
    brain: NDArray[np.bool_],
    depth: NDArray[np.floating],
    affine: NDArray[np.floating],
    spec: LesionSpec,
    rng: np.random.Generator,
) -> tuple[int, ...]:
    """A voxel where such lesions occur: 63 % frontal, 18 % parietal, in the depth of the cortex.

    Polymicrogyria is by the Sylvian fissure in 60 %.
    """
    zooms = np.linalg.norm(affine[:3, :3], axis=0)
    side = 1 if rng.random() < 0.5 else -1
    if spec.kind in ("hippocampal_sclerosis", "encephalocele"):
        target = np.array(HIPPOCAMPUS) * [side, 1, 1]
        if spec.kind == "encephalocele":
            target = np.array(TEMPORAL_POLE) * [side, 1, 1] + rng.normal(scale=3, size=3)
            brain = brain & (depth < 5)
        voxels = np.argwhere((tissue[0] > 0.4) & brain)
        if len(voxels) == 0:
            raise InputError("no grey matter in the volume at which a lesion could lie.")
        distance = np.linalg.norm(voxel_to_world(voxels, affine) - target, axis=1)
        return tuple(int(v) for v in voxels[distance.argmin()])
    if spec.kind == "heterotopia":
        by_ventricle = ndimage.gaussian_filter(tissue[2], 4 / zooms) > 0.05
        candidate = (tissue[1] > 0.8) & (depth > 20) & by_ventricle
    else:  # cortex, not its crown: grey matter some way under the surface, by the white matter
        near_white = ndimage.uniform_filter(tissue[1], 3) > 0.15
        candidate = (tissue[0] > 0.55) & (depth > 6) & (depth < 24) & near_white
    voxels = np.argwhere(candidate)
    x, y, z = voxel_to_world(voxels, affine).T
    cerebrum = (
        (z > -20 + 0.35 * (-y - 40) * (y < -40))
        & (np.abs(x) > 6)
        & ~((z < -5) & (y < -10) & (np.abs(x) < 25))
    )
    voxels, x, y, z = (array[cerebrum] for array in (voxels, x, y, z))
    if len(voxels) == 0:
        raise InputError("no cortex in the volume at which a lesion could lie; is it in template space?")
    frontal, parietal = (y > -5) & (z > -15), (y <= -25) & (z > 20)
    lobe = rng.choice(3, p=[0.63, 0.18, 0.19])
    region = (frontal, parietal, ~frontal & ~parietal)[lobe]
    if spec.kind == "polymicrogyria" and rng.random() < 0.6:
        region = (np.abs(x) > 30) & (np.abs(y + 10) < 25) & (np.abs(z - 10) < 20)
    region &= np.sign(x) == side
    pool = voxels[region] if region.any() else voxels
    return tuple(int(v) for v in pool[rng.integers(len(pool))])


def _change(
    tissue: Tissue,
    ball: NDArray[np.float32],
    offsets: NDArray[Any],
    centre_mm: NDArray[Any],
    spec: LesionSpec,
    zooms: NDArray[Any],
    rng: np.random.Generator,
) -> tuple[Tissue, NDArray[np.float32], NDArray[np.float32]]:
    """What a lesion makes of the tissue in a box; the weights of the lesion and of its transmantle sign."""
    grey, white, fluid = tissue
    tail = np.zeros_like(ball)
    weight = ball * (grey + white)
    if spec.kind == "heterotopia":
        weight = ball * (white > 0.3)
        return _convert(tissue, weight * spec.contrast, 1, 0), weight, tail
    if spec.kind == "hippocampal_sclerosis":
        weight = ball * _hippocampus(offsets, centre_mm) * np.clip(1.5 * (grey + 0.5 * white), 0, 1)
        return _lose(tissue, weight, spec.contrast * spec.loss, (0,), zooms), weight, tail
    if spec.kind == "sulci":
        weight = _plain(ball * _near(fluid, 2, zooms) * np.clip(2 * grey, 0, 1))
        return _lose(tissue, weight, spec.contrast * spec.loss, (0,), zooms), weight, tail
    if spec.kind == "atrophy":
        weight = _plain(weight * _near(fluid, 4, zooms))
        return _lose(tissue, weight, spec.contrast * spec.loss, (0, 1), zooms), weight, tail
    if spec.kind == "encephalocele":
        gone = np.clip(spec.contrast * spec.loss, 0, 1) * ball
        return _convert(_convert(tissue, gone, 0, 2), gone, 1, 2), weight, tail
    if spec.kind in ("pachygyria", "polymicrogyria", "cleft"):
        changed, weight = _fold(tissue, ball, offsets, spec, zooms, rng)
        return changed, weight, tail
    if spec.kind == "band":
        tail = _transmantle(offsets, centre_mm, spec) * np.clip(2 * white - 0.5, 0, 1)
        return tissue, np.zeros_like(ball), tail
    changed = _thicken(tissue, weight * spec.contrast * spec.thickening_mm, zooms)
    changed = _blur_junction(changed, weight, spec.contrast * spec.blur_mm, zooms)
    if spec.tail_mm > 0:
        tail = _transmantle(offsets, centre_mm, spec) * np.clip(2 * white - 0.5, 0, 1)
    return changed, weight, tail


def irregular_ball(
    offsets: NDArray[Any], radius: float, zooms: NDArray[Any], rng: np.random.Generator
) -> NDArray[np.float32]:
    """A soft ball with a bumpy border: 1 inside, 0 outside, over a rim of a third of the radius."""
    noise = rng.normal(size=offsets.shape[:3])
    noise = ndimage.gaussian_filter(noise, np.maximum(radius / 2.5, 1.5) / zooms)
    noise *= 0.25 * radius / max(float(noise.std()), 1e-6)
    distance = np.linalg.norm(offsets, axis=-1) + noise
    return np.asarray(np.clip((radius - distance) / (0.35 * radius) + 0.5, 0, 1), np.float32)


def _thicken(tissue: Tissue, thickness: NDArray[Any], zooms: NDArray[Any]) -> Tissue:
    """Cortex grows into the white matter by ``thickness`` mm, voxel by voxel."""
    depth = ndimage.distance_transform_edt(tissue[1] > tissue[0], sampling=zooms) - zooms.min() / 2
    grown = np.clip((thickness - np.maximum(depth, 0)) / zooms.min() + 0.5, 0, 1) * np.clip(
        thickness / 0.25, 0, 1
    )
    near_cortex = ndimage.gaussian_filter(tissue[0], 2 / zooms) > 0.1
    return _convert(tissue, (grown * near_cortex).astype(np.float32), 1, 0)


def _blur_junction(tissue: Tissue, weight: NDArray[Any], sigma: float, zooms: NDArray[Any]) -> Tissue:
    """Grey and white matter run into each other; the border to the fluid stays."""
    if sigma <= 0:
        return tissue
    solid = tissue[0] + tissue[1]
    share = np.divide(tissue[1], solid, out=np.zeros_like(solid), where=solid > 1e-3)
    weights = ndimage.gaussian_filter(solid, sigma / zooms)
    blurred = ndimage.gaussian_filter(share * solid, sigma / zooms) / np.maximum(weights, 1e-3)
    share = share + weight * (np.clip(blurred, 0, 1) - share)
    blurred = np.stack([solid * (1 - share), solid * share, tissue[2]])
    return np.where(weight > 0, blurred, tissue).astype(np.float32)


def _convert(tissue: Tissue, amount: NDArray[Any], source: int, target: int) -> Tissue:
    changed = tissue.copy()
    moved = np.clip(amount, 0, 1) * tissue[source]
    changed[source] -= moved
    changed[target] += moved
    return changed


def _transmantle(offsets: NDArray[Any], centre_mm: NDArray[Any], spec: LesionSpec) -> NDArray[np.float32]:
    """A band from the cortex toward the lateral ventricle of the same side, tapering."""
    ventricle = np.array([math.copysign(12, centre_mm[0]), np.clip(centre_mm[1], -45, 25), 15])
    direction = ventricle - centre_mm
    length = min(spec.tail_mm + spec.diameter_mm / 2, float(np.linalg.norm(direction)))
    direction /= max(float(np.linalg.norm(direction)), 1e-6)
    along = offsets @ direction
    across = np.linalg.norm(offsets - along[..., None] * direction, axis=-1)
    radius = spec.tail_width_mm / 2 * np.clip(1.2 - along / max(length, 1e-6), 0, 1)
    inside = (along > 0) & (along < length)
    return np.where(inside, np.clip(radius - across + 0.5, 0, 1), 0).astype(np.float32)


def _hippocampus(offsets: NDArray[Any], centre_mm: NDArray[Any]) -> NDArray[np.float32]:
    """A soft tube along the hippocampus of the centre's side, in mm from ``HIPPOCAMPUS``."""
    side = math.copysign(1, centre_mm[0])
    axis = (np.array(HIPPOCAMPAL_AXIS) - HIPPOCAMPUS) * [side, 1, 1]
    distance = distance_from_line(offsets, axis)
    return np.clip(HIPPOCAMPAL_RADIUS - distance + 0.5, 0, 1).astype(np.float32)


def _near(share: NDArray[Any], sigma: float, zooms: NDArray[Any]) -> NDArray[np.float32]:
    """1 at and beside voxels of a tissue, 0 some 3 sigma (mm) away from them."""
    return np.asarray(np.clip(4 * ndimage.gaussian_filter(share, sigma / zooms), 0, 1), np.float32)


def _plain(weight: NDArray[Any]) -> NDArray[Any]:
    """Weights raised where fluid is so far that they hardly reach ``EDGE``: every lesion has a mask."""
    highest = float(weight.max())
    return weight * (2 * EDGE / highest) if 0 < highest < 2 * EDGE else weight


def _lose(
    tissue: Tissue, weight: NDArray[Any], share: float, sources: Sequence[int], zooms: NDArray[Any]
) -> Tissue:
    """Fluid takes a share of the sources' volume under the weights, from their surface inwards."""
    surface = weight * _near(tissue[2], 2, zooms)
    here = tissue[list(sources)].sum(0)
    amount = share * (weight * here).sum() / max(float((surface * here).sum()), 1e-6) * surface
    for source in sources:
        tissue = _convert(tissue, amount, source, 2)
    return tissue


def _fold(
    tissue: Tissue,
    ball: NDArray[np.float32],
    offsets: NDArray[Any],
    spec: LesionSpec,
    zooms: NDArray[Any],
    rng: np.random.Generator,
) -> tuple[Tissue, NDArray[np.float32]]:
    """Cortex that is folded otherwise (``pachygyria``, ``polymicrogyria``, ``cleft``), and where."""
    grey, white, fluid = tissue
    if spec.kind == "cleft":
        normal = rng.normal(size=3)
        apart = np.abs(offsets @ (normal / np.linalg.norm(normal)) + _ripples(ball.shape, 4, zooms, rng))
        lining = ball * np.clip(3.5 - apart, 0, 1)
        groove = ball * np.clip(1.2 - apart, 0, 1)
        changed = _convert(tissue, spec.contrast * lining, 1, 0)
        return _convert(changed, spec.contrast * groove, 0, 2), lining * (grey + white)
    between_gyri = np.clip(2.5 * ndimage.gaussian_filter(grey + white, 3 / zooms) - 1.2, 0, 1)
    weight = ball * _near(grey, 2, zooms) * np.maximum(grey + white, between_gyri)
    closed = _convert(tissue, 0.7 * spec.contrast * weight * between_gyri, 2, 0)
    thickness = spec.contrast * spec.thickening_mm * weight
    if spec.kind == "pachygyria":
        return _thicken(closed, thickness, zooms), weight
    # Gyri of 2 to 4 mm: between them fluid from above and white matter from below, in sheets.
    uneven = np.clip(1 + _ripples(ball.shape, 1.2, zooms, rng), 0, 2)
    changed = _thicken(closed, thickness * uneven, zooms)
    sheets = np.clip(1 - np.abs(_ripples(ball.shape, 1.2, zooms, rng)) / 0.4, 0, 1)
    shallow = spec.contrast * weight * sheets * _near(fluid, 2, zooms)
    return _convert(changed, 0.7 * shallow, 0, 2), weight


def _ripples(
    shape: tuple[int, ...], sigma: float, zooms: NDArray[Any], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Smooth Gaussian noise of deviation 1."""
    noise = ndimage.gaussian_filter(rng.normal(size=shape), sigma / zooms)
    return np.asarray(noise / noise.std(), np.float32)
