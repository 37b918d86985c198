"""OpenNeuro ds004199 from a server on this machine: download, choice of scans, derivative, records."""

import gzip
import hashlib
import http.server
import threading
import urllib.parse

import nibabel as nib
import numpy as np
import pytest

import tfds_epilepsy
from tfds_epilepsy import bids, bonn, openneuro, preprocessing
from tfds_epilepsy.bonn import BonnConfig
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.openneuro import RemoteFile, fetch, list_files
from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder, EpilepsyConfig
from tfds_epilepsy.volumes import TEMPLATE_SPACE, normalise, read_nifti, write_nifti

PEOPLE = """\
participant_id\tgroup\tsex\tage_scan\themisphere\tsplit
sub-00001\tfcd\tM\t6\tleft\ttrain
sub-00002\tfcd\tF\t8\tright\ttest
sub-00003\thc\tF\t5\tn/a\ttrain
sub-00004\thc\tM\tn/a\tn/a\ttrain
sub-00005\thc\tM\t7\tn/a\ttrain
sub-00006\tfcd\tF\t9\tleft\ttest
"""
SCANS = {
    "00001": ("acq-iso08_T1w", "acq-T2sel_FLAIR", "acq-T2sel_FLAIR_roi"),
    "00002": ("acq-iso08_T1w", "acq-T2sel_FLAIR", "acq-tse3dvfl_FLAIR", "acq-tse3dvfl_FLAIR_roi"),
    "00003": ("acq-iso08_T1w", "acq-T2sel_FLAIR"),
    "00004": ("acq-iso08_T1w", "acq-T2sel_FLAIR"),
    "00005": ("acq-anat_T1w", "acq-iso08_T1w", "acq-T2sel_FLAIR"),
    "00006": ("acq-iso08_T1w",),
}


class Bucket(http.server.BaseHTTPRequestHandler):
    """As much of S3 as a download sees: listings in pages, ETags, ranges; and its accidents, on request."""

    files: dict[str, bytes]
    multipart: set[str]
    breaks_after: dict[str, int]  # bytes of a file until the connection breaks, each time
    damaged: set[str]
    requests: list[tuple[str, str | None]]

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        bucket, _, key = url.path.removeprefix("/").partition("/")
        self.requests.append((key, self.headers.get("Range")))
        if bucket != "openneuro.org":
            return self.send_error(404)
        return self.send_object(key) if key else self.send_listing(urllib.parse.parse_qs(url.query))

    def etag(self, key):
        return hashlib.md5(self.files[key]).hexdigest() + ("-2" if key in self.multipart else "")

    def send_listing(self, query):
        assert query["list-type"] == ["2"]
        keys = sorted(key for key in self.files if key.startswith(query["prefix"][0]))
        start = int(query.get("continuation-token", ["0"])[0])
        rows = "".join(
            f"<Contents><Key>{key}</Key><ETag>&quot;{self.etag(key)}&quot;</ETag>"
            f"<Size>{len(self.files[key])}</Size></Contents>"
            for key in keys[start : start + 5]
        )
        more = f"<NextContinuationToken>{start + 5}</NextContinuationToken>" if start + 5 < len(keys) else ""
        space = "http://s3.amazonaws.com/doc/2006-03-01/"
        self.answer(200, f'<ListBucketResult xmlns="{space}">{rows}{more}</ListBucketResult>'.encode())

    def send_object(self, key):
        if key not in self.files:
            return self.send_error(404)
        content = self.files[key]
        if key in self.damaged:
            content = bytes(reversed(content))
        wanted, status = self.headers.get("Range"), 200
        if wanted and self.headers.get("If-Range") == f'"{self.etag(key)}"':
            content, status = content[int(wanted.removeprefix("bytes=").removesuffix("-")) :], 206
        return self.answer(status, content, self.breaks_after.get(key))

    def answer(self, status, content, stop=None):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A replica of the data set, served on loopback; the handler's class, with the server's address."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openneuro, "PAUSE", 0.01)
    files = {
        "ds004199/participants.tsv": b"\xef\xbb\xbf" + PEOPLE.encode(),
        "ds004199/dataset_description.json": b'{"Name": "replica", "BIDSVersion": "1.7.0"}',
        "ds004199/derivatives/large.bin": b"x" * 1000,
        "ds0041990/README": b"another data set",
    }
    for number, (label, names) in enumerate(SCANS.items()):
        rng = np.random.default_rng(number)
        for name in names:
            shape = (12, 12, 5) if "tse3dvfl" in name else (10, 11, 12)
            values = rng.integers(0, 2, shape) if name.endswith("roi") else rng.uniform(50, 900, shape)
            path = write_nifti(tmp_path / "made.nii.gz", values, np.diag([2.0, 2, 2, 1]))
            files[f"ds004199/sub-{label}/anat/sub-{label}_{name}.nii.gz"] = path.read_bytes()
        files[f"ds004199/sub-{label}/anat/sub-{label}_{names[0]}.json"] = b"{}"
    made = type(
        "Made",
        (Bucket,),
        {"files": files, "multipart": set(), "breaks_after": {}, "damaged": set(), "requests": []},
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    made.address = f"http://127.0.0.1:{server.server_port}/openneuro.org"
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def quick(monkeypatch):
    """In place of registration: the scans cut to one grid. The subjects that were worked on."""
    pytest.importorskip("ants", reason="antspyx (the preprocessing extra) is not installed")
    done = []

    def work(raw, anat, options):
        done.append(raw.subject)
        stem = anat / f"sub-{raw.subject}_space-{TEMPLATE_SPACE}_res-{options.voxel_size}"
        affine, brain = np.diag([2.0, 2, 2, 1]), np.ones((10, 11, 5), bool)
        for name, path in raw.images.items():
            volume, fitted = normalise(read_nifti(path)[0][:10, :11, :5], brain, "unit")
            write_nifti(f"{stem}_desc-preproc_{name}.nii.gz", volume, affine)
        write_nifti(f"{stem}_desc-brain_mask.nii.gz", brain, affine, dtype=np.uint8)
        if raw.lesion_mask:
            lesion = read_nifti(raw.lesion_mask)[0][:10, :11, :5] > 0
            write_nifti(f"{stem}_label-lesion_mask.nii.gz", lesion, affine, dtype=np.uint8)
        return {"Quality": {"MaskDice": 1.0, "TemplateCorrelation": 1.0, "MutualInformationWithT1w": {}},
                "Normalisation": dict(fitted)}  # fmt: skip

    monkeypatch.setattr(preprocessing, "_preprocess_subject", work)
    monkeypatch.setattr(preprocessing.quality, "write_page", lambda *_: None)
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # the work above is known to this process alone
    return done


def everything(listing):
    return listing


def test_a_listing_of_many_pages_holds_this_data_set_alone(bucket):
    found = list_files("ds004199", server=bucket.address)
    assert [f"ds004199/{file.path}" for file in found] == sorted(k for k in bucket.files if "ds004199/" in k)
    assert {file.path: file.size for file in found}["derivatives/large.bin"] == 1000
    assert found[0].md5 == hashlib.md5(bucket.files[f"ds004199/{found[0].path}"]).hexdigest()
    with pytest.raises(InputError, match="holds nothing of ds9"):
        list_files("ds9", server=bucket.address)


def test_what_is_fetched_is_what_the_bucket_holds_and_is_fetched_once(bucket, tmp_path):
    chosen = fetch("ds004199", tmp_path / "raw", everything, server=bucket.address)
    for file in chosen:
        assert (tmp_path / "raw" / file.path).read_bytes() == bucket.files[f"ds004199/{file.path}"]
    bucket.requests.clear()
    assert fetch("ds004199", tmp_path / "raw", everything, server=bucket.address) == chosen
    assert bucket.requests == []
    assert not list((tmp_path / "raw").glob("**/.partial*"))


def test_a_broken_connection_goes_on_where_it_broke(bucket, tmp_path):
    key = "ds004199/derivatives/large.bin"
    bucket.breaks_after[key] = 300
    fetch("ds004199", tmp_path, everything, server=bucket.address)
    assert (tmp_path / "derivatives/large.bin").read_bytes() == bucket.files[key]
    ranges = [wanted for path, wanted in bucket.requests if path == key]
    assert ranges == [None, "bytes=300-", "bytes=600-", "bytes=900-"]


def test_an_interrupted_download_goes_on_with_the_next_command(bucket, tmp_path):
    key = "ds004199/derivatives/large.bin"
    bucket.breaks_after[key] = 100
    with pytest.raises(InputError, match=r"large\.bin: the connection broke") as caught:
        fetch("ds004199", tmp_path, everything, server=bucket.address)
    assert "are kept" in caught.value.problems[-1]
    assert not (tmp_path / "derivatives/large.bin").exists()
    del bucket.breaks_after[key]
    bucket.requests.clear()
    fetch("ds004199", tmp_path, everything, server=bucket.address)
    assert bucket.requests == [(key, "bytes=400-")]
    assert (tmp_path / "derivatives/large.bin").read_bytes() == bucket.files[key]


def test_a_file_that_came_damaged_is_named_and_does_not_stay(bucket, tmp_path):
    key = "ds004199/sub-00003/anat/sub-00003_acq-iso08_T1w.nii.gz"
    bucket.damaged.add(key)
    bucket.damaged.add("ds004199/participants.tsv")
    with pytest.raises(InputError) as caught:
        fetch("ds004199", tmp_path, everything, server=bucket.address)
    first, second, rest = caught.value.problems
    assert "participants.tsv" in first
    assert "sub-00003_acq-iso08_T1w.nii.gz" in second
    assert hashlib.md5(bucket.files[key]).hexdigest() in second
    assert rest.startswith(f"{len(bucket.files) - 3} of {len(bucket.files) - 1} files")
    assert not (tmp_path / "participants.tsv").exists()
    assert not list(tmp_path.glob("**/.partial*"))


def test_a_file_that_went_bad_on_disk_is_found_named_and_fetched_again(bucket, tmp_path, capsys):
    fetch("ds004199", tmp_path, everything, server=bucket.address)
    path = tmp_path / "sub-00003/anat/sub-00003_acq-iso08_T1w.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    bucket.requests.clear()
    fetch("ds004199", tmp_path, everything, server=bucket.address)
    assert path.read_bytes() == whole
    assert [key for key, _ in bucket.requests] == [f"ds004199/{path.relative_to(tmp_path)}"]
    assert f"{path.name}: has the MD5" in capsys.readouterr().err


def test_of_an_object_stored_in_parts_the_size_counts(bucket, tmp_path):
    key = "ds004199/derivatives/large.bin"
    bucket.multipart.add(key)
    bucket.damaged.add(key)
    fetch("ds004199", tmp_path, everything, server=bucket.address)
    assert (tmp_path / "derivatives/large.bin").stat().st_size == 1000
    assert RemoteFile("a", 1, "0123456789abcdef0123456789abcdef-2").md5 == ""


def test_no_connection_and_no_room_are_said(bucket, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is there a network"):
        fetch("ds004199", tmp_path / "a", everything, server="http://127.0.0.1:9/openneuro.org")
    usage = openneuro.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(openneuro.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match="GB are free"):
        fetch("ds004199", tmp_path / "b", everything, server=bucket.address)


def test_the_scan_with_the_lesion_counts_then_the_protocol_of_the_controls(bucket):
    scans = bonn.scans_of(list_files("ds004199", server=bucket.address))
    assert sorted(scans) == ["00001", "00002", "00003", "00004", "00005"]  # 00006 has no FLAIR
    names = {label: [file.path.split("_", 1)[1] for file in s if file] for label, s in scans.items()}
    assert names["00002"] == [
        f"acq-{n}.nii.gz" for n in ("iso08_T1w", "tse3dvfl_FLAIR", "tse3dvfl_FLAIR_roi")
    ]
    assert names["00005"] == ["acq-iso08_T1w.nii.gz", "acq-T2sel_FLAIR.nii.gz"]
    assert [label for label, s in scans.items() if not s.matched] == ["00002"]


def test_age_classes_are_years_and_training_patients_validate():
    assert [bonn.age(text) for text in ("1", "5", "10")] == [3, 23, 48]  # 1 to 5, 21 to 25, 46 to 50
    assert np.isnan(bonn.age("n/a"))
    person = bids.Participant
    assert bonn.split(person("a", "patient", "train")) == "validation"
    assert bonn.split(person("a", "patient", "test")) == "test"
    assert bonn.split(person("a", "control", "train")) == "train"
    assert bonn.split(person("a", "patient")) == "test"
    assert {bonn.split(person(f"{i}", "control")) for i in range(50)} == {"train", "validation", "test"}


def load(bucket, tmp_path, matched=False, **options):
    name = "bonn_matched_replica" if matched else "bonn_replica"
    config = EpilepsyConfig(name=name, bonn=BonnConfig(matched, server=bucket.address))
    return Builder(config=config, data_dir=str(tmp_path / "tfds")).prepare(**options)


def test_the_config_downloads_preprocesses_and_is_read_as_any_other(bucket, tmp_path, quick, capsys):
    builder = load(bucket, tmp_path, require_controls=True)
    assert builder.modalities == ("T1w", "FLAIR")
    assert "sub-00006: no T1w or no FLAIR" in capsys.readouterr().err
    splits = {split: tfds_epilepsy.subjects(builder, split) for split in ("train", "validation", "test")}
    assert splits == {"train": ["00003", "00004", "00005"], "validation": ["00001"], "test": ["00002"]}
    [patient] = tfds_epilepsy.read(builder, "test")
    assert (patient.group, patient.age, patient.sex) == ("patient", 38, "f")
    key = "ds004199/sub-00002/anat/sub-00002_acq-tse3dvfl_FLAIR_roi.nii.gz"
    drawn = nib.Nifti1Image.from_bytes(gzip.decompress(bucket.files[key])).get_fdata()
    assert np.array_equal(patient.lesion_mask, drawn[:10, :11, :5] > 0)
    assert np.isnan(next(tfds_epilepsy.read(builder, "train", ["00004"])).age)
    fetched = {path.name for path in (tmp_path / "tfds/downloads/ds004199").glob("**/*.*")}
    assert not fetched & {"large.bin", "sub-00002_acq-T2sel_FLAIR.nii.gz", "sub-00005_acq-anat_T1w.nii.gz"}
    assert "sub-00003_acq-iso08_T1w.json" in fetched

    quick.clear()
    bucket.requests.clear()
    again = load(bucket, tmp_path)
    assert again.fingerprint == builder.fingerprint
    matched = load(bucket, tmp_path, matched=True)
    assert tfds_epilepsy.subjects(matched, "validation") == ["00001"]
    assert tfds_epilepsy.subjects(matched, "test") == []
    assert (quick, bucket.requests) == ([], [])  # a subset of what is there


def test_the_matched_subset_fetches_no_more_than_it_needs(bucket, tmp_path, quick):
    builder = load(bucket, tmp_path, matched=True)
    assert sorted(quick) == ["00001", "00003", "00004", "00005"]
    assert not any("sub-00002" in key for key, _ in bucket.requests)
    assert tfds_epilepsy.subjects(builder, "train") == ["00003", "00004", "00005"]


def test_without_a_split_column_the_rule_decides(bucket, tmp_path, quick):
    rows = [line.rsplit("\t", 1)[0] for line in PEOPLE.splitlines()]
    bucket.files["ds004199/participants.tsv"] = "\n".join(rows).encode()
    builder = load(bucket, tmp_path)
    person = bids.Participant
    for split in ("train", "validation", "test"):
        for label in tfds_epilepsy.subjects(builder, split):
            group = "patient" if label in ("00001", "00002") else "control"
            assert bids.split_of(person(label, group)) == split


def test_too_few_controls_stop_it_before_records_are_made(bucket, tmp_path, quick):
    for label in ("00004", "00005"):
        for key in [key for key in bucket.files if f"sub-{label}" in key]:
            del bucket.files[key]
    with pytest.raises(InputError, match="1 controls in split 'train'"):
        load(bucket, tmp_path, require_controls=True)
    assert not list((tmp_path / "tfds").glob("**/*.tfrecord*"))


def test_the_embedded_configs_point_to_the_public_bucket():
    configs = {config.name: config for config in Builder.BUILDER_CONFIGS}
    assert configs["bonn"].bonn == BonnConfig(server="https://s3.amazonaws.com/openneuro.org")
    assert configs["bonn_matched"].bonn.matched
