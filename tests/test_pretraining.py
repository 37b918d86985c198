"""The family that shipped weights are taught on: cohorts of phantoms that differ."""

from epizoo.models.pretraining import COHORTS, FAMILY, LITTLE, QUIET, configs


def test_the_last_cohorts_are_quiet_and_all_differ():
    drawn = [config.conditions for config in configs()]
    assert len({config.seed for config in configs()}) == len(set(drawn)) == COHORTS
    for name, between in LITTLE.items():
        quiet = [getattr(conditions, name) for conditions in drawn[-QUIET:]]
        others = [getattr(conditions, name) for conditions in drawn[:-QUIET]]
        assert all(between.low <= value <= between.high for value in quiet)
        assert all(FAMILY[name].low <= value <= FAMILY[name].high for value in others)
