from pathlib import Path

import pytest

from trainables.captioning.settings import DataSettings, Settings
from trainables.trial import TrialContext, resolve_trainable
from tuning.experiment import Experiment, ExperimentError
from tuning.experiment_file import read_experiment_file
from tuning.simulation.simulator import simulate
from tuning.simulation.trainable_curves import TrainableCurves

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


def test_an_own_trainable_is_tuned():
    """The whole search in this process, without Ray: it finds a fit close to the noise."""
    experiment = Experiment.load(EXAMPLES / "polynomial.yaml")
    curves = TrainableCurves(experiment)
    done = list(simulate(experiment, curves, gangs=1, listeners=[curves]))
    assert len({epoch.trial_id for epoch in done}) == experiment.budget.trials == 20
    noise = experiment.data["noise"] ** 2
    assert 0.8 * noise < min(epoch.metrics["val_loss"] for epoch in done) < 2 * noise


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
