"""The merged table: figures by hand, intervals over patients, refusals, the three forms."""

from __future__ import annotations

import io
import math
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from epizoo.evaluation import RANKS, RULES, AnnotatedRow, Metrics, SubjectRow, VoxelMetrics, summarise
from epizoo.evaluation.figures import LesionHits
from epizoo.evaluation.leaderboard import Entry, leaderboard, write_leaderboard
from tfds_epilepsy.errors import InputError

NEVER = math.inf  # the rank of a lesion that no cluster hits


def metrics(auprc: list[float], ranks: list[float], false: list[int]) -> Metrics:
    """Figures of patients p0, p1, ... and controls c0, c1, ...; the lesion of a patient has one rank."""
    shared = {"site": "", "clusters": 10, "max_score": 5.0}
    rows: list[SubjectRow] = [
        AnnotatedRow(
            subject=f"p{i}",
            group="patient",
            clusters_at_threshold=None,
            **shared,
            lesion_mm3=500.0,
            lesion_diameter_mm=9.8,
            strata={},
            voxel=VoxelMetrics(a + 0.4, a + 0.4, a, 0.002, a + 0.4, math.nan, 0.1),
            lesion=dict.fromkeys(RULES, hits(rank)),
        )
        for i, (a, rank) in enumerate(zip(auprc, ranks, strict=True))
    ]
    rows += [
        SubjectRow(subject=f"c{i}", group="control", clusters_at_threshold=count, **shared)
        for i, count in enumerate(false)
    ]
    return summarise(rows, resamples=20)


def hits(rank: float) -> LesionHits:
    """One hit among ten clusters, at a rank; chance is .01 a cluster."""
    return LesionHits(
        hits=tuple(k == rank for k in range(1, 11)),
        rank=rank,
        mirrored_rank=NEVER,
        chance={k: 0.01 * k for k in RANKS},
    )


def entry(method: str, seed: int = 0, level: float = 0.2, ranks=(1, 2, NEVER, 7), **fields) -> Entry:
    rng = np.random.default_rng(seed)
    auprc = (level + 0.05 * rng.random(len(ranks))).tolist()
    return Entry(method, seed, metrics(auprc, list(ranks), [1, 0]), **fields)


def test_figures_of_one_method_worked_by_hand():
    a = Entry("a", 0, metrics([0.1, 0.3], [1, 6], [1, 0]), seconds={"train": 10, "fit": 4}, peak_gib=2)
    b = Entry("a", 1, metrics([0.2, 0.4], [4, 2], [3, 0]), seconds={"train": 20, "fit": 4}, peak_gib=3)
    board = leaderboard([a, b])
    row = board.table.iloc[0]
    assert (row["seeds"], board.patients, board.controls, board.prevalence) == (2, 2, 2, 0.002)
    assert row["auprc"] == pytest.approx(0.25)
    assert (row["auprc_low"], row["auprc_high"]) == (
        pytest.approx(0.15),
        pytest.approx(0.35),
    )  # the two patients
    assert row["sensitivity_1_overlap"] == 0.25
    assert row["sensitivity_5_overlap"] == 0.75
    assert row["sensitivity_5_overlap_chance"] == pytest.approx(0.05)
    assert row["sensitivity_10_strict"] == 1
    assert row["sensitivity_10_strict_low"] == pytest.approx(2 / (2 + 1.959964**2), abs=1e-6)  # Wilson
    assert row["fp_per_control"] == 1
    assert (row["train_seconds"], row["fit_seconds"], row["peak_gib"]) == (15, 4, 3)
    assert math.isnan(row["score_seconds"])
    assert row["auroc_seed_sd"] == pytest.approx(0.1 / math.sqrt(2))


def test_best_lesion_figure_comes_first_and_the_reference_is_unsupervised():
    board = leaderboard(
        [
            entry("weak", ranks=(NEVER, NEVER, NEVER, 9)),
            entry("strong", ranks=(1, 2, 4, 7)),
            entry("cnn", ranks=(1, 1, 1, 1), supervised=True),
        ]
    )
    assert board.table["method"].tolist() == ["cnn", "strong", "weak"]
    assert board.reference == "strong"
    assert [row.method for row in board.comparisons["auprc"]] == ["weak", "cnn"]


def test_more_seeds_are_not_more_patients():
    runs = [entry("base", seed) for seed in range(3)] + [entry("other", seed, level=0.3) for seed in range(3)]
    board = leaderboard(runs, reference="base")
    (row,) = board.comparisons["auprc"]
    assert row.difference.n == 4
    assert row.p == pytest.approx(2 / 2**4)


def test_seeds_that_agree_on_the_order_correlate_fully():
    levels = {"a": 0.1, "b": 0.3, "c": 0.5}
    same = [entry(m, seed, level=level) for m, level in levels.items() for seed in (0, 1)]
    assert leaderboard(same).seed_agreement["auprc"] == pytest.approx(1)
    turned = [entry(m, 0, level=level) for m, level in levels.items()]
    turned += [entry(m, 1, level=0.6 - level) for m, level in levels.items()]
    assert leaderboard(turned).seed_agreement["auprc"] == pytest.approx(-1)
    assert math.isnan(leaderboard(same[:2]).seed_agreement["auprc"])


def test_runs_that_cannot_be_compared_are_refused_all_at_once():
    with pytest.raises(InputError) as caught:
        leaderboard(
            [
                entry("a", cohort="x"),
                entry("a", cohort="x"),
                entry("b", cohort="y"),
                entry("c", cohort="x", ranks=(1, 2, 3)),
            ]
        )
    assert len(caught.value.problems) == 3
    assert "a: seed 0 more than once" in caught.value.problems[0]
    assert "cohort y" in caught.value.problems[1]
    assert "other subjects than a: p3" in caught.value.problems[2]
    with pytest.raises(InputError, match="no finished run"):
        leaderboard([])
    with pytest.raises(InputError, match="no method 'z'"):
        leaderboard([entry("a")], reference="z")


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.inside = True
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data


def test_all_forms_hold_the_same_table(tmp_path):
    board = leaderboard([entry("<plain>", level=0.2), entry("cnn", level=0.6, supervised=True)])
    tsv, markdown, page, _ = write_leaderboard(tmp_path, board)
    read = pd.read_csv(io.StringIO(tsv.read_text()), sep="\t")
    np.testing.assert_allclose(read["auprc"], board.table["auprc"], rtol=1e-4)
    assert read["dice"].isna().all()
    cells = Cells()
    cells.feed(page.read_text())
    lines = [line for line in markdown.read_text().splitlines() if line.startswith("| ")]
    in_markdown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells.rows == [row for row in in_markdown if row[0] != "---"]
    assert [row[0] for row in cells.rows] == ["method", "cnn †", "<plain>", "minus <plain>", "cnn †"]
    assert [len(row) for row in cells.rows] == [16, 16, 16, 5, 5]
    assert "supervised" in markdown.read_text().splitlines()[-1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("leaderboard-differences.tsv", "leaderboard.html", "leaderboard.md", "leaderboard.tsv")
    ]


def test_differences_are_paired_and_their_interval_tells(tmp_path):
    board = leaderboard(
        [entry("base", level=0.2), entry("better", level=0.4), entry("same", level=0.2)], "base"
    )
    read = pd.read_csv(io.StringIO(board.differences_to_tsv()), sep="\t").set_index(["figure", "method"])
    better, same = read.loc[("auprc", "better")], read.loc[("auprc", "same")]
    assert better["difference"] == pytest.approx(0.2, rel=1e-4)
    assert better["low"] > 0
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)
    assert set(read.index.get_level_values(0)) == {
        *("auroc", "auprc", "sensitivity_5_overlap", "sensitivity_5_strict")
    }
    assert "+0.200 [+0.200, +0.200] (p 0.250)" in board.to_markdown()
