from pathlib import Path

import numpy as np
import pytest

from trainables.captioning.settings import DataSettings, Settings
from trainables.order import Failure, Report
from trainables.trial import TrialContext, TrialDiverged, resolve_trainable
from tuning.budget import BudgetGuard
from tuning.experiment import Experiment, ExperimentError
from tuning.experiment_file import read_experiment_file
from tuning.search import Search
from tuning.searcher import Searcher

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_a_valid_experiment(path):
    tree, _ = read_experiment_file(path)
    experiment = Experiment.from_dict(tree)
    assert experiment.name == path.stem
    assert Experiment.from_dict(experiment.to_dict()) == experiment
    if experiment.trainable == "captioning":  # its data need not be there
        DataSettings.model_validate(experiment.data)
        Settings.from_flat(experiment.model)
        for name, domain in experiment.space.items():
            for value in domain.examples():
                Settings.from_flat({**experiment.model, name: value})


def test_an_own_trainable_is_under_fifty_lines_and_refuses_what_it_does_not_know():
    assert len((EXAMPLES / "polynomial.py").read_text().splitlines()) < 50
    with pytest.raises(ExperimentError, match="search_space.degre: is no setting here"):
        Experiment.load(EXAMPLES / "polynomial.yaml", ["search_space={degre: {int: [1, 2]}}"])


def run_trial(experiment, search, run):
    trial = resolve_trainable(experiment.trainable)()
    trial.setup({**experiment.model, **run.config}, TrialContext(trial_id=run.trial_id, data=experiment.data))
    for epoch in range(1, experiment.scheduler.max_epochs + 1):
        try:
            metrics = trial.train_epoch() | trial.evaluate(full=True)
        except TrialDiverged as error:
            search.fail(run.trial_id, Failure(state="diverged", reason=str(error)))
            return None
        report = Report(epoch=epoch, metrics=metrics, attempt=1, node="here")
        if search.report(run.trial_id, report).ends:
            return metrics["val_loss"]
    raise AssertionError("the search must end a trial at its last epoch")


@pytest.mark.slow
@pytest.mark.timeout(20)
def test_an_own_trainable_is_tuned(tmp_path):
    """The whole search in this process, without Ray: it finds a fit close to the noise."""
    experiment = Experiment.load(EXAMPLES / "polynomial.yaml")
    searcher = Searcher(path=tmp_path / "study.journal", name="p", space=experiment.space, mode="min")
    search = Search(experiment, searcher=searcher, budget=BudgetGuard(trials=20, time_s=None))
    losses = []
    while (run := search.next_run()) is not None:
        losses.append(run_trial(experiment, search, run))
    assert len(losses) == 20 and search.finished
    noise = experiment.data["noise"] ** 2
    assert noise < np.nanmin([x for x in losses if x is not None]) < 2 * noise


def test_an_own_trainable_goes_on_from_its_checkpoint(tmp_path):
    experiment = Experiment.load(EXAMPLES / "polynomial.yaml")
    config = {**experiment.model, "degree": 5, "learning_rate": 0.1, "ridge": 1e-4}
    one, two = (resolve_trainable(experiment.trainable)() for _ in range(2))
    one.setup(config, TrialContext(trial_id="0", data=experiment.data))
    one.train_epoch()
    one.save(tmp_path)
    two.setup(config, TrialContext(trial_id="0", data=experiment.data))
    two.load(tmp_path)
    assert two.evaluate(full=True) == one.evaluate(full=True)
