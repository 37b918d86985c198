"""How well a detector finds annotated lesions: voxels, lesions, chance, intervals, leaderboard."""

from epizoo.evaluation.chance import chance_of_rank, hit_chance, mirrored_hits, more_than_chance
from epizoo.evaluation.evaluate import Scored, evaluate, pool, summarise
from epizoo.evaluation.figures import AnnotatedRow, Metrics, SubjectRow
from epizoo.evaluation.lesion_level import (
    RANKS,
    RULES,
    Froc,
    first_hit,
    froc,
    match_clusters,
    mean_rank,
    sensitivity,
)
from epizoo.evaluation.metrics import VoxelMetrics, auroc, average_precision, dice, voxel_metrics
from epizoo.evaluation.statistics import (
    Comparison,
    Interval,
    bootstrap,
    bootstrap_mean,
    check_no_leak,
    compare,
    holm,
    proportion,
    split_hash,
)

__all__ = [
    "RANKS",
    "RULES",
    "AnnotatedRow",
    "Comparison",
    "Froc",
    "Interval",
    "Metrics",
    "Scored",
    "SubjectRow",
    "VoxelMetrics",
    "auroc",
    "average_precision",
    "bootstrap",
    "bootstrap_mean",
    "chance_of_rank",
    "check_no_leak",
    "compare",
    "dice",
    "evaluate",
    "first_hit",
    "froc",
    "hit_chance",
    "holm",
    "match_clusters",
    "mean_rank",
    "mirrored_hits",
    "more_than_chance",
    "pool",
    "proportion",
    "sensitivity",
    "split_hash",
    "summarise",
    "voxel_metrics",
]
