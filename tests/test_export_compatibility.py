"""Exports that earlier versions made go on loading."""

import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from epizoo.export import verify

ARCHIVES = sorted((Path(__file__).parent / "data").glob("exports-*.zip"))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
def test_an_export_from_before_gives_its_vectors(archive, tmp_path):
    shutil.unpack_archive(archive, tmp_path)
    rows = verify.verify(tmp_path / "encoder", ["T1w", "FLAIR"])
    assert {row[0] for row in rows} >= {"encode", "encode_raw", "encode_volume", "normalise"}
    assert {row[0] for row in verify.verify(tmp_path / "pipeline", ["T1w", "FLAIR"])} == {"score"}
    assert "serving_default" in tf.saved_model.load(tmp_path / "encoder").signatures


def test_there_is_one_for_each_version():
    from epizoo.export.folder import VERSION

    assert [path.name for path in ARCHIVES] == [f"exports-{v}.zip" for v in range(2, VERSION + 1)]
