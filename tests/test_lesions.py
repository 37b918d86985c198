"""Lesions: what each kind does to tissue and signal, in tissue maps, in volumes, in a data set."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.small_cohort import SPACE, write_cohort
from tfds_epilepsy import bids, lesions, phantom
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.lesions import KINDS, LesionSpec, implant, implant_in_subject, implant_in_tissue
from tfds_epilepsy.volumes import load_template

CENTRE = (20, 22, 18)


def slab(zoom=(1.0, 1.0, 1.0), shape=(40, 44, 36)):
    """Fluid, 3 mm of cortex, white matter, one under the other along x."""
    x = (np.arange(shape[0]) * zoom[0])[:, None, None] * np.ones(shape)
    top = CENTRE[0] * zoom[0]
    fluid, white = x > top + 1.5, x < top - 1.5
    tissue = np.stack([~fluid & ~white, white, fluid]).astype(np.float32)
    affine = np.diag([*zoom, 1.0])
    affine[:3, 3] = [10, -20, 20]
    return tissue, affine


def cortex_only(**signs):
    return LesionSpec("fcd_2a", diameter_mm=16, **signs)


@pytest.mark.parametrize("zoom", [(1.0, 1.0, 1.0), (1.0, 1.5, 2.0)])
def test_thickening_adds_cortex_where_the_lesion_is(zoom):
    tissue, affine = slab(zoom)
    done = implant_in_tissue(tissue, affine, cortex_only(thickening_mm=2.0), 0, centre=CENTRE)
    thickness = done.tissue[0].sum(0) * zoom[0]  # mm of cortex in each column
    healthy = tissue[0].sum(0) * zoom[0]
    gained = (thickness - healthy)[CENTRE[1], CENTRE[2]]
    assert 1.0 <= gained <= 3.0
    assert thickness[0, 0] == healthy[0, 0]
    np.testing.assert_array_equal(done.tissue[2], tissue[2])


def test_blur_softens_the_junction_and_keeps_the_fluid():
    tissue, affine = slab()
    done = implant_in_tissue(tissue, affine, cortex_only(blur_mm=1.5), 0, centre=CENTRE)
    column = (slice(None), CENTRE[1], CENTRE[2])
    steepest = np.abs(np.diff(done.tissue[1][column])).max()
    assert steepest < 0.5 * np.abs(np.diff(tissue[1][column])).max()
    np.testing.assert_allclose(done.tissue[2], tissue[2], atol=1e-6)


def test_transmantle_sign_reaches_from_the_cortex_toward_the_ventricle():
    tissue, affine = slab()
    done = implant_in_tissue(
        tissue, affine, LesionSpec("fcd_2b", 8.0, flair=0.2, tail_mm=15), 0, centre=CENTRE
    )
    at = np.argwhere(done.tail > 0.5)
    assert len(at) > 10
    ventricle = np.array([12, -2, 15])
    centre = np.array(CENTRE) + affine[:3, 3]
    along = (at + affine[:3, 3] - centre) @ (ventricle - centre) / np.linalg.norm(ventricle - centre)
    assert along.min() > -1
    assert along.max() < 15 + 4 + 1
    assert (tissue[1][done.tail > 0] > 0).all()


def test_heterotopia_is_grey_matter_in_white():
    tissue, affine = slab()
    centre = (8, 22, 18)
    done = implant_in_tissue(tissue, affine, LesionSpec("heterotopia", 8.0), 0, centre=centre)
    assert done.tissue[0][centre] > 0.9
    volume = (done.tissue[0] - tissue[0]).sum()
    assert 0.4 < volume / (np.pi / 6 * 8**3) < 1.8


def test_hippocampal_sclerosis_loses_grey_matter_to_fluid_on_the_surface():
    tissue, affine = slab()
    spec = LesionSpec("hippocampal_sclerosis", 16.0, loss=0.3)
    done = implant_in_tissue(tissue, affine, spec, 0, centre=CENTRE)
    lost = tissue[0] - done.tissue[0]
    assert lost.min() >= 0
    assert lost.sum() > 50
    np.testing.assert_allclose(lost, done.tissue[2] - tissue[2], atol=1e-6)


@pytest.mark.parametrize("kind", ["sulci", "atrophy", "encephalocele"])
def test_lost_tissue_becomes_fluid(kind):
    tissue, affine = slab()
    done = implant_in_tissue(tissue, affine, LesionSpec(kind, 16.0, loss=0.3), 0, centre=CENTRE)
    lost = tissue[:2] - done.tissue[:2]
    assert lost.min() >= 0
    assert lost.sum() > 50
    np.testing.assert_allclose(lost.sum(0), done.tissue[2] - tissue[2], atol=1e-6)
    assert (lost[1].sum() == 0) == (kind == "sulci")  # which leave the white matter
    twice = implant_in_tissue(tissue, affine, LesionSpec(kind, 16.0, loss=0.3, contrast=2), 0, centre=CENTRE)
    assert twice.tissue[2].sum() > done.tissue[2].sum() + 20


@pytest.mark.parametrize("kind", ["sulci", "atrophy"])
def test_the_share_that_is_lost_is_that_of_the_spec(kind):
    tissue, affine = slab()
    done = implant_in_tissue(tissue, affine, LesionSpec(kind, 16.0, loss=0.2), 0, centre=CENTRE)
    cortex = done.weight * (tissue[0] if kind == "sulci" else tissue[:2].sum(0))
    assert (done.tissue[2] - tissue[2]).sum() / cortex.sum() == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize("kind", ["sulci", "atrophy"])
def test_loss_far_from_fluid_has_a_mask(kind):
    tissue, affine = slab()
    centre = (9 if kind == "atrophy" else 14, 22, 18)
    if kind == "sulci":
        tissue[[0, 1]] = tissue[[1, 0]]  # grey matter all the way down
    done = implant_in_tissue(tissue, affine, LesionSpec(kind, 16.0, loss=0.2), 0, centre=centre)
    assert 0 < done.mask.sum() < 5000
    assert done.weight.max() <= 1


def sulcus():
    """White matter, under 3 mm of cortex that dips 12 mm into it, with 2 mm of fluid in between."""
    x, y, _ = np.indices((40, 44, 36)).astype(float)
    dip = (np.abs(y - 22) < 1) & (x > 14)
    fluid = (x > 26) | dip
    apart = np.minimum(np.where(x > 14, np.abs(y - 22) - 1, np.hypot(x - 14, y - 22)), 26 - x)
    grey = ~fluid & (apart < 3)
    affine = np.eye(4)
    affine[:3, 3] = [10, -20, 20]
    return np.stack([grey, ~fluid & ~grey, fluid]).astype(np.float32), affine


def test_pachygyria_is_thick_cortex_with_a_sulcus_that_closes():
    tissue, affine = sulcus()
    spec = LesionSpec("pachygyria", 18.0, thickening_mm=2.0)
    done = implant_in_tissue(tissue, affine, spec, 0, centre=(18, 22, 18))
    assert done.tissue[2][16, 21:24, 18].sum() < 0.6 * tissue[2][16, 21:24, 18].sum()
    assert tissue[1].sum() - done.tissue[1].sum() > 200
    assert (done.tissue[0] >= tissue[0] - 1e-6).all()


def test_a_cleft_is_fluid_lined_with_cortex_within_white_matter():
    tissue, affine = slab()
    done = implant_in_tissue(tissue, affine, LesionSpec("cleft", 14.0), 0, centre=(8, 22, 18))
    deep = (slice(0, 15), slice(None), slice(None))
    grey, white, fluid = (part[deep] for part in done.tissue)
    assert fluid.sum() > 50
    assert grey.sum() > 2 * fluid.sum()
    by_fluid = ndimage.binary_dilation(fluid > 0.5, iterations=1) & (fluid < 0.5)
    assert grey[by_fluid].mean() > 4 * white[by_fluid].mean()  # the rest is fluid


def test_polymicrogyria_has_a_rough_border_of_thicker_cortex():
    tissue, affine = slab()
    rough = {}
    for kind in ("polymicrogyria", "pachygyria"):
        spec = LesionSpec(kind, 24.0, thickening_mm=1.5)
        done = implant_in_tissue(tissue, affine, spec, 0, centre=CENTRE)
        border = done.tissue[1].sum(0)[17:28, 13:24]  # mm of white matter under the middle of the lesion
        assert tissue[1].sum(0)[0, 0] - border.mean() > 0.7
        rough[kind] = np.abs(np.diff(border, axis=0)).mean()
    assert rough["polymicrogyria"] > 3 * rough["pachygyria"]


@pytest.mark.parametrize(
    "kind", ["sulci", "atrophy", "encephalocele", "pachygyria", "cleft", "polymicrogyria"]
)
def test_loss_and_folds_leave_the_signal_of_each_tissue(kind):
    tissue, affine = slab()
    spec = LesionSpec.draw(np.random.default_rng(0), kind)
    done = implant_in_tissue(tissue, affine, spec, 0, centre=CENTRE)
    for modality in ("T1w", "FLAIR", "T2w"):
        np.testing.assert_array_equal(done.gain(modality, 0.7), 1)


def test_single_signs_of_dysplasia_come_alone():
    tissue, affine = slab()
    done = {}
    for kind in ("band", "blur", "faint_flair"):
        spec = LesionSpec.draw(np.random.default_rng(0), kind)
        done[kind] = implant_in_tissue(tissue, affine, spec, 0, centre=CENTRE)
    for kind in ("band", "faint_flair"):
        np.testing.assert_array_equal(done[kind].tissue, tissue)
    assert np.abs(done["blur"].tissue - tissue).max() > 0.05
    assert (done["blur"].gain("FLAIR", 1.2) == 1).all()
    assert (done["blur"].gain("T1w", 0.7) == 1).all()
    assert (done["faint_flair"].gain("T1w", 0.7) == 1).all()
    assert 1.02 < done["faint_flair"].gain("FLAIR", 1.2).max() < 1.11
    assert done["band"].weight.max() == 0  # the cortex that it starts at is healthy
    assert (done["band"].gain("T1w", 0.7) < 0.97).any()


def test_kinds_that_were_there_before_are_drawn_as_before():
    """Cohorts keep their lesions when kinds are added."""
    expected = {
        ("fcd_1", False): (22.075044, 0.0, 0.957663, 0.028574, 0.033775, 0.0, 2.090550, 0.053413),
        ("fcd_2a", True): (31.100058, 2.615882, 1.612260, 0.174308, 0.105393, 0.0, 3.135826, 0.126339),
        ("fcd_2b", False): (22.075044, 0.903970, 0.957663, 0.057148, 0.033775, 13.833689, 2.090550, 0.053413),
        ("heterotopia", False): (6.997528, 0, 0, 0, 0, 0, 2.090550, 0.053413),
        ("heterotopia", True): (9.997528, 0, 0, 0, 0, 0, 3.135826, 0.126339),
    }
    fields = ("diameter_mm", "thickening_mm", "blur_mm", "flair", "t1", "tail_mm", "tail_width_mm", "pet")
    for (kind, visible), values in expected.items():
        spec = LesionSpec.draw(np.random.default_rng(5), kind, visible)
        assert [getattr(spec, name) for name in fields] == pytest.approx(values, abs=1e-5)
        assert spec.loss == 0


@pytest.mark.parametrize("kind", KINDS)
def test_drawn_lesions_lie_in_tissue_where_their_kind_occurs(kind):
    template = load_template(2)
    tissue = np.stack([template.gm, template.wm, template.csf])
    sides = set()
    for seed in range(6):
        spec = LesionSpec.draw(np.random.default_rng(seed), kind)
        done = implant_in_tissue(tissue, template.affine, spec, seed, brain_mask=template.brain_mask)
        assert done.mask.any()
        assert template.brain_mask[done.mask].mean() > 0.9
        sides.add(done.row()["hemisphere"])
        x, y, z = done.centre_mm
        if kind == "hippocampal_sclerosis":
            assert 18 <= abs(x) <= 36
            assert z < 0
        elif kind == "encephalocele":
            assert np.linalg.norm(np.abs([x, y, z]) - np.abs(lesions.TEMPORAL_POLE)) < 15
        elif kind == "heterotopia":
            assert (
                template.wm[tuple(np.round(np.linalg.inv(template.affine) @ [x, y, z, 1])[:3].astype(int))]
                > 0.8
            )
    assert sides == {"left", "right"}


def test_most_cortical_lesions_are_frontal():
    template = load_template(2)
    tissue = np.stack([template.gm, template.wm, template.csf])
    depth = phantom._atlas()[0][::2, ::2, ::2, 4]
    spec = LesionSpec("fcd_2a", 8.0)
    ys = [
        implant_in_tissue(
            tissue, template.affine, spec, seed, brain_mask=template.brain_mask, depth=depth
        ).centre_mm[1]
        for seed in range(40)
    ]
    assert 0.4 < np.mean(np.array(ys) > -5) < 0.85


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 1000),
    contrast=st.floats(0, 2),
    visible=st.booleans(),
    zoom=st.tuples(*[st.sampled_from([1.0, 1.5, 2.0])] * 3),
)
def test_tissue_stays_a_probability_and_changes_inside_the_weights_alone(kind, seed, contrast, visible, zoom):
    tissue, affine = slab(zoom)
    spec = LesionSpec.draw(np.random.default_rng(seed), kind, visible, contrast)
    done = implant_in_tissue(tissue, affine, spec, seed, centre=CENTRE)
    assert done.tissue.min() >= 0
    np.testing.assert_allclose(done.tissue.sum(0), 1, atol=1e-5)
    touched = np.abs(done.tissue - tissue).max(0) > 1e-6
    assert not (touched & (done.weight == 0) & (done.tail == 0)).any()
    if contrast == 0:
        np.testing.assert_array_equal(done.tissue, tissue)


@pytest.fixture(scope="module")
def scan():
    subject = phantom.subject(phantom.PhantomConfig(), "control004")
    return {"T1w": subject.image[..., 0], "FLAIR": subject.image[..., 1]}, subject


def test_lesions_in_a_subject_are_those_of_its_volumes(scan):
    volumes, control = scan
    wanted = [
        (LesionSpec("fcd_2b", 15.0, flair=0.2, t1=0.2), 7),
        (LesionSpec("fcd_1", 12.0, flair=0.3), [7, 1]),
    ]
    made = list(implant_in_subject(control, ("T1w", "FLAIR"), wanted))
    for patient, (spec, seed) in zip(made, wanted, strict=True):
        changed, mask, _ = implant(volumes, control.brain_mask, control.affine, spec, seed)
        expected = np.stack([changed["T1w"], changed["FLAIR"]], -1).clip(0, 1)  # the phantom's own range
        np.testing.assert_array_equal(patient.image, expected)
        np.testing.assert_array_equal(patient.lesion_mask, mask)
        assert (patient.subject, patient.group, patient.image.dtype) == (
            control.subject,
            "patient",
            np.float32,
        )
    assert not np.array_equal(made[0].lesion_mask, made[1].lesion_mask)


def test_a_lesion_in_raw_intensities_leaves_the_rest_of_the_image(scan):
    raw = replace(scan[1], image=1000 * scan[1].image)
    (patient,) = implant_in_subject(raw, ("T1w", "FLAIR"), [(LesionSpec("fcd_2a", 15.0, flair=0.2), 3)])
    changed = (patient.image != raw.image).any(-1)
    assert 0 < changed.sum() < 5000
    assert patient.image.max() == raw.image.max()


@pytest.mark.parametrize("modalities", [("T1w",), ("FLAIR",), ("T1w", "FLAIR")])
def test_implant_changes_a_volume_inside_its_mask_and_keeps_the_texture(scan, modalities):
    volumes = {name: scan[0][name] for name in modalities}
    spec = LesionSpec("fcd_2a", 20.0, thickening_mm=2, blur_mm=1.5, flair=0.25, t1=0.2)
    changed, mask, done = implant(volumes, scan[1].brain_mask, scan[1].affine, spec, 3)
    assert mask.any()
    for name in modalities:
        change = changed[name] - volumes[name]
        np.testing.assert_array_equal(change[(done.weight == 0) & (done.tail == 0)], 0)
        assert np.abs(change[mask]).mean() > 0.02
    if "FLAIR" in modalities:
        assert (changed["FLAIR"] - volumes["FLAIR"])[mask].mean() > 0.05


def test_implant_at_contrast_0_gives_the_volume_back(scan):
    spec = LesionSpec("fcd_2b", 20.0, 2, 1.5, 0.3, 0.2, 15, contrast=0)
    changed, mask, _ = implant(scan[0], scan[1].brain_mask, scan[1].affine, spec, 3)
    assert mask.any()
    for name, volume in scan[0].items():
        np.testing.assert_array_equal(changed[name], volume)


def test_bad_input_is_named(scan):
    volumes, subject = scan
    with pytest.raises(InputError, match="one shape"):
        implant({"T1w": volumes["T1w"][:-1]}, subject.brain_mask, subject.affine, LesionSpec())
    with pytest.raises(InputError, match="no volume"):
        implant({}, subject.brain_mask, subject.affine, LesionSpec())
    with pytest.raises(InputError, match="mask is empty"):
        implant(volumes, np.zeros_like(subject.brain_mask), subject.affine, LesionSpec())
    with pytest.raises(InputError, match="unknown lesion kind"):
        LesionSpec("glioma")
    with pytest.raises(InputError, match="positive size"):
        LesionSpec(diameter_mm=0)


def test_a_data_set_of_controls_gets_patients(tmp_path):
    config = phantom.PhantomConfig(
        n_train=2, n_validation_controls=0, n_validation_patients=0, n_test_controls=2, n_test_patients=0
    )
    controls = phantom.write_bids(config, tmp_path / "controls", progress=False)
    with pytest.raises(InputError, match="control001 is no control outside the train split"):
        lesions.implant_in_dataset(controls, tmp_path / "none", subjects=["control001"], progress=False)
    out = lesions.implant_in_dataset(controls, tmp_path / "out", visible=True, progress=False)
    (before, _), (after, problems) = bids.template_subjects(controls), bids.template_subjects(out)
    assert problems == bids.voxel_problems(after) == []
    assert {one.subject: one.participant.group for one in after} == {
        "control001": "control",
        "control002": "control",
        "control003": "patient",
        "control004": "control",
    }
    for old, new in zip(before, after, strict=True):
        assert old.participant.split == new.participant.split
        was, now = (bids.read_subject(one, ("T1w", "FLAIR")) for one in (old, new))
        assert np.array_equal(was.image, now.image) == (new.subject != "control003")
        assert now.lesion_mask.any() == (new.subject == "control003")
    with (out / "lesions.tsv").open() as file:
        (row,) = csv.DictReader(file, delimiter="\t")
    assert row["participant_id"] == "sub-control003"
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}
    lesions.implant_in_dataset(controls, out, visible=True, progress=False)
    assert stamps == {path: path.stat().st_mtime_ns for path in out.rglob("*.nii.gz")}


@pytest.fixture
def cohort(tmp_path, monkeypatch):
    """A small derivative, and lesions that are a bright corner: h1 and v1 get one."""

    def corner(volumes, mask, affine, spec, seed):
        spot = mask & (np.indices(mask.shape).sum(0) < 12)
        changed = {name: np.where(spot, volume + 1, volume) for name, volume in volumes.items()}
        tissue = np.zeros((3, *mask.shape), np.float32)
        return changed, spot, lesions.Implant(tissue, (slice(3),) * 3, spot, spot, (1.0, 2.0, 3.0), spec)

    monkeypatch.setattr(lesions, "implant", corner)
    return write_cohort(tmp_path / "controls")


def implanted(cohort, out):
    lesions.implant_in_dataset(cohort, out, progress=False)
    return {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_one_failing_subject_is_named_and_the_others_get_their_lesions(cohort, tmp_path, monkeypatch):
    corner, out = lesions.implant, tmp_path / "out"
    expected = implanted(cohort, tmp_path / "expected")

    def failing(volumes, mask, affine, spec, seed):
        if seed[1] == zlib.crc32(b"h1"):
            raise IndexError("list index out of range")
        return corner(volumes, mask, affine, spec, seed)

    monkeypatch.setattr(lesions, "implant", failing)
    with pytest.raises(InputError) as caught:
        implanted(cohort, out)
    assert caught.value.problems == [
        "sub-h1: IndexError: list index out of range",
        "1 of 11 subjects failed; the others are kept.",
    ]
    assert list(out.glob("sub-v1/anat/*lesion_mask.json"))
    assert not (out / "participants.tsv").exists()  # not whole yet
    monkeypatch.setattr(lesions, "implant", corner)
    assert implanted(cohort, out) == expected


def test_halves_of_a_killed_process_are_cleared_and_tables_that_were_edited_stay(cohort, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / ".partial-1-dataset_description.json").write_text("{")  # killed at its first file
    before = implanted(cohort, out)
    (out / "sub-h1" / "anat" / ".partial-2-x.nii.gz").write_bytes(b"half")
    (out / ".bidsignore").unlink()  # killed before it
    assert implanted(cohort, out) == before
    (out / "participants.tsv").write_text("participant_id\tgroup\nmine\tcontrol\n")
    implanted(cohort, out)
    assert (out / "participants.tsv").read_text() == "participant_id\tgroup\nmine\tcontrol\n"


def test_a_folder_that_cannot_take_the_lesions_is_named(cohort, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match=r"cannot be written to \(Not a directory\)"):
            implanted(cohort, out)
    broken = tmp_path / "broken"
    for content, word in (("{", "not JSON"), ("[]", "other making"), ('{"GeneratedBy": []}', "other making")):
        broken.mkdir(exist_ok=True)
        (broken / "dataset_description.json").write_text(content)
        with pytest.raises(InputError, match=word):
            implanted(cohort, broken)
        assert [path.name for path in broken.iterdir()] == ["dataset_description.json"]


def test_two_processes_do_not_implant_into_one_folder(cohort, tmp_path):
    out = tmp_path / "out"
    code = (
        "import sys; from tfds_epilepsy.files import hold; h = hold(sys.argv[1]); print(); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code, str(out)], **pipes) as other:
        other.stdout.readline()
        with pytest.raises(InputError, match="another process is at work there"):
            implanted(cohort, out)
        other.communicate("")
    assert implanted(cohort, out)


def test_controls_of_another_column_word_and_space_get_lesions(cohort, tmp_path):
    table = (cohort / "participants.tsv").read_text().replace("control", "typ").replace("group", "arm")
    (cohort / "participants.tsv").write_text(table)
    (image,) = (cohort / "sub-h1" / "anat").glob("*_T1w.nii.gz")
    shutil.copy(image, image.with_name("sub-h1_space-other_T1w.nii.gz"))
    with pytest.raises(InputError, match="--space"):
        lesions.implant_in_dataset(cohort, tmp_path / "out", progress=False)
    told = {"space": SPACE, "group_column": "arm", "groups": {"typ": "control"}}
    out = lesions.implant_in_dataset(cohort, tmp_path / "out", modalities=["T1w"], progress=False, **told)
    after, problems = bids.template_subjects(out)
    assert problems == []
    assert {one.subject: one.participant.group for one in after}["h1"] == "patient"
    assert {path.name.split("_")[1] for path in out.rglob("*_T1w.nii.gz")} == {f"space-{SPACE}"}
    assert not list(out.rglob("*FLAIR*"))
