"""The winner against the default architecture, on other seeds, case by case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from epizoo.evaluation import compare

from .trial import Result, score


def comparison(
    results: Mapping[tuple[str, int], Result], contenders: Mapping[str, Any], objective: str
) -> dict[str, Any]:
    """Figures of a confirmation; a case's figure is averaged over the seeds before it is compared."""
    content: dict[str, Any] = {"objective": objective}
    by_case: dict[str, dict[str, float]] = {}
    for name, values in contenders.items():
        runs = [result["cases"] for (who, _), result in results.items() if who == name]
        scores = [score(rows, objective) for rows in runs]
        content[name] = {
            "values": values,
            "scores": scores,
            "mean": float(np.mean(scores)),
            "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan,
        }
        by_case[name] = {
            row["case"]: float(np.mean([_number(rows[i][objective]) for rows in runs]))
            for i, row in enumerate(runs[0])
        }
    (difference,) = compare(by_case, "default")
    content["noise"] = math.sqrt((content["best"]["sd"] ** 2 + content["default"]["sd"] ** 2) / 2)
    content["difference"] = {**vars(difference.difference), "p": difference.p}
    return content


def _number(value: float | None) -> float:
    return math.nan if value is None else value
