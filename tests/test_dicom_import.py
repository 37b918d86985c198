import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from tests.dicom_files import (
    FLAIR,
    PET,
    SECRETS,
    SHAPE,
    SPACING,
    T1W,
    asymmetric,
    sagittal,
    write_series,
)
from tests.test_cli import run_main
from tfds_epilepsy import bids
from tfds_epilepsy.dicom import choose, import_dicom, importing, read_series
from tfds_epilepsy.errors import InputError


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Settings of an account of its own."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))


def bright_place(image, threshold=800):
    """World coordinates of the middle of the brightest block."""
    return nib.affines.apply_affine(image.affine, np.argwhere(image.get_fdata() > threshold)).mean(axis=0)


def imported(folder, out, **options):
    result = import_dicom(folder, out, **options)
    return {path.name.split("_")[-1].split(".")[0]: nib.load(path) for path in result.files}


def equal_in_place(image, volume, affine):
    """Whether an image shows the same values at the same places of the world, whatever its axes are."""
    there = nib.affines.apply_affine(np.linalg.inv(image.affine) @ affine, np.argwhere(volume >= 0))
    assert np.abs(there - np.rint(there)).max() < 0.01
    np.testing.assert_array_equal(image.get_fdata()[tuple(np.rint(there).astype(int).T)], volume.ravel())


# === Voxels and their place ===


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_every_voxel_keeps_its_value_and_its_place_in_the_world(tmp_path, enhanced):
    volume, affine = write_series(tmp_path / "in", enhanced=enhanced)
    image = imported(tmp_path / "in", tmp_path / "bids")["T1w"]
    equal_in_place(image, volume, affine)


def test_slices_in_another_order_make_the_same_volume(tmp_path):
    order = np.random.default_rng(0).permutation(SHAPE[2])
    for name, given in (("a", None), ("b", order)):
        volume, affine = write_series(tmp_path / name, order=given)
    image = imported(tmp_path / "b", tmp_path / "bids")["T1w"]
    equal_in_place(image, volume, affine)


@pytest.mark.parametrize(
    "syntax",
    [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, RLELossless],
    ids=lambda syntax: syntax.keyword,
)
def test_compressed_transfer_syntaxes_lose_nothing(tmp_path, syntax):
    volume, affine = write_series(tmp_path / "in", asymmetric((48, 40, 18)), syntax=syntax)
    image = imported(tmp_path / "in", tmp_path / "bids")["T1w"]
    equal_in_place(image, volume, affine)


@pytest.mark.parametrize("enhanced", [False, True], ids=["classic", "enhanced"])
def test_a_tilted_gantry_is_set_upright_and_the_bright_block_stays_where_it_was(tmp_path, enhanced):
    affine = sagittal()
    affine[:3, 2] += 0.4 * affine[:3, 1]  # each slice 0.6 mm further along its columns: 17 degrees
    volume, _ = write_series(tmp_path / "in", affine=affine, enhanced=enhanced)
    image = imported(tmp_path / "in", tmp_path / "bids")["T1w"]
    axes = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    truth = nib.affines.apply_affine(affine, np.argwhere(volume > 800)).mean(axis=0)
    np.testing.assert_allclose(bright_place(image, 600), truth, atol=0.5)
    assert bids.raw_subjects(tmp_path / "bids")


def test_a_converter_that_mirrors_left_and_right_is_found_out(tmp_path, monkeypatch):
    write_series(tmp_path / "in")
    honest = nib.load

    def mirrored(path):
        image = honest(path)
        return nib.Nifti1Image(image.dataobj, np.diag([-1.0, 1, 1, 1]) @ image.affine)

    monkeypatch.setattr(importing.nib, "load", mirrored)
    with pytest.raises(InputError, match="mm away from where its headers"):
        import_dicom(tmp_path / "in", tmp_path / "bids")


# === What is taken ===


def test_t1w_flair_and_pet_are_found_among_the_series_of_an_examination(tmp_path):
    folder = tmp_path / "in"
    write_series(folder, number=1, SeriesDescription="localizer", EchoTime=5.0, leave_out=range(3, 22))
    write_series(folder, number=2)
    write_series(folder, number=3, **FLAIR)
    write_series(
        folder, number=4, **T1W | {"SeriesDescription": "t1_mprage post", "ContrastBolusAgent": "Gd"}
    )
    write_series(
        folder, number=5, **T1W | {"SeriesDescription": "t1 mpr tra", "ImageType": ["DERIVED", "PRIMARY"]}
    )
    write_series(folder, number=6, **FLAIR | {"SeriesDescription": "t2_tirm_tra", "MRAcquisitionType": "2D"})
    write_series(folder, number=7, **FLAIR | {"SeriesDescription": "t2_spc", "InversionTime": None})
    write_series(folder, number=8, **PET)
    write_series(folder, number=9, **PET | {"SeriesDescription": "PET NAC", "CorrectedImage": ["DECY"]})
    write_series(folder, number=10, Modality="CT", SeriesDescription="CT head", EchoTime=None)
    choices = choose(read_series(folder)[0])
    assert {c.series.number: c.kind for c in choices if c.kind != "none"} == {2: "T1w", 3: "FLAIR", 8: "pet"}
    why = {c.series.number: c.why for c in choices}
    for number, words in ((1, "localiser"), (4, "contrast-enhanced"), (5, "derived"), (6, "not 3-D")):
        assert words in why[number]
    for number, words in ((7, "neither"), (9, "attenuation"), (10, "CT: neither MR nor PET")):
        assert words in why[number]


def test_two_series_of_one_number_stay_two_and_the_finer_one_is_taken(tmp_path):
    coarse = sagittal((1.0, 1.5, 3.0))
    write_series(tmp_path / "in", number=2, series="a")
    write_series(tmp_path / "other", affine=coarse, number=2, series="b")
    for path in (tmp_path / "other").iterdir():
        path.rename(tmp_path / "in" / f"again_{path.name}")
    series, _ = read_series(tmp_path / "in")
    assert [len(one.files) for one in series] == [SHAPE[2]] * 2
    taken = next(choice for choice in choose(series) if choice.kind == "T1w")
    assert taken.series.voxel == pytest.approx(SPACING)
    assert {choice.why for choice in choose(series) if choice.kind == "none"} == {
        f"a T1w too; series {taken.series.number} is taken"
    }


def test_of_two_equal_scans_the_last_is_taken_and_either_can_be_named(tmp_path):
    write_series(tmp_path / "in", number=2)
    write_series(tmp_path / "in", number=5)
    series, _ = read_series(tmp_path / "in")
    assert [c.kind for c in choose(series)] == ["none", "T1w"]
    assert [c.kind for c in choose(series, {1: "t1w"})] == ["T1w", "none"]
    result = import_dicom(tmp_path / "in", tmp_path / "bids", overrides={1: "T1w", 2: "T1w"})
    assert [path.name.split("_", 1)[1] for path in result.files] == ["run-1_T1w.nii.gz", "run-2_T1w.nii.gz"]


def test_flair_is_of_the_t1ws_day(tmp_path):
    write_series(tmp_path / "in", number=2)
    write_series(tmp_path / "in", number=3, **FLAIR, StudyInstanceUID=generate_uid(), StudyDate="20250101")
    choices = choose(read_series(tmp_path / "in")[0])
    assert [c.kind for c in choices] == ["T1w", "none"]
    assert choices[1].why == "a FLAIR of another study than the T1w"


# === Nothing names the patient ===


def test_no_file_name_sidecar_header_or_table_names_the_patient(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "in"
    write_series(folder, **T1W | {"SeriesDescription": "t1 mprage doe", "ProtocolName": "HOSP4711 t1 mprage"})
    write_series(folder, number=3, **FLAIR)
    write_series(folder, number=4, **PET)
    (folder / "Doe_Jane.txt").write_text("Doe^Jane")
    monkeypatch.setenv("COLUMNS", "300")
    assert run_main(monkeypatch, "import", str(folder), str(tmp_path / "bids")) == 0
    shown = capsys.readouterr()
    texts = [shown.out, shown.err]
    for path in (tmp_path / "bids").rglob("*"):
        texts.append(path.name)
        if path.is_file():
            content = path.read_bytes()
            texts.append(content[:200].decode("latin-1"))  # a gzip's own header too
            if path.name.endswith(".gz"):
                content = nib.load(path).header.binaryblock
            texts.append(content.decode("latin-1"))
    assert "t1 mprage ***" in shown.out
    for secret in SECRETS:
        assert not [text for text in texts if secret.lower() in text.lower()], secret


def test_a_sidecar_says_how_the_image_was_made(tmp_path):
    write_series(tmp_path / "in")
    path = import_dicom(tmp_path / "in", tmp_path / "bids").files[0]
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert (sidecar["EchoTime"], sidecar["FlipAngle"], sidecar["MagneticFieldStrength"]) == (0.0023, 9, 3)
    assert not {"InstitutionName", "AcquisitionTime", "SeriesDescription", "ImageComments"} & set(sidecar)


def test_a_patient_keeps_the_pseudonym_and_another_key_makes_another(tmp_path):
    write_series(tmp_path / "in")
    labels = [import_dicom(tmp_path / "in", tmp_path / out).subject for out in "ab"]
    assert labels[0] == labels[1]
    assert import_dicom(tmp_path / "in", tmp_path / "c", key=tmp_path / "key").subject != labels[0]
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0


def test_the_subject_is_read_as_any_raw_scan_is(tmp_path):
    write_series(tmp_path / "in")
    write_series(tmp_path / "in", 2 * asymmetric(), number=3, **FLAIR)
    import_dicom(tmp_path / "in", tmp_path / "bids", participant_label="p1")
    (subject,) = bids.raw_subjects(tmp_path / "bids")
    assert (subject.subject, set(subject.images)) == ("p1", {"T1w", "FLAIR"})
    who = subject.participant
    assert (who.group, who.age, who.sex) == ("patient", 41, "f")
    description = json.loads((tmp_path / "bids" / "dataset_description.json").read_text())
    assert description["DatasetType"] == "raw"


def test_sessions_are_added_and_scans_that_are_there_stay(tmp_path):
    write_series(tmp_path / "in")
    out = tmp_path / "bids"
    import_dicom(tmp_path / "in", out, participant_label="p1", session="1")
    import_dicom(tmp_path / "in", out, participant_label="p1", session="ses-2")
    assert sorted(p.name for p in (out / "sub-p1").iterdir()) == ["ses-1", "ses-2"]
    with pytest.raises(InputError, match="is there already"):
        import_dicom(tmp_path / "in", out, participant_label="p1", session="1")
    import_dicom(tmp_path / "in", out, participant_label="p1", session="1", overwrite=True)


# === Bad input: a sentence, exit 2, nothing written, nobody named ===


def another_modality(folder):
    write_series(folder, Modality="CT", SeriesDescription="CT Doe", EchoTime=None)


def two_patients(folder):
    write_series(folder)
    write_series(folder / "b", number=3, PatientID="OTHER1", PatientName="Roe^Jim")


def localisers_only(folder):
    write_series(folder, SeriesDescription="localizer doe", EchoTime=5.0)


def no_pixels(folder):
    write_series(folder, without=["PixelData"])


def no_geometry(folder):
    write_series(folder, without=["ImagePositionPatient"])


def flat_geometry(folder):
    write_series(folder, ImageType=["ORIGINAL", "PRIMARY"], affine=sagittal() * np.array([[1, 1, 0, 1]] * 4))


def slices_missing(folder):
    write_series(folder, leave_out=[7, 8])


def two_echoes(folder):
    write_series(folder)
    write_series(folder / "b", **T1W | {"EchoTime": 4.6}, SeriesInstanceUID=read_uid(folder))


def read_uid(folder):
    import pydicom

    return pydicom.dcmread(next(folder.glob("*.dcm"))).SeriesInstanceUID


def no_t1w(folder):
    write_series(folder, **FLAIR)


def no_dicom(folder):
    folder.mkdir()
    (folder / "Doe.txt").write_text("Doe")


def damaged(folder):
    write_series(folder)
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (another_modality, "CT: neither MR nor PET"),
        (two_patients, "files of 2 patients"),
        (localisers_only, "a localiser"),
        (no_pixels, "has no pixel data"),
        (no_geometry, "geometry is missing"),
        (flat_geometry, "more than one volume"),
        (slices_missing, "lacks slices: 2 of 22"),
        (two_echoes, "holds more than one volume"),
        (no_t1w, "no T1w"),
        (no_dicom, "none of its 1 files is a DICOM image"),
        (damaged, "is a DICOM image"),
    ],
)
def test_what_cannot_be_imported_is_told_in_a_sentence_that_names_nobody(
    tmp_path, monkeypatch, capsys, spoil, words
):
    spoil(tmp_path / "in")
    assert run_main(monkeypatch, "import", str(tmp_path / "in"), str(tmp_path / "bids")) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert "Traceback" not in shown.err
    assert not (tmp_path / "bids").exists()
    for secret in (*SECRETS, "Roe", "OTHER1"):
        assert secret.lower() not in (shown.out + shown.err).lower()


def test_series_that_are_truncated_leave_nothing_behind(tmp_path):
    write_series(tmp_path / "in", number=2)
    write_series(tmp_path / "in", number=3, **FLAIR)
    for path in sorted((tmp_path / "in").glob("*_003_*")):
        path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(InputError, match="series 2"):
        import_dicom(tmp_path / "in", tmp_path / "bids")
    assert not list((tmp_path / "bids").rglob("*.nii.gz"))
    assert not (tmp_path / "bids" / "participants.tsv").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overrides": {7: "T1w"}}, "there are series 1 to 1"),
        ({"overrides": {1: "T9w"}}, "choose one of T1w, FLAIR, pet, none"),
        ({"participant_label": "a_b"}, "letters and digits alone"),
        ({"participant_label": "janedoe"}, "no pseudonym"),
        ({"group": "alien"}, "patient or control"),
        ({"key": "KEY"}, "lies in the data set"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, options, words):
    write_series(tmp_path / "in")
    if "key" in options:
        options = {"key": tmp_path / "bids" / "key"}
    with pytest.raises(InputError, match=words):
        import_dicom(tmp_path / "in", tmp_path / "bids", **options)
    assert not (tmp_path / "bids").exists()


def test_without_pydicom_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"epizoo\[dicom\]"):
        import_dicom(tmp_path, tmp_path / "bids")


def test_look_writes_nothing(tmp_path, monkeypatch, capsys):
    write_series(tmp_path / "in")
    assert run_main(monkeypatch, "import", str(tmp_path / "in"), str(tmp_path / "bids"), "--look") == 0
    assert "Nothing was written" in capsys.readouterr().out
    assert not (tmp_path / "bids").exists()
    shutil.rmtree(tmp_path / "in")
    assert run_main(monkeypatch, "import", str(tmp_path / "in"), str(tmp_path / "bids"), "--look") == 2
    assert "--take '3'" not in capsys.readouterr().err
