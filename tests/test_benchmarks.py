"""Benchmarks run, at sizes at which their figures mean nothing, and end with the line that tools read."""

import dataclasses
import importlib
import json
import math
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import busy_gangs, cache, caption_metrics, compression, forking, real_search, search, transfer
from benchmarks.simulated.driving import Report
from benchmarks.simulated.figures import POINTS, at_shares, half_width, hypervolumes, regrets, share_of_epochs
from benchmarks.simulated.problem import Problem
from benchmarks.simulated.rivals import RIVALS
from benchmarks.trained.problems import Problem as TrainedProblem
from benchmarks.trained.searches import METHODS
from search_spaces import Choice, Float, Space
from trainables.captioning.settings import Settings


def ratio(name, output):
    """The claim as one number, from the last line."""
    match = re.fullmatch(rf"{name} ratio=(\d+\.\d+)", output.splitlines()[-1])
    assert match, output
    return float(match[1])


def test_every_benchmark_is_known_by_name():
    assert benchmarks.names() == [
        "busy_gangs",
        "cache",
        "caption_metrics",
        "chaos",
        "compression",
        "first_epoch",
        "forking",
        "gang_overhead",
        "inference",
        "many_trials",
        "real_search",
        "recovery",
        "search",
        "throughput",
        "transfer",
    ]


def test_a_gangs_gaps_are_not_busy():
    """Two gangs; looked at from second 1, when both are at work, to 5, when the first has no more to do."""
    rows = [("a", 2, 2), ("a", 5, 2), ("b", 4, 3), ("b", 9, 4)]  # gang, end, seconds
    epochs = pd.DataFrame(rows, columns=["gang", "at", "seconds"])
    epochs["at"] = pd.Timestamp("2026-01-01") + pd.to_timedelta(epochs["at"], unit="s")
    assert busy_gangs.busy_fraction(epochs) == pytest.approx((1 + 2 + 3 + 0) / 8)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_busy_gangs(cluster, capsys):
    busy_gangs.main(gangs=(1,), trials_per_gang=2)
    printed = capsys.readouterr().out
    assert 0 < float(printed.splitlines()[1].split()[1]) <= 1
    assert ratio("busy_gangs", printed) == 1


@pytest.mark.slow  # imports torch in another process
@pytest.mark.timeout(40)
def test_an_unknown_name_is_refused_with_the_known_ones():
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks", "cach"], capture_output=True, text=True, timeout=30
    )
    assert answer.returncode == 2
    assert "caption_metrics" in answer.stderr


def test_the_machine_is_named():
    assert re.search(
        r"^\d{4}-\d\d-\d\d \| .+, \d+ cores? \| python 3\.\d+\.\d+ torch \d", benchmarks.hardware()
    )


def test_caption_metrics(monkeypatch, capsys):
    monkeypatch.setattr(caption_metrics, "IMAGES", 60)
    caption_metrics.main()
    assert ratio("caption_metrics", capsys.readouterr().out) > 0


@pytest.mark.slow
@pytest.mark.timeout(90)  # writes ONNX graphs
def test_inference(monkeypatch, capsys):
    for package in ("onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    inference = importlib.import_module("benchmarks.inference")
    monkeypatch.setattr(inference, "DECODERS", ("gru_attention",))
    monkeypatch.setattr(inference, "WIDTHS", (32,))
    monkeypatch.setattr(inference, "VOCABULARIES", (50,))
    monkeypatch.setattr(inference, "ENCODERS", (("cnn", 16),))
    monkeypatch.setattr(inference, "FEWEST_FOR_INT8", 1024)
    monkeypatch.setattr(inference, "ROUNDS", 2)
    inference.main()
    output = capsys.readouterr().out
    assert ratio("inference", output) > 0
    assert re.search(r"^gru_attention +32 +50 +\d+\.\d ms( +\d+\.\d\d){3}$", output, re.M)
    assert re.search(r"^cnn +16 +\d+\.\d ms +\d+\.\d\d$", output, re.M)


@pytest.fixture
def tiny_forks(monkeypatch):
    """One seed, two epochs on thirty scenes."""
    for name in ("COMPRESSION", "FORKING"):
        for key, value in (("SEEDS", "1"), ("IMAGES", "30"), ("EPOCHS", "2")):
            monkeypatch.setenv(f"{name}_{key}", value)


@pytest.mark.slow  # trains
@pytest.mark.timeout(120)
def test_compression(tiny_forks, monkeypatch, capsys):
    monkeypatch.setattr(compression, "FINE_TUNE_EPOCHS", 1)
    monkeypatch.setattr(compression, "CONTEST", ((("none", "int8"), (0.5,)), (("prune+int8",), (0.9,))))
    monkeypatch.setattr(compression, "kept_cider", lambda outcomes: float(len(outcomes)))  # CIDEr may be 0
    compression.main()
    output = capsys.readouterr().out
    assert ratio("compression", output) == 3
    assert re.search(r"^none +0\.00 ", output, re.M)
    assert re.search(r"^prune\+int8 \.9 +0\.[89]\d ", output, re.M)


def test_a_method_is_smaller_or_faster_only_where_all_its_children_are(capsys):
    slow = (1.0, 0.98, 1.02)
    compression.verdicts(
        [
            outcome("prune", 0.5),
            outcome("prune+int8", 0.5, slow),
            outcome("prune+int8", 0.5),
            outcome("none", 0.5, slow, size=1.0),
        ]
    )
    assert capsys.readouterr().out.split("\n")[1:4] == [
        f"{'prune':21}smaller and faster",
        f"{'prune+int8':21}smaller",
        f"{'none':21}neither smaller nor faster",
    ]


def outcome(method, cider, latency=(0.9, 0.88, 0.92), size=0.1):
    """A child at .9 of a parent whose figures are all 1."""
    names = ("latency_ratio", "latency_ratio_low", "latency_ratio_high")
    parent = {"cider": 1.0, "size_mb": 1.0} | dict(zip(names, (1.0, 0.94, 1.06), strict=True))
    figures = {"cider": cider, "size_mb": size} | dict(zip(names, latency, strict=True))
    label = method if method == "none" else f"{method} .9"
    return compression.Outcome(label, method, parent, parent, figures)


def test_a_child_is_faster_only_where_intervals_do_not_touch():
    assert outcome("prune", 0.5).faster
    assert not outcome("prune", 0.5, (0.9, 0.85, 0.95)).faster
    assert not outcome("prune", 0.5, (0.96, 0.9, 0.93)).faster


def test_what_the_smallest_keep_is_of_the_best_method_by_its_mean():
    ciders = {"none": (0.8, 1.2), "prune+int8": (0.9, 0.1), "low_rank+int8": (0.6, 0.8), "int8": (2, 2)}
    outcomes = [outcome(method, cider) for method, pair in ciders.items() for cider in pair]
    assert compression.kept_cider(outcomes) == pytest.approx(0.7)


@pytest.mark.slow  # trains
@pytest.mark.timeout(120)
def test_forking(tiny_forks, monkeypatch, capsys):
    monkeypatch.setattr(forking, "METHODS", ((("int8",), (0.5,)), (("prune_units",), (0.5,))))
    forking.main()
    output = capsys.readouterr().out
    assert re.fullmatch(r"forking ratio=(\d+\.\d+|inf)", output.splitlines()[-1])
    assert re.search(r"^seed 0, joint: \d+ worker-seconds", output, re.M)
    assert "int8, untrained" in output


def test_seconds_to_a_target_are_those_when_the_front_reached_it():
    search = iter([("a", (-0.5, 2.0)), ("b", (-0.4, 3.0)), ("c", (-0.5, 1.0))])
    found, curve = forking.measured(search, whole_mb=4.0, spent=10.0)
    assert [name for name, _ in found] == ["a", "b", "c"]
    assert [reached for _, reached in curve] == pytest.approx([0.25, 0.25, 0.375])
    assert forking.seconds_to(curve, 0.2) >= 10.0
    assert forking.seconds_to(curve, 0.3) == curve[2][0]
    assert forking.seconds_to(curve, 0.5) == math.inf


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_cache_prepares_once(capsys):
    tiny = Settings(encoder_width=4, decoder_width=8, decoder="gru")
    cache.main(photos=20, epochs=1, cases=(cache.Case("tiny", 16, tiny),))
    output = capsys.readouterr().out
    assert re.search(r"20 images decoded; again: .* 0 images decoded", output)
    assert ratio("cache", output) > 0


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_both_sides_of_cache_train_on_the_same_pairs(tmp_path):
    cache.write_photos(tmp_path / "photos", 20, width=80, height=60)
    told = {"format": "flickr8k", "path": tmp_path / "photos", "image_size": 32, "cache": tmp_path / "cache"}
    data = cache.prepare(cache.DataSettings(**told))
    files = list(cache.steps_from_files(cache.Files(tmp_path / "photos", data, 32), epoch=1))
    cached = list(cache.steps_from_cache(data, None, epoch=1))
    assert len(files) == len(cached) > 0
    for one, other in zip(files, cached, strict=True):
        assert one.global_tokens == other.global_tokens
        assert (one.micro_batches[0].tokens == other.micro_batches[0].tokens).all()
        difference = one.micro_batches[0].inputs.float() - other.micro_batches[0].inputs.float()
        assert difference.abs().mean() < 6  # the same photographs, by another resize


def problem(objectives=("loss",)):
    """The loss is `x`, from 0 to 1, and so is every other objective turned round: 1 - x."""

    def truth(config):
        return np.array([config["x"], 1 - config["x"]][: len(objectives)])

    return Problem(
        name="line",
        space=Space({"x": Float(0.0, 1.0)}),
        max_epochs=3,
        curve=lambda config, seed: np.tile(truth(config), (3, 1)),
        truth=truth,
        objectives=objectives,
        reference=(1.0, 1.0),
        candidates=lambda: [{"x": x} for x in np.linspace(0, 1, 101)],
    )


def reports(*epochs):
    """Reports one after another, each given as (x, epoch, loss…)."""
    return [
        Report(float(spent), spent, losses, {"x": x}, f"{x}", epoch)
        for spent, (x, epoch, *losses) in enumerate(epochs, start=1)
    ]


def test_regret_is_of_the_best_full_training_and_before_of_the_longest():
    history = list(
        regrets(
            problem(),
            reports(
                (0.4, 1, 0.4),
                (0.1, 1, 0.1),  # better after as many epochs
                (0.3, 2, 0.9),  # longer
                (0.2, 2, math.nan),  # diverged
                (0.3, 3, 0.9),
                (0.0, 2, 0.0),  # not trained to the end
                (0.6, 3, 0.2),  # the loss that was seen decides, not the truth
            ),
        )
    )
    assert [spent for spent, _ in history] == list(range(8))
    expected = [1.0, 0.8, 0.2, 0.6, 0.6, 0.6, 0.6, 1.2]
    assert [regret for _, regret in history] == pytest.approx(expected, abs=0.03)  # the median is sampled


def test_hypervolume_is_of_all_checkpoints():
    line = problem(("loss", "size"))
    history = list(
        hypervolumes(
            line,
            reports((0.5, 1, 0.5, 0.5), (0.5, 2, 0.6, 0.6), (0.7, 1, math.nan, 0.3), (0.25, 1, 0.25, 0.75)),
        )
    )
    whole = line.front_hypervolume
    assert whole == pytest.approx(0.5, abs=0.01)
    assert [share * whole for _, share in history] == pytest.approx([0, 0.25, 0.25, 0.25, 0.25 + 0.25 * 0.25])


def test_a_figure_is_the_one_that_stood_when_the_share_was_spent():
    history = [(0, 1.0), (3, 0.5), (5, 0.4), (8, 0.3), (11, 0.1)]
    assert at_shares(history, 10, points=5).tolist() == [1.0, 0.5, 0.4, 0.3, 0.3]  # after 2, 4, 6, 8 and 10
    assert at_shares([(0, 1.0)], 10, points=2).tolist() == [1.0, 1.0]
    assert at_shares([(0, 1.0), (29, 0.5)], 100)[[27, 28]].tolist() == [1.0, 0.5]  # 0.29 * 100 < 29 in floats


def test_epochs_are_counted_until_the_mean_regret_stays_at_what_random_search_ends_with():
    random = np.array([[[0.9, 0.6, 0.4, 0.4], [0.7, 0.6, 0.4, 0.4]], [[0.8, 0.8, 0.8, 0.2]] * 2])
    fast = np.array([[[0.5, 0.5, 0.1, 0.1], [0.3, 0.3, 0.1, 0.1]], [[0.9, 0.8, 0.7, 0.3]] * 2])
    assert share_of_epochs(fast, random).tolist() == [1 / 3, math.inf]
    assert share_of_epochs(random, random).tolist() == [1.0, 1.0]
    lucky = np.array([[[0.4, 0.4, 0.5, 0.4]], [[0.1, 0.1, 0.1, 0.1]]])
    assert share_of_epochs(lucky, random).tolist() == [4 / 3, 1 / 4]


def test_one_seed_has_no_interval():
    assert half_width(np.array([[0.1, 0.2]])).tolist() == [math.inf, math.inf]
    assert half_width(np.array([1.0, 3.0])) == pytest.approx(1.96)


def runs(*finals):
    """Runs of two seeds that end so, by problem."""
    return search.Runs(np.array([np.tile(seeds, (POINTS, 1)).T for seeds in finals]), 0.1, [])


@pytest.mark.parametrize("larger_is_better, marked", [(False, "0.800!"), (True, "0.100!")])
def test_only_what_is_worse_than_random_beyond_its_interval_is_marked(capsys, larger_is_better, marked):
    table = {
        "mine": runs([0.8, 0.8], [0.1, 0.1], [0.4, 0.8]),
        "random": runs([0.5, 0.5], [0.5, 0.5], [0.5, 0.5]),
    }
    search.show("title", table, ["one", "two", "three"], larger_is_better)
    output = capsys.readouterr().out
    assert re.findall(r"\d\.\d{3}!", output) == [marked]


class InThisProcess:
    """An executor that computes where it is asked."""

    def __init__(self, **options):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.fixture
def tiny_search(monkeypatch):
    """One problem of each kind, one seed, four gangs, one rival, eight trainings."""
    monkeypatch.setattr(search, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(search, "TRAININGS", 8)
    monkeypatch.setattr(search, "TRAININGS_PER_GANG", 1)
    monkeypatch.setitem(
        search.SETS, "REPORTED", [search.PROBLEMS["hartmann3-bad"], search.PROBLEMS["captioner"]]
    )
    for rivals in ("RIVALS", "MULTI_OBJECTIVE_RIVALS"):
        monkeypatch.setattr(search, rivals, {"random": RIVALS["random"]})
    monkeypatch.setenv("SEARCH_SEEDS", "1")
    monkeypatch.setenv("SEARCH_GANGS", "4")


@pytest.mark.timeout(60)  # imports Optuna
def test_search(tiny_search, capsys):
    search.main()
    output = capsys.readouterr().out
    assert ratio("search", output) > 0
    assert len(re.findall(r"^captune auto +>?\d", output, re.M)) == 3
    assert re.search(r"^took \d+\.\d minutes$", output, re.M)


@pytest.mark.timeout(60)
def test_transfer(tiny_search, monkeypatch, capsys):
    monkeypatch.setattr(transfer, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(transfer, "TRAININGS", 4)
    monkeypatch.setenv("TRANSFER_SEEDS", "1")
    transfer.main()
    output = capsys.readouterr().out
    assert ratio("transfer", output) > 0
    assert len(re.findall(r"^(?:nothing|the same|near|far) +\d\.\d+ ", output, re.M)) == 2 * 4


def test_a_method_that_fails_keeps_what_it_had_and_is_named(tiny_search, monkeypatch, capsys):
    class Broken(RIVALS["random"]):
        def report(self, trial_id, epoch, losses):
            if trial_id == "4":
                raise RuntimeError("no more")
            return "continue"

    monkeypatch.setitem(search.RIVALS, "broken", Broken)
    table = search.measure(["hartmann3-bad"], ["random", "broken"], 4, 1)
    assert table["broken"].failures == ["RuntimeError: no more"]
    before = table["random"].curves[0, 0, :50]
    assert table["broken"].curves[0, 0].tolist() == [*before, *[before[-1]] * 50]
    search.show("title", table, ["hartmann3-bad"])
    assert "1 of its 1 runs failed, the first: RuntimeError: no more" in capsys.readouterr().out


@pytest.mark.timeout(60)  # imports Optuna
def test_epochs_in_which_ours_diverges_are_spent(tiny_search):
    recurrent = search.PROBLEMS["recurrent-misleading"]
    done = list(search.ours(search.described(recurrent, 8 * recurrent.max_epochs, 0), recurrent, 4))
    assert not any(math.isnan(loss) for report in done for loss in report.losses)
    assert done[-1].epochs_spent > len(done)


def test_slow_rivals_are_left_out_by_name_until_all_are_asked_for(capsys):
    slow, quick = "ray asha + optuna, grace 1", "ray asha + random, grace 1"
    assert slow not in search.methods([slow, "random"], 4, every=False)
    assert f"{slow} left out with 4 gangs" in capsys.readouterr().out
    assert quick in search.methods([quick], 4, every=False)
    assert quick not in search.methods([quick], 64, every=False)
    assert search.methods([slow], 64, every=True) == [*search.OWN, slow]


def test_the_best_cider_is_the_one_that_stood_when_a_share_was_spent():
    run = {"cider": [None, 0.2, None, 0.1, 0.4]}
    best = real_search.best_so_far
    assert best(run, [1] * 5, np.array([1, 2, 4, 5, 9])).tolist() == [0, 0.2, 0.2, 0.4, 0.4]
    assert best(run, [0.1] * 5, np.array([0.5, 0.49])).tolist() == [0.4, 0.2]
    assert best(run, [5, 1, 1, 1, 1], np.array([5.5, 6.0])).tolist() == [0, 0.2]


def test_worker_seconds_are_compared_up_to_what_the_cheapest_method_spent():
    runs = {
        "captune auto": [{"cider": [0.1, 0.5], "worker_s": [4.0, 4.0]}],
        "random": [{"cider": [0.2, 0.3], "worker_s": [1.0, 4.0]}],
    }
    figures = real_search.shown(runs, budget_epochs=2)
    assert figures["captune auto"].tolist() == [[0, 0.1, 0.5, 0, 0, 0.1]]
    assert figures["random"].tolist() == [[0, 0.2, 0.3, 0.2, 0.2, 0.3]]


@pytest.fixture
def tiny_real_search(monkeypatch, tmp_path):
    """Two seeds of trainings of three epochs on twenty scenes."""
    tiny = TrainedProblem(
        name="tiny",
        data={"format": "shapes", "size": 20, "image_size": 16, "cache": str(tmp_path / "cache")},
        model={"encoder_width": 4, "decoder": "gru", "decoder_width": 8},
        space=Space({"learning_rate": Float(1e-4, 1e-2, log=True), "batch_size": Choice([16, 32])}),
        max_epochs=3,
    )
    monkeypatch.setattr(real_search, "ProcessPoolExecutor", InThisProcess)
    earlier = dataclasses.replace(tiny, name="earlier", data={**tiny.data, "size": 24})
    tiny = dataclasses.replace(tiny, earlier=earlier)
    monkeypatch.setattr(real_search, "chosen", lambda cache: [tiny])
    monkeypatch.setenv("REAL_SEARCH_SEEDS", "2")
    monkeypatch.setenv("REAL_SEARCH_TRAININGS", "4")
    monkeypatch.setenv("REAL_SEARCH_RESULTS", str(tmp_path / "results"))


@pytest.mark.slow  # imports Ray Tune, trains
@pytest.mark.timeout(120)
def test_real_search_spends_the_same_under_every_method_and_goes_on_where_it_was(
    tiny_real_search, monkeypatch, tmp_path, capsys
):
    real_search.main()
    assert ratio("real_search", capsys.readouterr().out) >= 0
    kept = [json.loads(file.read_text())["run"] for file in (tmp_path / "results").glob("*.json")]
    assert len(kept) == 2 * len(METHODS)
    # Captune keeps what the best trial may need to be finished, and may find it finished already.
    assert all(12 - 3 < len(run["worker_s"]) <= 12 for run in kept)
    asha, random = (
        json.loads((tmp_path / "results" / f"tiny-{m}-1.json").read_text())["run"]
        for m in ("rayasha+optuna", "random")
    )
    assert [cider is not None for cider in random["cider"]] == [False, False, True] * 4
    assert asha["cider"][0] is not None and asha["trials"] > 4

    lost = tmp_path / "results" / "tiny-random-1.json"
    lost.unlink()
    asked = []
    trained = real_search.search
    monkeypatch.setattr(real_search, "search", lambda *task: asked.append(task[1:]) or trained(*task))
    real_search.main()
    assert "7 of 8 runs are in" in capsys.readouterr().out
    assert asked == [("random", 1, 12)]
    assert json.loads(lost.read_text())["run"]["cider"] == random["cider"]

    monkeypatch.setenv("REAL_SEARCH_TRAININGS", "2")  # another budget: nothing of it is there
    monkeypatch.setattr(real_search, "search", lambda *task: kept[0])
    real_search.main()
    assert "0 of 8 runs are in" in capsys.readouterr().out
