"""From scans on disk to tf.data patches: the epilepsy data set builder and what it is made of.

Three functions hide TFDS: ``load`` prepares a data set, ``subjects`` names the subjects of a split, ``read``
yields them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder
    from tfds_epilepsy.volumes import Subject


def load(
    data: str | Path,
    data_dir: str | Path | None = None,
    modalities: Sequence[str] | None = None,
    *,
    space: str | None = None,
    group_column: str | None = None,
    groups: Mapping[str, str] | None = None,
    require_controls: bool = False,
    beam_options: Sequence[str] | None = None,
) -> Builder:
    """A prepared data set.

    Example:
        >>> builder = load(derivative_folder, data_folder)
        >>> list(builder.info.splits)
        ['train', 'validation', 'test']

    Args:
        data: name of a config (``phantom_2mm``, ``phantom_1mm``, ``bonn``, ``bonn_matched``, ``ideas``) or a
            template-space BIDS derivative.
        data_dir: where prepared data sets live; TFDS's default if None.
        modalities: channels of a folder; by default all that it has.
        space: of a folder that holds several.
        group_column: of a folder's participants.tsv; by default ``group`` and its like.
        groups: further words for ``control`` and ``patient`` in that column, ``{"typ": "control"}``.
        require_controls: fewer than 3 training controls are a problem of the data set too.
        beam_options: prepare on Apache Beam (the extra ``beam``), with these pipeline options, such as
            ``["--runner=DirectRunner", "--direct_num_workers=2", "--direct_running_mode=multi_processing"]``.
            The records are the same.

    Raises:
        InputError: all problems of the data set at once.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # TFDS warns of its own deprecations, many times
    import tensorflow_datasets as tfds

    from tfds_epilepsy.tfds_epilepsy_dataset_builder import Builder, config_for

    tfds.disable_progress_bar()  # the builder shows its own, which knows how many are to come
    builder = Builder(
        config=config_for(data, modalities, space=space, group_column=group_column, groups=groups),
        data_dir=None if data_dir is None else str(Path(data_dir).expanduser()),
    )
    return builder.prepare(require_controls=require_controls, beam_options=beam_options)


def subjects(builder: Builder, split: str) -> list[str]:
    """Labels of the subjects of a split, in stored order; none where the split is empty.

    Example:
        >>> subjects(load(derivative_folder, data_folder), "test")
        ['h1', 'p1']
    """
    return list(builder.info.metadata["subjects"].get(split, []))


def read(builder: Builder, split: str, subjects: Sequence[str] | None = None) -> Iterator[Subject]:
    """The subjects of a split, one at a time, in stored order.

    Example:
        >>> [subject.subject for subject in read(load(derivative_folder, data_folder), "train")]
        ['c0', 'c1', 'c2', 'c3', 'c4']

    Args:
        builder: from ``load``.
        split: ``train``, ``validation`` or ``test``.
        subjects: only these; all by default.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    from tfds_epilepsy.tfds_epilepsy_dataset_builder import subject_of

    if split not in builder.info.splits:
        return
    dataset = builder.as_dataset(split=split, shuffle_files=False)
    if subjects is not None:
        if not subjects:
            return
        wanted = tf.constant(list(subjects))
        dataset = dataset.filter(lambda record: tf.reduce_any(record["subject"] == wanted))
    for record in tfds.as_numpy(dataset):
        yield subject_of(record)
