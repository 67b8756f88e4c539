"""Choosing from the front: dominance against the definition, the knee and volumes against closed forms."""

import json
import math
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from recorded import describe, record

from tuning.choosing import pareto
from tuning.cli import main
from tuning.tables.query import QueryError
from tuning.tables.results import load
from tuning.tables.schema import VARIANT_HEAD
from tuning.tables.storage import UnreadableResults, write_table

BY_CIDER = [{"metric": "cider", "mode": "max"}]
BOTH = {"cider": "max", "size_mb": "min"}


def frame(**columns):
    return pd.DataFrame({name: pd.array(values, dtype="Float64") for name, values in columns.items()})


# the pure functions


def test_the_front_is_what_nothing_dominates():
    rng = np.random.default_rng(0)
    table = frame(cider=rng.random(60).round(1), size_mb=rng.random(60).round(1), ms=rng.random(60).round(1))
    table.loc[7, "cider"] = pd.NA
    table.loc[8, "ms"] = math.inf
    figures = {**BOTH, "ms": "min"}
    found = pareto.front(table, figures)
    usable = table.drop(index=[7, 8]).astype(float)
    points = usable * [-1, 1, 1]
    expected = [
        row
        for row, point in points.iterrows()
        if not any((other <= point).all() and (other < point).any() for _, other in points.iterrows())
    ]
    assert set(map(tuple, found[[*figures]].to_numpy())) == set(map(tuple, usable.loc[expected].to_numpy()))
    assert not found.duplicated([*figures]).any() and found["cider"].is_monotonic_decreasing
    assert found["knee"].dtype == bool and found["knee"].sum() <= 1


def test_of_equals_the_first_stands_on_the_front():
    found = pareto.front(frame(cider=[0.1, 0.5, 0.5], size_mb=[9.0, 2.0, 2.0]), BOTH)
    assert found.index.tolist() == [1]


def test_with_two_figures_the_knee_is_farthest_from_the_line_through_the_ends():
    """Das's definition, worked out as the distance of points from a line, on a convex front."""
    sizes = np.linspace(1, 20, 40)
    ciders = 1 - 1 / sizes**1.3
    found = pareto.front(frame(cider=ciders[::-1], size_mb=sizes[::-1]), BOTH)
    x, y = (sizes - sizes.min()) / np.ptp(sizes), (ciders.max() - ciders) / np.ptp(ciders)
    distance = (1 - x - y) / math.sqrt(2)  # of (x, y) below the line from (0, 1) to (1, 0)
    assert found.loc[found["knee"], "size_mb"].tolist() == [sizes[distance.argmax()]]


@pytest.mark.parametrize(
    "ciders, sizes",
    [
        ([0.1, 0.9], [1.0, 5.0]),  # two ends and nothing between
        ([0.1, 0.2, 0.3], [1.0, 2.0, 3.0]),  # straight
        ([0.1, 0.2, 0.9], [1.0, 4.0, 5.0]),  # bulges away from the ideal point
        ([0.1, 0.15, 0.5, 0.9], [1.0, 3.0, 4.9, 5.0]),  # likewise, with one between nearer than another
        ([0.9], [1.0]),
    ],
)
def test_without_a_bulge_there_is_no_knee(ciders, sizes):
    found = pareto.front(frame(cider=ciders, size_mb=sizes), BOTH)
    assert len(found) == len(ciders) and not found["knee"].any()


def test_the_knee_does_not_depend_on_units_and_needs_no_plane_through_the_ends():
    """The smallest is the fastest, too: three ends are two points. Scaled, the sums are 2, 0.5 and 1."""
    table = frame(cider=[0.9, 0.7, 0.1], size_mb=[5.0, 2.0, 1.0], ms=[20.0, 10.0, 10.0])
    figures = {**BOTH, "ms": "min"}
    for factor in (1, 1e6):
        found = pareto.front(table.assign(ms=table["ms"] * factor), figures)
        assert found["knee"].tolist() == [False, True, False]


def test_a_compromise_that_is_also_best_by_one_figure_is_a_knee():
    """Latencies of like models differ by noise: the fastest of them is no end of the front for that."""
    table = frame(cider=[0.9, 0.8, 0.1], size_mb=[9.0, 2.0, 1.0], ms=[20.0, 9.9, 10.0])
    assert pareto.front(table, {**BOTH, "ms": "min"})["knee"].tolist() == [False, True, False]


def test_the_share_of_the_hypervolume_is_that_of_the_staircase():
    # Scaled losses: (0, 1), (0.25, 0.5), (1, 0) and, dominated, (1, 1).
    table = frame(cider=[1.0, 0.75, 0.0, 0.0], size_mb=[10.0, 6.0, 2.0, 10.0])
    assert pareto.hypervolume_share(table, BOTH) == pytest.approx(0.75 * 0.5)
    assert pareto.hypervolume_share(table.assign(size_mb=table["size_mb"] * 1e3), BOTH) == pytest.approx(
        0.375
    )
    same = table.assign(ms=3.0)
    assert pareto.hypervolume_share(same, {**BOTH, "ms": "min"}) == pytest.approx(0.375)
    one_beats_all = frame(cider=[1.0, 0.0], size_mb=[1.0, 2.0])
    assert pareto.hypervolume_share(one_beats_all, BOTH) == 1
    assert math.isnan(pareto.hypervolume_share(table[:1], BOTH))
    assert math.isnan(pareto.hypervolume_share(table[:0], BOTH))


def test_the_best_within_limits():
    table = frame(cider=[0.9, 0.7, 0.7, 0.1], size_mb=[9.0, 4.0, 3.0, 1.0], ms=[9.0, 9.0, 9.0, 30.0])
    at_most = pareto.limits(table, {"size_mb": 5.0}, None)
    assert pareto.best_within(table, BOTH, at_most).name == 2  # of equals in cider, the smaller
    at_least = pareto.limits(table, {"size_mb": 5}, {"cider": 0.7})
    assert pareto.best_within(table, BOTH, at_least).name == 2
    # Nobody keeps both: row 3 misses 10 ms threefold, row 2 misses 2 MB by a half.
    impossible = pareto.limits(table, {"size_mb": 2.0, "ms": 10.0}, None)
    nearest = pareto.best_within(table, BOTH, impossible)
    assert nearest.name == 2
    assert [limit.excess(nearest[limit.column]) for limit in impossible] == pytest.approx([0.5, 0])
    assert pareto.best_within(table.assign(ms=math.nan), BOTH, impossible) is None


def test_directions_come_from_the_name_then_the_objectives_then_the_schema():
    table = frame(cider=[1.0], size_mb=[1.0], speed=[1.0], **{"metric/epoch": [1.0], "config/width": [2.0]})
    names = ["cider", "size_mb:max", "speed", "epoch:min", "width:min"]
    assert pareto.directions(table, names, {"speed": "max", "cider": "min"}) == {
        "cider": "min",
        "size_mb": "max",
        "speed": "max",
        "metric/epoch": "min",
        "config/width": "min",
    }


@pytest.mark.parametrize(
    "names, message",
    [
        (["speed"], "small or a large 'speed' better.*speed:min or speed:max"),
        (["speed:best"], "`min` or `max`, as in speed:min, but got 'speed:best'"),
        (["cidre"], "no column 'cidre'; did you mean 'cider'"),
        (["cidre:max"], "did you mean 'cider'"),
        (["cider", "cider:min"], "'cider' is named twice"),
        (["state:min"], "state holds no numbers"),
        (["good:min"], "good holds no numbers"),
        ([], "at least one figure"),
    ],
)
def test_figures_that_cannot_be_compared_are_refused(names, message):
    table = frame(cider=[1.0], speed=[1.0]).assign(state="completed", good=True)
    with pytest.raises(QueryError, match=message):
        pareto.directions(table, names, {})


@pytest.mark.parametrize(
    "at_most, at_least, message",
    [
        ({"cidre": 1}, None, "did you mean 'cider'"),
        ({"cider": math.nan}, None, "finite number, but got nan"),
        ({"cider": 1}, {"cider": 2}, "at least 2 and at most 1"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(at_most, at_least, message):
    with pytest.raises(QueryError, match=message):
        pareto.limits(frame(cider=[1.0]), at_most, at_least)


# of an experiment

TRIALS = [(0.9, 8.0, 30.0), (0.8, 3.0, 12.0), (0.3, 1.0, 10.0), (0.2, 2.0, 11.0), (0.99, 0.5, 1.0)]
VARIANTS = [
    ("00000-none", "00000", "none", 0.9, 8.0, 30.0, 31.0),
    ("00000-int8", "00000", "int8", 0.88, 2.0, 25.0, 40.0),
    ("00000-low_rank+int8", "00000", "low_rank+int8", 0.5, 1.0, 20.0, 21.0),
    ("00001-int8", "00001", "int8", 0.4, 1.5, 22.0, 23.0),
]


@pytest.fixture
def birds(tmp_path, monkeypatch):
    """Four trials and, as the last, one that looks best and diverged."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = describe(tmp_path / "captune-results", name="birds", objectives=BY_CIDER)
    trials = [
        (
            {"learning_rate": 0.01},
            [{"cider": cider, "size_mb": size, "latency_ms": latency}],
            "diverged" if cider == 0.99 else "completed",
        )
        for cider, size, latency in TRIALS
    ]
    return record(spec, trials)


def add_variants(found):
    columns = ["variant_id", "parent", "methods", "cider", "size_mb", "latency_ms", "latency_p90_ms"]
    table = pd.DataFrame(VARIANTS, columns=columns).convert_dtypes().assign(state="completed")
    table = table.reindex(columns=dict.fromkeys([*(each.name for each in VARIANT_HEAD), *table]))
    write_table(table, found.folder / "variants.parquet")


@pytest.fixture
def captune(birds):
    def call(code, *words):
        result = CliRunner().invoke(main, ["pareto", *words])
        assert result.exit_code == code, result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.output

    return call


def test_trials_are_the_candidates_until_there_are_variants(birds):
    assert birds.variants.empty
    found = birds.pareto()
    assert found["trial_id"].tolist() == ["00000", "00001", "00002"]
    assert found["knee"].tolist() == [False, True, False] and "within_limits" not in found
    assert birds.pareto(["cider"])["trial_id"].tolist() == ["00000"]
    assert birds.pareto(["worker_s", "cider:min"])["trial_id"].tolist() == ["00003"]
    limited = birds.pareto(at_most={"size_mb": 3}, at_least={"cider": 0.5})
    assert limited["within_limits"].tolist() == [False, True, False]


def test_variants_are_the_candidates_where_there_are_any(birds):
    add_variants(birds)
    found = load(birds.folder)
    assert found.variants["variant_id"].tolist() == [row[0] for row in VARIANTS]
    assert found.pareto()["variant_id"].tolist() == ["00000-none", "00000-int8", "00000-low_rank+int8"]
    assert "00001-int8" in found.pareto(["cider:min", "size_mb"])["variant_id"].tolist()


def test_constraints_hold_for_the_front_too(tmp_path):
    spec = describe(
        tmp_path,
        objectives=[{"metric": "cider", "mode": "max"}, {"metric": "size_mb", "mode": "min"}],
        constraints=[{"metric": "size_mb", "max": 5}],
    )
    found = record(spec, [({}, [{"cider": c, "size_mb": s}], "completed") for c, s, _ in TRIALS[:4]])
    pd.testing.assert_frame_equal(found.pareto().drop(columns="knee"), found.front())
    assert found.pareto()["trial_id"].tolist() == ["00001", "00002"]


def test_the_command_tells_front_volume_knee_and_best(birds, captune):
    text = captune(0, "birds", "--max", "size_mb=5", "--max", "latency_ms=20")
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("0000")] == ["00000", "00001", "00002"]
    assert (
        "front        3 of 4 candidates that no other beats in cider (max), size_mb (min), latency_ms" in text
    )
    assert "hypervolume  " in text and "of the box" in text
    assert "knee         trial 00001: cider 0.8, size_mb 3, latency_ms 12" in text
    assert "best         trial 00001 with size_mb <= 5, latency_ms <= 20: cider 0.8, size_mb 3" in text
    text = captune(0, "birds", "--figures", "cider,size_mb", "--max", "latency_ms=10", "--min", "cider=0.6")
    assert "best         none with latency_ms <= 10, cider >= 0.6; nearest is trial 00001, " in text
    assert "00001, latency_ms 12 is 20 % above 10: cider 0.8, size_mb 3, latency_ms 12" in text
    assert "knee         none" in captune(0, "birds", "--figures", "cider")


def test_disturbed_milliseconds_are_told_where_they_matter(birds, captune):
    assert "disturbed" not in captune(0, "birds")
    noisy = birds.trials.assign(latency_noisy=pd.array([True, None, False, True, True], dtype="boolean"))
    write_table(noisy, birds.folder / "trials.parquet")
    assert "other work disturbed the milliseconds of 1 of these" in captune(0, "birds")
    assert "disturbed" not in captune(0, "birds", "--figures", "cider,size_mb")
    assert "disturbed" in captune(0, "birds", "--figures", "cider", "--max", "latency_ms=20")


def test_the_command_shows_variants(birds, captune):
    add_variants(birds)
    text = captune(0, "birds", "--max", "latency_p90_ms=35", "--max", "size_mb=1.7")
    rows = [line.split() for line in text.splitlines() if line.startswith("0000")]
    assert [row[0] for row in rows] == ["00000-none", "00000-int8", "00000-low_rank+int8"]
    assert {"variant_id", "parent", "methods"} <= set(text.splitlines()[0].split())
    assert "3 of 4 candidates" in text and "knee         variant 00000-int8" in text
    assert "best         variant 00000-low_rank+int8 with" in text and "latency_p90_ms 21" in text
    rows = json.loads(captune(0, "birds", "--format", "json"))
    assert [row["knee"] for row in rows] == [False, True, False]
    header = captune(0, "birds", "--format", "csv", "--max", "size_mb=1").splitlines()[0]
    assert header.startswith("variant_id,parent") and header.endswith("knee,within_limits")


@pytest.mark.parametrize(
    "words, message",
    [
        (["brids"], "did you mean 'birds'"),
        (["birds", "--figures", "cidre"], "did you mean 'cider'"),
        (["birds", "--figures", "cider,learning_rate"], "Say learning_rate:min or learning_rate:max"),
        (["birds", "--figures", ""], "no column ''"),
        (["birds", "--max", "size_mb"], "--max takes COL=NUMBER, as in size_mb=5, but got 'size_mb'"),
        (["birds", "--min", "cider=good"], "--min takes COL=NUMBER, as in cider=0.2, but got 'cider=good'"),
        (["birds", "--max", "siez_mb=5"], "did you mean 'size_mb'"),
        (["birds", "--max", "size_mb=5", "--max", "size_mb=6"], "size_mb is given twice"),
        (["birds", "--max", "state=5"], "state holds no numbers"),
        (["birds", "--format", "xlsx"], "xlsx"),
    ],
)
def test_the_command_refuses(captune, words, message):
    assert message in captune(2, *words)


def test_without_candidates_the_command_fails_and_says_why(birds, captune, tmp_path):
    record(describe(tmp_path / "captune-results", name="sad", objectives=BY_CIDER), [])
    assert "no trial of 'sad' has cider" in captune(1, "sad")
    trials = [({}, [{"cider": 0.5, "size_mb": 9.0}], "completed")]
    strict = {"constraints": [{"metric": "size_mb", "max": 1}], "objectives": BY_CIDER}
    record(describe(tmp_path / "captune-results", name="strict", **strict), trials)
    text = captune(1, "strict")
    assert "no trial of 'strict'" in text and "size_mb <= 1" in text


def test_a_damaged_table_of_variants_is_named(birds, captune):
    (birds.folder / "variants.parquet").write_bytes(b"no table")
    assert "variants.parquet is not a readable Parquet table" in captune(2, "birds")
    write_table(pd.DataFrame({"x": [1]}), birds.folder / "variants.parquet")
    assert "variants.parquet is not a table that Captune wrote: it has no variant_id" in captune(2, "birds")
    with pytest.raises(UnreadableResults):
        birds.variants  # noqa: B018
