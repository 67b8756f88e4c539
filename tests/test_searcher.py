"""What a searcher keeps on disk, tells its proposer, and takes up again."""

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
from tuning.search.optuna_proposers import Modelled
from tuning.search.proposers import Grid, Proposal, Random, Sobol
from tuning.search.ranking import Standing
from tuning.search.searcher import Searcher

SPACE = Space(
    {
        "x": Float(-1, 1),
        "lr": Float(1e-4, 1e-1, log=True),
        "method": Choice(["none", "low_rank"]),
        "ratio": Float(0.1, 0.9, when={"method": ["low_rank"]}),
    }
)


def tpe(space, seed=0, *, levels=(1,), enough=10):
    return Modelled(space, seed, algorithm="tpe", levels=levels, enough=enough)


def open_searcher(folder, space=SPACE, **options):
    options = {"modes": ["max"], "proposer": Random(space, 0)} | options
    return Searcher(path=folder / "study.journal", name="s", space=space, **options)


def study(folder, name="s"):
    """The study as `optuna-dashboard` opens it: through the file alone."""
    backend = optuna.storages.journal.JournalFileBackend(str(folder / "study.journal"))
    return optuna.load_study(study_name=name, storage=optuna.storages.JournalStorage(backend))


@pytest.fixture(autouse=True)
def unsafe_but_fast(monkeypatch, request):
    """Most of a suggestion's time is waiting for the disk."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)


class Told:
    """Draws at random, and notes what it was shown."""

    def __init__(self, space=SPACE):
        self.random, self.shown = Random(space, 0), []

    def propose(self, number, observed):
        self.shown.append((number, [(dict(o.results), o.over, o.failed, o.generation) for o in observed]))
        return Proposal(self.random.propose(number, observed).config, generation=number // 2)


def complete(searcher, value_of, count, mode="max"):
    configs = []
    for _ in range(count):
        suggestion = searcher.suggest()
        configs.append(dict(suggestion.config))
        value = value_of(suggestion.config)
        searcher.report(suggestion.trial_id, 1, Standing((-value if mode == "max" else value,)))
        searcher.finish(suggestion.trial_id, "completed")
    return configs


def test_every_end_is_told_truthfully(tmp_path):
    searcher = open_searcher(tmp_path)
    ends = ["completed", "stopped", "paused", "diverged", "failed", "out_of_memory"]
    for state in ends:
        suggestion = searcher.suggest()
        assert SPACE.contains(suggestion.config)
        searcher.report(suggestion.trial_id, 1, Standing((-0.25,)))
        searcher.report(suggestion.trial_id, 3, Standing((-0.5,)))
        searcher.finish(suggestion.trial_id, state)
    still_open = searcher.suggest()
    assert still_open.trial_id == "00006"

    trials = study(tmp_path).trials
    states = ["COMPLETE", "PRUNED", "PRUNED", "FAIL", "FAIL", "FAIL", "RUNNING"]
    assert [t.state.name for t in trials] == states
    assert [t.value for t in trials] == [0.5, 0.5, 0.5, None, None, None, None]
    assert trials[1].intermediate_values == {1: 0.25, 3: 0.5}
    assert [t.user_attrs.get("state") for t in trials] == [*ends, None]
    assert [t.params for t in trials] == list(searcher.configs().values())
    assert trials[0].distributions["lr"] == SPACE["lr"].distribution()
    assert study(tmp_path).direction.name == "MAXIMIZE"


def test_with_mode_min_losses_are_values(tmp_path):
    searcher = open_searcher(tmp_path, modes=["min"])
    complete(searcher, lambda config: 0.75, 1, mode="min")
    assert study(tmp_path).best_value == 0.75 and study(tmp_path).direction.name == "MINIMIZE"


def test_several_objectives_on_disk(tmp_path):
    searcher = open_searcher(tmp_path, modes=["max", "min"])
    for state in ("completed", "stopped", "paused"):
        trial_id = searcher.suggest().trial_id
        searcher.report(trial_id, 1, Standing((-0.5, 20.0)))
        searcher.report(trial_id, 3, Standing((-0.75, 21.0), violation=0.05), [0.05])
        searcher.finish(trial_id, state)
    searcher.report(searcher.suggest().trial_id, 1, Standing((math.nan, 1.0)))
    searcher.finish("00003", "completed")
    opened = study(tmp_path)
    assert [direction.name for direction in opened.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [t.state.name for t in opened.trials] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"]
    assert opened.trials[0].values == [0.75, 21.0]
    for trial in opened.trials[:3]:
        assert trial.user_attrs["values/1"] == [0.5, 20.0] and trial.user_attrs["values/3"] == [0.75, 21.0]
        assert list(trial.constraints.values()) == [0.05]


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_a_completed_trial_without_a_number_is_a_failed_one(tmp_path, value):
    searcher = open_searcher(tmp_path)
    searcher.suggest()
    searcher.report("00000", 1, Standing((0.5,)))
    if value is not None:
        searcher.report("00000", 2, Standing((value,)))
    else:
        searcher.suggest()
        searcher.finish("00001", "completed")
    searcher.finish("00000", "completed")
    states = [trial.state.name for trial in study(tmp_path).trials]
    assert states == (["FAIL"] if value is not None else ["COMPLETE", "FAIL"])


@pytest.mark.parametrize("state", ["paused", "stopped"])
def test_a_trial_that_stopped_at_no_number_is_pruned_without_a_value(tmp_path, state):
    searcher = open_searcher(tmp_path)
    searcher.suggest()
    searcher.report("00000", 1, Standing((math.nan,)))
    searcher.finish("00000", state)
    trial = study(tmp_path).trials[0]
    assert trial.state.name == "PRUNED" and trial.value is None


def test_what_is_told_twice_counts_once(tmp_path, recwarn):
    searcher = open_searcher(tmp_path)
    searcher.suggest()
    searcher.report("00000", 1, Standing((-0.1,)), [0.5])
    searcher.report("00000", 1, Standing((-0.1,)), [0.5])
    before = (tmp_path / "study.journal").read_bytes()
    searcher.report("00000", 1, Standing((-0.1,)), [0.5])
    assert (tmp_path / "study.journal").read_bytes() == before
    searcher.finish("00000", "completed")
    searcher.finish("00000", "failed")
    trial = study(tmp_path).trials[0]
    assert trial.intermediate_values == {1: 0.1} and trial.value == 0.1 and trial.state.name == "COMPLETE"
    assert not recwarn.list


def test_unknown_trials_and_states_are_refused(tmp_path):
    searcher = open_searcher(tmp_path)
    searcher.suggest()
    with pytest.raises(ValueError, match="'00007' was never suggested; there are 1 trials"):
        searcher.report("00007", 1, Standing((0.5,)))
    with pytest.raises(ValueError, match="ends as one of completed.*but got 'running'"):
        searcher.finish("00000", "running")


def test_the_proposer_is_shown_what_happened(tmp_path):
    proposer = Told()
    searcher = open_searcher(tmp_path, proposer=proposer)
    for state in ("completed", "stopped", "paused", "failed"):
        trial_id = searcher.suggest().trial_id
        searcher.report(trial_id, 1, Standing((0.5,), violation=0.25))
        searcher.finish(trial_id, state)
    searcher.suggest()
    number, observed = proposer.shown[-1]
    results = {1: Standing((0.5,), violation=0.25)}
    assert number == 4
    assert observed == [
        (results, True, False, 0),
        (results, True, False, 0),
        (results, False, False, 1),
        (results, True, True, 1),
    ]


@pytest.mark.parametrize("proposer", [tpe, Random, Sobol])
def test_restarting_the_process_changes_no_suggestion(tmp_path, proposer):
    """The driver tells the outcomes again; every restart comes before all of them are told."""

    def value(config):
        return -abs(config["x"])

    def searcher_in(name, seed=3):
        (tmp_path / name).mkdir(exist_ok=True)
        options = {"enough": 4} if proposer is tpe else {}
        return open_searcher(tmp_path / name, proposer=proposer(SPACE, seed, **options))

    straight = complete(searcher_in("a"), value, 12)
    broken = []
    for _ in range(4):
        searcher = searcher_in("b")
        for trial_id, config in searcher.configs().items():
            searcher.report(trial_id, 1, Standing((-value(config),)))
            searcher.finish(trial_id, "completed")
        broken += complete(searcher, value, 3)
    assert straight == broken
    assert len({config["lr"] for config in straight}) == 12
    assert straight != complete(searcher_in("c", seed=4), value, 12)


def test_generations_come_back_after_a_restart(tmp_path):
    searcher = open_searcher(tmp_path, proposer=Told())
    for _ in range(5):
        searcher.suggest()
    reopened = Told()
    open_searcher(tmp_path, proposer=reopened).suggest()
    assert [generation for *_, generation in reopened.shown[0][1]] == [0, 0, 1, 1, 2]


def test_configs_come_back_of_open_and_closed_trials(tmp_path):
    searcher = open_searcher(tmp_path)
    suggested = {s.trial_id: dict(s.config) for s in (searcher.suggest() for _ in range(3))}
    searcher.finish("00001", "failed")
    reopened = open_searcher(tmp_path)
    assert reopened.configs() == suggested
    reopened.report("00002", 1, Standing((-0.3,)))
    reopened.finish("00002", "completed")
    reopened.report("00002", 2, Standing((-0.4,)))  # of a driver whose tables were behind the study
    assert study(tmp_path).trials[2].intermediate_values == {1: 0.3}
    assert reopened.suggest().trial_id == "00003"


def test_a_paused_trial_of_an_earlier_run_goes_on_under_its_name(tmp_path):
    """Its study says PRUNED; a run with a larger budget takes it up all the same."""
    searcher = open_searcher(tmp_path)
    searcher.suggest()
    searcher.report("00000", 1, Standing((0.5,)))
    searcher.finish("00000", "paused")
    proposer = Told()
    reopened = open_searcher(tmp_path, proposer=proposer)
    reopened.report("00000", 1, Standing((0.5,)))
    reopened.report("00000", 3, Standing((0.25,)))
    reopened.finish("00000", "completed")
    reopened.suggest()
    assert proposer.shown == [(1, [({1: Standing((0.5,)), 3: Standing((0.25,))}, True, False, 0)])]
    assert study(tmp_path).trials[0].state.name == "PRUNED"


def test_start_configurations_come_first_and_are_completed(tmp_path):
    start = [{"method": "low_rank", "x": 0.5}, {"method": "none"}, {"lr": 0.01}]
    first = [Proposal(config) for config in start]
    searcher = open_searcher(tmp_path, start=first)
    suggested = [searcher.suggest().config for _ in range(2)]
    searcher = open_searcher(tmp_path, start=first)  # not over again after a restart
    suggested += [searcher.suggest().config for _ in range(2)]
    drawn = [Random(SPACE, 0).propose(number, []).config for number in range(4)]
    assert all(SPACE.contains(config) for config in suggested)
    assert suggested[0] == SPACE.complete(start[0], drawn[0])
    assert suggested[0] | start[0] == suggested[0]
    assert suggested[1] == {"x": drawn[1]["x"], "lr": drawn[1]["lr"], "method": "none"}
    assert suggested[2]["lr"] == 0.01 and suggested[2]["x"] == drawn[2]["x"]
    assert suggested[3] == drawn[3]


def test_start_configurations_have_their_domains_types_before_a_restart_too(tmp_path):
    space = Space({"size": Choice([16, 32]), "x": Float(0, 1)})
    start = [Proposal({"size": 16.0, "x": 0})]
    suggested = open_searcher(tmp_path, space, start=start).suggest().config
    assert repr(suggested) == repr({"size": 16, "x": 0.0})


def test_start_configurations_run_also_where_the_proposer_has_no_more(tmp_path):
    space = Space({"c": Choice(["a", "b"])})
    searcher = open_searcher(
        tmp_path, space=space, proposer=Grid(space, 0), start=[Proposal({"c": c}) for c in "aab"]
    )
    assert [searcher.suggest().config["c"] for _ in range(3)] == ["a", "a", "b"]
    assert searcher.suggest() is None
    assert len(study(tmp_path).trials) == 3  # what is not suggested opens no trial


def test_without_a_path_the_study_is_in_memory():
    searcher = Searcher(path=None, name="s", space=SPACE, modes=["max"], proposer=Random(SPACE, 0))
    assert complete(searcher, lambda config: config["x"], 3) == list(searcher.configs().values())


@pytest.mark.parametrize("lines", [1, 2])
def test_a_journal_that_was_cut_short_knows_less_and_goes_on(tmp_path, lines):
    searcher = open_searcher(tmp_path)
    whole = [dict(searcher.suggest().config) for _ in range(3)]
    journal = tmp_path / "study.journal"
    kept = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(kept[:-lines]))
    reopened = open_searcher(tmp_path)
    known = list(reopened.configs().values())
    assert known == whole[: len(known)] and len(known) == 3 - lines  # one line a suggestion
    assert reopened.suggest().config == whole[len(known)]


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
def test_kill_9_while_writing_loses_nothing_that_was_answered(tmp_path):
    code = f"""
        from pathlib import Path
        from search_spaces import Float, Space
        from tuning.search.proposers import Random
        from tuning.search.ranking import Standing
        from tuning.search.searcher import Searcher
        space = Space({{"x": Float(-1, 1)}})
        searcher = Searcher(path=Path({str(tmp_path / "study.journal")!r}), name="s", space=space,
                            modes=["max"], proposer=Random(space, 0))
        while True:
            trial = searcher.suggest()
            searcher.report(trial.trial_id, 1, Standing((-trial.config["x"],)))
            searcher.finish(trial.trial_id, "completed")
            print(trial.trial_id, repr(float(trial.config["x"])), flush=True)
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


@pytest.mark.parametrize("modes", [["min"], ["max", "max"]])
def test_reopening_with_other_objectives_is_refused(tmp_path, modes):
    open_searcher(tmp_path)
    with pytest.raises(ValueError, match="was made to maximize"):
        open_searcher(tmp_path, modes=modes)


def test_tpe_learns_and_random_does_not(tmp_path):
    def value(config):
        return -abs(config["x"] - 0.5)

    late = {}
    for proposer in (tpe, Random):
        folder = tmp_path / proposer.__name__
        folder.mkdir()
        searcher = open_searcher(folder, proposer=proposer(SPACE, 1))
        late[proposer] = mean(value(config) for config in complete(searcher, value, 40)[20:])
    assert late[tpe] > late[Random] / 2  # less than half as far off


def test_tpe_turns_away_from_where_a_constraint_is_broken(tmp_path):
    late = {}
    space = Space({"x": Float(-1, 1)})
    for bounded in (True, False):  # the larger x the better, but it must stay below 0
        folder = tmp_path / f"{bounded}"
        folder.mkdir()
        searcher = open_searcher(folder, space=space, proposer=tpe(space, 1))
        xs = []
        for _ in range(40):
            suggestion = searcher.suggest()
            xs.append(suggestion.config["x"])
            excess = xs[-1] if bounded else -1.0
            searcher.report(suggestion.trial_id, 1, Standing((-xs[-1],), max(0.0, excess)), [excess])
            searcher.finish(suggestion.trial_id, "completed")
        late[bounded] = mean(xs[20:])
    assert late[True] < 0.3 < 0.6 < late[False]
