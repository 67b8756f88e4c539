"""Whether a trainable accepts what an experiment asks of it: settings, searched names, figures, compression.

Imports the trainable; starts nothing. What it says of its own settings is its own business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from search_spaces.nearest import nearest
from trainables.trial import GANG_METRICS, SettingsError, refuse_immutable, resolve_trainable

if TYPE_CHECKING:
    from tuning.experiment import Experiment


def ask_trainable(experiment: Experiment, *, data_is_here: bool) -> None:
    """Ask it about all of that.

    Args:
        data_is_here: False: what it says about `data.path` means nothing.

    Raises:
        SettingsError: it does not exist, or refuses something.
    """
    trainable = resolve_trainable(experiment.trainable)
    if experiment.search.algorithm == "pbt":
        refuse_immutable(experiment.space, getattr(trainable, "mutable", frozenset()), experiment.trainable)
    if hasattr(trainable, "check"):
        searched = {name: domain.examples() for name, domain in experiment.space.items()}
        try:
            trainable.check(experiment.data, experiment.model, searched)
        except SettingsError as error:
            if data_is_here or error.path != ("data", "path"):
                raise
    if experiment.training.on_out_of_memory == "accumulate" and not hasattr(trainable, "with_less_memory"):
        rule = f"the trainable {experiment.trainable!r} has no `with_less_memory`, use fail"
        raise SettingsError(("training", "on_out_of_memory"), f"got 'accumulate': {rule}")
    if experiment.compression.search == "children":
        _ask_about_variants(experiment, trainable)
    if (reported := vars(trainable).get("reported_metrics")) is not None:  # a subclass may report more
        _refuse_unreported(experiment, reported)


def _ask_about_variants(experiment: Experiment, trainable: Any) -> None:
    if not hasattr(trainable, "variants"):
        rule = f"got 'children': the trainable {experiment.trainable!r} has no `variants`, use joint"
        raise SettingsError(("compression", "search"), rule)
    if hasattr(trainable, "check_variants"):
        compression = experiment.compression
        trainable.check_variants(list(compression.methods), list(compression.ratios))


def _refuse_unreported(experiment: Experiment, reported: frozenset[str]) -> None:
    known = sorted({*reported, *GANG_METRICS})
    for section in ("objectives", "constraints"):
        for index, asked in enumerate(getattr(experiment, section)):
            if asked.metric not in known:
                rule = f"got {asked.metric!r}: {experiment.trainable!r} does not report it"
                place = (section, str(index), "metric")
                raise SettingsError(place, rule + nearest(asked.metric, known))
