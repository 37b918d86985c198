"""Downloads from a server on this machine: whole, interrupted, damaged, without room."""

import hashlib

import pytest

from tfds_epilepsy import openneuro
from tfds_epilepsy.errors import InputError
from tfds_epilepsy.openneuro import RemoteFile, fetch, list_files


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
