import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from statistics import mean

import optuna
import pytest

from search_spaces import Choice, Float, Space
from tuning.scheduler import Asha
from tuning.searcher import Searcher

SPACE = Space(
    {
        "x": Float(-1, 1),
        "lr": Float(1e-4, 1e-1, log=True),
        "method": Choice(["none", "low_rank"]),
        "ratio": Float(0.1, 0.9, when={"method": ["low_rank"]}),
    }
)


def open_searcher(folder, space=SPACE, **options):
    return Searcher(
        **{"path": folder / "study.journal", "name": "s", "space": space, "mode": "max"} | options
    )


def study(folder, name="s"):
    """The study as `optuna-dashboard` opens it: through the file alone."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


@pytest.fixture
def unsafe_but_fast(monkeypatch):
    """Most of a suggestion's time is waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def complete(searcher, value_of, count):
    configs = []
    for _ in range(count):
        suggestion = searcher.suggest()
        configs.append(dict(suggestion.config))
        searcher.report(suggestion.trial_id, 1, value_of(suggestion.config))
        searcher.finish(suggestion.trial_id, "completed", value_of(suggestion.config))
    return configs


def test_every_end_is_told_truthfully(tmp_path):
    searcher = open_searcher(tmp_path)
    ends = ["completed", "stopped", "diverged", "failed", "out_of_memory"]
    for state in ends:
        suggestion = searcher.suggest()
        assert SPACE.contains(suggestion.config)
        searcher.report(suggestion.trial_id, 1, 0.25)
        searcher.report(suggestion.trial_id, 3, 0.5)
        searcher.finish(suggestion.trial_id, state, 0.75)
    still_open = searcher.suggest()
    assert still_open.trial_id == "00005"

    trials = study(tmp_path).trials
    assert [t.state.name for t in trials] == ["COMPLETE", "PRUNED", "FAIL", "FAIL", "FAIL", "RUNNING"]
    assert [t.value for t in trials] == [0.75, 0.5, None, None, None, None]
    assert trials[1].intermediate_values == {1: 0.25, 3: 0.5}
    assert [t.user_attrs.get("state") for t in trials] == [*ends, None]
    assert study(tmp_path).direction.name == "MAXIMIZE"


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_completed_trial_without_a_number_is_a_failed_one(tmp_path, value):
    searcher = open_searcher(tmp_path)
    searcher.suggest()
    searcher.report("00000", 1, math.nan)
    searcher.finish("00000", "completed", value)
    assert study(tmp_path).trials[0].state.name == "FAIL"


def test_what_is_told_twice_counts_once(tmp_path, recwarn):
    searcher = open_searcher(tmp_path)
    searcher.suggest()
    searcher.report("00000", 1, 0.1, [0.5])
    searcher.report("00000", 1, 0.9)
    searcher.finish("00000", "completed", 0.2)
    searcher.finish("00000", "failed")
    trial = study(tmp_path).trials[0]
    assert trial.intermediate_values == {1: 0.1} and trial.value == 0.2 and trial.state.name == "COMPLETE"
    assert not recwarn.list


def test_unknown_trials_and_states_are_refused(tmp_path):
    searcher = open_searcher(tmp_path)
    searcher.suggest()
    with pytest.raises(ValueError, match="'00007' was never suggested; there are 1 trials"):
        searcher.report("00007", 1, 0.5)
    with pytest.raises(ValueError, match="ends as one of completed.*but got 'paused'"):
        searcher.finish("00000", "paused")


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_restarting_the_process_changes_no_suggestion(tmp_path, algorithm, unsafe_but_fast):
    def value(config):
        return -abs(config["x"])

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    options = {"algorithm": algorithm, "seed": 3, "startup_trials": 4}
    straight = complete(open_searcher(tmp_path / "a", **options), value, 12)
    broken = [complete(open_searcher(tmp_path / "b", **options), value, 3) for _ in range(4)]
    assert straight == sum(broken, [])
    assert len({config["lr"] for config in straight}) == 12
    (tmp_path / "c").mkdir()
    assert straight != complete(open_searcher(tmp_path / "c", **options | {"seed": 4}), value, 12)


def test_configs_come_back_of_open_and_closed_trials(tmp_path):
    searcher = open_searcher(tmp_path)
    suggested = {s.trial_id: dict(s.config) for s in (searcher.suggest() for _ in range(3))}
    searcher.finish("00001", "failed")
    reopened = open_searcher(tmp_path)
    assert reopened.configs() == suggested
    reopened.report("00002", 1, 0.3)
    reopened.finish("00002", "completed", 0.3)
    reopened.report("00002", 2, 0.4)  # of a driver whose tables were behind the study
    assert study(tmp_path).trials[2].intermediate_values == {1: 0.3}
    assert reopened.suggest().trial_id == "00003"


def test_a_trial_whose_suggestion_was_cut_short_is_completed(tmp_path):
    searcher = open_searcher(tmp_path)
    whole = dict(searcher.suggest().config)
    journal = tmp_path / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]))
    (config,) = open_searcher(tmp_path).configs().values()
    assert SPACE.contains(config) and config["lr"] == whole["lr"]


def test_half_a_last_line_is_cut_off(tmp_path):
    searcher = open_searcher(tmp_path)
    complete(searcher, lambda config: config["x"], 3)
    journal = tmp_path / "study.journal"
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker')
    assert complete(open_searcher(tmp_path), lambda config: config["x"], 1)
    for line in journal.read_text().splitlines():
        json.loads(line)
    assert len(study(tmp_path).trials) == 4


@pytest.mark.slow
@pytest.mark.timeout(30)
def test_kill_9_while_writing_loses_nothing_that_was_answered(tmp_path):
    code = f"""
        from pathlib import Path
        from search_spaces import Float, Space
        from tuning.searcher import Searcher
        searcher = Searcher(path=Path({str(tmp_path / "study.journal")!r}), name="s",
                            space=Space({{"x": Float(-1, 1)}}), mode="max")
        while True:
            trial = searcher.suggest()
            searcher.finish(trial.trial_id, "completed", trial.config["x"])
            print(trial.trial_id, repr(trial.config["x"]), flush=True)
    """
    driver = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    answered = [driver.stdout.readline() for _ in range(20)]
    os.kill(driver.pid, signal.SIGKILL)
    answered += driver.stdout.readlines()
    driver.wait()
    answered = [line.split() for line in answered if line.endswith("\n")]

    searcher = open_searcher(tmp_path, space=Space({"x": Float(-1, 1)}))
    trials = study(tmp_path).trials
    for trial_id, value in answered:
        assert trials[int(trial_id)].value == float(value)
    assert len(trials) <= len(answered) + 1
    left = searcher.configs()
    complete(searcher, lambda config: config["x"], 1)
    assert searcher.configs().items() >= left.items()


def test_reopening_with_the_other_mode_is_refused(tmp_path):
    open_searcher(tmp_path)
    with pytest.raises(ValueError, match="was made to maximize"):
        open_searcher(tmp_path, mode="min")


def test_tpe_learns_and_random_does_not(tmp_path, unsafe_but_fast):
    (tmp_path / "tpe").mkdir()
    (tmp_path / "random").mkdir()

    def value(config):
        return -abs(config["x"] - 0.5)

    late = {}
    for algorithm in ("tpe", "random"):
        searcher = open_searcher(tmp_path / algorithm, algorithm=algorithm, seed=1)
        late[algorithm] = mean(value(config) for config in complete(searcher, value, 40)[20:])
    assert late["tpe"] > late["random"] / 2  # less than half as far off


def test_tpe_turns_away_from_where_a_constraint_is_broken(tmp_path, unsafe_but_fast):
    late = {}
    for bounded in (True, False):  # the larger x the better, but it must stay below 0
        folder = tmp_path / f"{bounded}"
        folder.mkdir()
        searcher = open_searcher(folder, space=Space({"x": Float(-1, 1)}), seed=1)
        xs = []
        for _ in range(40):
            suggestion = searcher.suggest()
            xs.append(suggestion.config["x"])
            searcher.report(suggestion.trial_id, 1, xs[-1], [xs[-1]] if bounded else [])
            searcher.finish(suggestion.trial_id, "completed", xs[-1])
        late[bounded] = mean(xs[20:])
    assert late[True] < 0.3 < 0.6 < late[False]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_under_asha_tpe_searches_better_than_random(tmp_path, unsafe_but_fast):
    """The pairing that Optuna 5's defaults got wrong: most trials are stopped, few are ever complete."""
    space = Space({"x": Float(-1, 1), "y": Float(-1, 1), "lr": Float(1e-4, 1e-1, log=True)})

    def score(config, epoch):
        asymptote = (
            1 - config["x"] ** 2 / 2 - config["y"] ** 2 / 2 - (math.log10(config["lr"]) + 2.5) ** 2 / 4
        )
        return asymptote * -math.expm1(-0.5 * epoch)

    def late_mean(algorithm, seed):
        folder = tmp_path / f"{algorithm}{seed}"
        folder.mkdir()
        searcher = open_searcher(folder, space=space, algorithm=algorithm, seed=seed)
        asha = Asha(rungs=[1, 3], reduction_factor=3, mode="max")
        asymptotes = []
        for _ in range(40):
            trial = searcher.suggest()
            state = "completed"
            for epoch in range(1, 10):
                value = score(trial.config, epoch)
                searcher.report(trial.trial_id, epoch, value)
                if asha.report(trial.trial_id, epoch, value).ends:
                    state = "stopped"
                    break
            searcher.finish(trial.trial_id, state, value)
            asymptotes.append(score(trial.config, 100))
        return mean(asymptotes[20:])

    tpe, random = (mean(late_mean(algorithm, seed) for seed in range(4)) for algorithm in ("tpe", "random"))
    assert tpe > random + 0.1
