import subprocess
import sys
import textwrap
import time

import pytest

from trainables.curves import Curves
from trainables.trial import SettingsError, TrialContext, TrialDiverged, resolve_trainable


def trial(context=None, **config):
    curves = Curves()
    curves.setup(config, context or TrialContext(trial_id="t"))
    return curves


def scores(curves, epochs):
    figures = []
    for _ in range(epochs):
        curves.train_epoch()
        figures.append(curves.evaluate(full=True)["score"])
    return figures


def test_the_curve_rises_towards_its_asymptote():
    figures = scores(trial(learning_rate=10**-2.5, momentum=0.9), 40)
    assert figures == sorted(figures)
    assert figures[0] == pytest.approx(0.2592, abs=1e-4) and figures[-1] == pytest.approx(1, abs=1e-4)


def test_it_reports_what_it_says():
    curves = trial()
    assert {**curves.train_epoch(), **curves.evaluate(full=True)}.keys() == curves.reported_metrics


def test_a_high_learning_rate_leads_early_and_loses_late():
    fast, best = scores(trial(learning_rate=10**-2.1), 30), scores(trial(learning_rate=10**-2.5), 30)
    assert fast[0] > best[0] and fast[-1] < best[-1]


def test_noise_depends_on_the_seed_alone():
    def run(seed, rank=0):
        return scores(trial(TrialContext(trial_id="t", seed=seed, rank=rank, world_size=2), noise=0.1), 5)

    assert run(3) == run(3, rank=1) != run(4)


def test_a_resumed_trial_goes_on_where_it_was(tmp_path):
    whole = scores(trial(noise=0.1), 6)
    first = trial(noise=0.1)
    scores(first, 4)
    first.save(tmp_path)
    second = trial(noise=0.1)
    second.load(tmp_path)
    assert scores(second, 2) == whole[4:]


def test_troubles_happen_when_told():
    diverging, failing = trial(diverge_at_epoch=2), trial(fail_at_epoch=1)
    diverging.train_epoch()
    with pytest.raises(TrialDiverged, match="epoch 2"):
        diverging.train_epoch()
    with pytest.raises(RuntimeError, match="epoch 1"):
        failing.train_epoch()


def test_an_epoch_takes_the_time_it_is_told():
    curves = trial(seconds_per_epoch=0.05)
    before = time.perf_counter()
    curves.train_epoch()
    assert time.perf_counter() - before >= 0.05


def test_a_crash_kills_the_process_once(tmp_path):
    script = textwrap.dedent(f"""
        from trainables.curves import Curves
        from trainables.trial import TrialContext
        curves = Curves()
        curves.setup(dict(crash_at_epoch=2, crash_marker={str(tmp_path / "m")!r}), TrialContext(trial_id="t"))
        curves.train_epoch()
        curves.train_epoch()
        print("through")
    """)
    first, second = (subprocess.run([sys.executable, "-c", script], capture_output=True) for _ in range(2))
    assert (first.returncode, first.stdout) == (1, b"")
    assert second.returncode == 0 and b"through" in second.stdout


@pytest.mark.parametrize(
    ("data", "settings", "searched", "path"),
    [
        ({"format": "x"}, {}, {}, ("data",)),
        ({}, {"momentum": 1.5}, {}, ("model", "momentum")),
        ({}, {}, {"learning_rate": [1e-3, -1]}, ("search_space", "learning_rate")),
        ({}, {}, {"learning_rte": [1e-3]}, ("search_space", "learning_rte")),
    ],
)
def test_settings_that_cannot_work_are_refused(data, settings, searched, path):
    with pytest.raises(SettingsError) as caught:
        Curves.check(data, settings, searched)
    assert caught.value.path == path


def test_it_is_shipped_by_name():
    assert resolve_trainable("curves") is Curves
