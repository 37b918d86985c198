"""DICOM as scanners write it: series of an MR or PET, classic or enhanced, with a patient's name in them."""

from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    PositronEmissionTomographyImageStorage,
    generate_uid,
)

SPACING = (1.0, 1.5, 2.0)
SHAPE = (24, 20, 22)
# Everything here that tells who the patient is: none of it may come out.
NAME, PATIENT, BORN, INSTITUTION = "Doe^Jane", "HOSP4711", "19830412", "Saint Elsewhere"
SECRETS = ("Doe", "Jane", PATIENT, BORN, INSTITUTION, "Dr Who", "ACC99", "20240518", "093021", "PRIVATE42")
T1W = {"SeriesDescription": "t1_mprage_sag", "MRAcquisitionType": "3D"}
T1W |= {"EchoTime": 2.3, "RepetitionTime": 2300.0, "InversionTime": 900.0, "FlipAngle": 9.0}
FLAIR = {"SeriesDescription": "t2_spc_da-fl_sag", "MRAcquisitionType": "3D"}
FLAIR |= {"EchoTime": 388.0, "RepetitionTime": 5000.0, "InversionTime": 1800.0, "FlipAngle": 120.0}
PET = {
    "Modality": "PT",
    "SeriesDescription": "PET Brain FDG",
    "Units": "BQML",
    "CorrectedImage": ["ATTN", "DECY"],
}
STORAGE = {"MR": MRImageStorage, "PT": PositronEmissionTomographyImageStorage, "CT": CTImageStorage}
STUDY = generate_uid(entropy_srcs=["study"])


def asymmetric(shape=SHAPE):
    """A volume of which no two ends of an axis look alike; its brightest block lies far along each."""
    volume = np.full(shape, 60.0)
    volume += 40 * np.indices(shape)[0] / shape[0]
    volume[-8:-3, -9:-4, -6:-2] = 900  # far along every axis
    volume[2:5, 3:6, 2:12] = 400
    volume[0] = volume[-1] = 0
    return volume.astype(np.uint16)


def sagittal(spacing=SPACING):
    """RAS affine of a sagittal scan from right to left, turned by ten degrees."""
    a = np.deg2rad(10)
    axes = np.array([[0.0, 0, -1], [-1, 0, 0], [0, -1, 0]])  # i runs to posterior, j down, k to the left
    turn = np.array([[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes * np.array(spacing)
    affine[:3, 3] = (30.0, 40, 20)
    return affine


def write_series(
    folder,
    volume=None,
    affine=None,
    *,
    number=2,
    series="",
    syntax=ExplicitVRLittleEndian,
    order=None,
    leave_out=(),
    enhanced=False,
    without=(),
    **tags,
):
    """Write a series.

    Args:
        folder: made where it is absent.
        volume, affine: voxels, and RAS affine as in a NIfTI; ``asymmetric`` and ``sagittal`` if left out.
        number: of the series.
        series: makes its UID.
        syntax: transfer syntax.
        order: of the slices in file names and instance numbers.
        leave_out: slices that are not written.
        enhanced: one multi-frame file.
        without: keywords of tags to remove from each file.
        **tags: keywords and values; those of ``T1W`` if nothing is said.

    Returns:
        The volume and its affine.
    """
    volume = asymmetric() if volume is None else np.asarray(volume, np.uint16)
    affine = sagittal() if affine is None else affine
    folder.mkdir(parents=True, exist_ok=True)
    tags = {**(T1W if "Modality" not in tags and "EchoTime" not in tags else {}), **tags}
    lps = np.diag([-1.0, -1, 1, 1]) @ affine
    slices = [k for k in (order if order is not None else range(volume.shape[2])) if k not in leave_out]
    if enhanced:
        data = _header(tags, number, series, EnhancedMRImageStorage)
        _enhance(data, volume, lps, slices)
        _save(data, folder / "Doe_Jane.dcm", syntax, without)
        return volume, affine
    for instance, k in enumerate(slices, 1):
        data = _header(tags, number, series, STORAGE[tags.get("Modality", "MR")])
        data.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(number), str(k), str(tags)])
        data.InstanceNumber = instance
        data.ImageOrientationPatient = [*_unit(lps[:3, 0]), *_unit(lps[:3, 1])]
        data.ImagePositionPatient = [round(float(x), 6) for x in lps[:3, 3] + k * lps[:3, 2]]
        data.PixelSpacing = [round(float(np.linalg.norm(lps[:3, axis])), 6) for axis in (1, 0)]
        data.SliceThickness = round(float(np.linalg.norm(lps[:3, 2])), 6)
        data.SliceLocation = float(k)
        _pixels(data, volume[:, :, k].T)
        _save(data, folder / f"Doe_Jane_{number:03}_{instance:04}.dcm", syntax, without)
    return volume, affine


def _unit(vector):
    return [round(float(x), 9) for x in vector / np.linalg.norm(vector)]


def _header(tags, number, series, storage):
    data = Dataset()
    data.SOPClassUID = storage
    data.SOPInstanceUID = generate_uid(entropy_srcs=[series, str(number), str(tags)])
    data.Modality = "MR"
    data.PatientName, data.PatientID, data.PatientBirthDate = NAME, PATIENT, BORN
    data.PatientSex, data.PatientAge, data.PatientWeight = "F", "041Y", 61.0
    data.StudyDate = data.SeriesDate = data.AcquisitionDate = data.ContentDate = "20240518"
    data.StudyTime = data.SeriesTime = data.AcquisitionTime = data.ContentTime = "093021"
    data.AccessionNumber, data.ReferringPhysicianName = "ACC99", "Dr Who"
    data.InstitutionName, data.StationName = INSTITUTION, "MR1"
    data.Manufacturer, data.ManufacturerModelName, data.MagneticFieldStrength = "SIEMENS", "Prisma", 3.0
    data.StudyInstanceUID, data.FrameOfReferenceUID = STUDY, generate_uid(entropy_srcs=["frame"])
    data.SeriesInstanceUID = generate_uid(entropy_srcs=["series", series, str(number), str(tags)])
    data.SeriesNumber, data.StudyID, data.PositionReferenceIndicator = number, "S1", ""
    data.PatientPosition = "HFS"
    data.ImageComments = f"{NAME} called"
    data.ScanningSequence, data.SequenceVariant = ["GR", "IR"], ["SP", "MP"]
    data.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "NORM"]
    block = data.private_block(0x0029, "ELSEWHERE", create=True)
    block.add_new(0x01, "LO", "PRIVATE42 Doe")
    for keyword, value in tags.items():
        setattr(data, keyword, value)
    return data


def _pixels(data, frames):
    data.Rows, data.Columns = frames.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = np.ascontiguousarray(frames, np.uint16).tobytes()


def _enhance(data, volume, lps, slices):
    """Frames in one file, their places in functional groups."""
    data.NumberOfFrames = len(slices)
    _pixels(data, np.stack([volume[:, :, k].T for k in slices]))
    data.InstanceNumber = 1
    timing = Dataset()
    timing.RepetitionTime, timing.FlipAngle = data.RepetitionTime, data.FlipAngle
    echo, orientation, measures, shared, modifier = (Dataset() for _ in range(5))
    echo.EffectiveEchoTime = data.EchoTime
    modifier.InversionTimes, modifier.InversionRecovery = [data.InversionTime], "YES"
    orientation.ImageOrientationPatient = [*_unit(lps[:3, 0]), *_unit(lps[:3, 1])]
    measures.PixelSpacing = [round(float(np.linalg.norm(lps[:3, axis])), 6) for axis in (1, 0)]
    measures.SliceThickness = round(float(np.linalg.norm(lps[:3, 2])), 6)
    shared.MRTimingAndRelatedParametersSequence = Sequence([timing])
    shared.MREchoSequence = Sequence([echo])
    shared.MRModifierSequence = Sequence([modifier])
    shared.PlaneOrientationSequence = Sequence([orientation])
    shared.PixelMeasuresSequence = Sequence([measures])
    data.SharedFunctionalGroupsSequence = Sequence([shared])
    for keyword in ("RepetitionTime", "FlipAngle", "EchoTime", "InversionTime"):
        delattr(data, keyword)
    frames = []
    for number, k in enumerate(slices, 1):
        frame, position, content = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [round(float(x), 6) for x in lps[:3, 3] + k * lps[:3, 2]]
        content.StackID, content.InStackPositionNumber = "1", k + 1
        content.DimensionIndexValues = [1, k + 1]
        content.FrameAcquisitionNumber = number
        frame.PlanePositionSequence = Sequence([position])
        frame.FrameContentSequence = Sequence([content])
        frames.append(frame)
    data.PerFrameFunctionalGroupsSequence = Sequence(frames)


def _save(data, path: Path, syntax, without):
    for keyword in without:
        delattr(data, keyword)
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax.is_compressed and not syntax.is_deflated:
        data.compress(syntax, generate_instance_uid=False)
    else:
        data.file_meta.TransferSyntaxUID = syntax
    data.save_as(path, enforce_file_format=True)
