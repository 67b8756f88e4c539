"""The model-based search: its numbers against other ways to get them, its choices by where they go."""

import math
import re

import moocore
import numpy as np
import pytest
import torch
from scipy.stats import qmc

from search_spaces import Choice, Float, Int, Space
from trainables.order import Failure
from tuning.events import TrialStarted
from tuning.experiment import Experiment
from tuning.search.auto import STARTUP, TO_THE_END, Auto
from tuning.search.encoding import Encoding
from tuning.search.evidence import MODELLED, _most_telling, _scores
from tuning.search.gaussian_process import GaussianProcess
from tuning.search.proposers import Observed
from tuning.search.ranking import Standing
from tuning.search.worth import chance_to_improve, expected_gain, highest_prices
from tuning.simulation.simulator import simulate

SPACE = Space(
    {
        "rate": Float(1e-4, 1e-1, log=True),
        "width": Int(8, 64, step=8),
        "kind": Choice(["plain", "gated"]),
        "gate": Float(0, 1, when={"kind": ["gated"]}),
    }
)


def problem(**changes):
    tree = {
        "name": "bowl",
        "trainable": "curves",
        "search_space": {"x": {"float": [0, 1]}, "y": {"float": [0, 1]}, "k": {"choice": ["a", "b"]}},
        "objectives": [{"metric": "loss", "mode": "min"}],
        "search": {"algorithm": "auto", "seed": 1},
        "scheduler": {"max_epochs": 9},
    }
    return Experiment.from_dict(tree | changes)


def bowl(trial_id, config, epoch):
    off = (config["x"] - 0.3) ** 2 + (config["y"] - 0.8) ** 2 + 0.3 * (config["k"] == "b")
    return {"loss": off + 1 / epoch, "other": config["x"]}


def configs(experiment, curves=bowl, gangs=2):
    """Configurations in the order of their trials."""
    return [
        c
        for _, c in sorted({d.trial_id: d.config for d in simulate(experiment, curves, gangs=gangs)}.items())
    ]


def in_each_mode(*, trials, epochs):
    """Parametrizes `changes`: the model only proposes, or promotes with either budget."""
    beside = {"budget": {"trials": trials}, "scheduler": {"algorithm": "asha", "max_epochs": 9}}
    deciding = [{"budget": {"trials": trials}}, {"budget": {"epochs": epochs}}]
    return pytest.mark.parametrize("changes", [beside, *deciding], ids=["beside asha", "trials", "epochs"])


@in_each_mode(trials=40, epochs=200)
def test_proposals_come_to_where_the_loss_is_least(changes):
    last = configs(problem(**changes))[-10:]
    near = [c for c in last if abs(c["x"] - 0.3) < 0.15 and abs(c["y"] - 0.8) < 0.15 and c["k"] == "a"]
    assert len(near) >= 7


def test_the_same_seed_makes_the_same_choices_and_another_others():
    def epochs(seed):
        done = simulate(
            problem(budget={"epochs": 60}, search={"algorithm": "auto", "seed": seed}), bowl, gangs=3
        )
        return [(epoch.trial_id, epoch.epoch, epoch.config) for epoch in done]

    assert epochs(1) == epochs(1) != epochs(2)


@in_each_mode(trials=18, epochs=80)
def test_no_configuration_is_tried_twice_while_there_is_another(changes):
    space = {"x": {"choice": [0.1, 0.3, 0.5]}, "y": {"int": [0, 2]}, "k": {"choice": ["a", "b"]}}
    tried = configs(problem(**changes, search_space=space))
    assert len({tuple(sorted(config.items())) for config in tried[:18]}) == min(len(tried), 18) >= 12


class Starts:
    """A listener that keeps what began or went on, and why."""

    def __init__(self):
        self.first, self.again = {}, []

    def handle(self, event):
        if isinstance(event, TrialStarted):
            begun = event.trial_id in self.first
            self.again.append(event.why) if begun else self.first.setdefault(event.trial_id, event.why)

    def tick(self):
        pass


def reasons(curves=bowl, gangs=2, **changes):
    """Why trials began, in their order, and why any went on, in that of time."""
    starts = Starts()
    list(simulate(problem(**changes), curves, gangs=gangs, listeners=[starts]))
    return [why for _, why in sorted(starts.first.items())], starts.again


def test_every_decision_says_why():
    began, went_on = reasons(budget={"epochs": 200})
    assert began[:STARTUP] == ["drawn at random: fewer than 8 trials have a result"] * STARTUP
    by_model = r"\d+% chance to end best(, an epoch worth \d+\.\d times that of the best paused trial)?"
    drawn = "drawn at random: one decision in 20 is"
    assert all(why == drawn or re.fullmatch(by_model, why) for why in began[STARTUP + 1 :])
    by_model = r"\d+% chance to end best, an epoch worth \d+\.\d times that of a new trial"
    by_rank = r"rung \d: the best that waits, \d+ of \d+ promoted \(ASHA\)"
    *most, last = went_on
    assert all(re.fullmatch(f"{by_model}|{by_rank}", why) for why in most)
    assert any(re.fullmatch(by_model, why) for why in most)
    times = [float(why.split("worth ")[1].split()[0]) for why in went_on if "worth" in why]
    assert times and min(times) >= 1.0, "what is chosen is worth most"
    assert last == "the best so far, trained to its end" or re.match(by_model, last)


def test_beside_another_scheduler_the_reason_is_a_chance():
    began, went_on = reasons(budget={"trials": 20}, scheduler={"algorithm": "asha", "max_epochs": 9})
    assert all(re.fullmatch(r"\d+% chance to end best|drawn at random: .*", why) for why in began)
    assert all(why.startswith(("rung ", "the best so far")) for why in went_on)


@pytest.mark.parametrize("trials", [1, 3, 15, 16, 24, 50])
@pytest.mark.parametrize("gangs", [1, 6])
def test_with_a_budget_of_trials_all_begin_and_have_as_many_epochs_as_under_asha(trials, gangs):
    """The best is finished beside that, under either."""

    def epochs(algorithm):
        done, scheduler = {}, {"algorithm": algorithm, "max_epochs": 9}
        for each in simulate(problem(budget={"trials": trials}, scheduler=scheduler), bowl, gangs=gangs):
            done[each.trial_id] = each.epoch
        assert len(done) == trials and max(done.values()) == 9
        return sum(done.values())

    assert abs(epochs("auto") - epochs("asha")) <= 8


@pytest.mark.parametrize("gangs", [1, 16])
def test_where_trials_fail_the_others_have_no_more_than_under_asha(gangs):
    """40 trials, of which 24 fail in their first epoch: as of 16, 5 go on to epoch 3 and one to 9."""
    done = {}

    def failing(trial_id, config, epoch):
        wrong = int(trial_id) % 5 < 3
        return Failure(state="failed", reason="no memory") if wrong else bowl(trial_id, config, epoch)

    for each in simulate(problem(budget={"trials": 40}), failing, gangs=gangs):
        done[each.trial_id] = each.epoch
    assert len(done) == 16
    *others, second, best = sorted(done.values())
    assert best == 9 and sum(epochs - 1 for epochs in others) <= 5 * 2 + 6 + 8


@pytest.mark.parametrize("gangs", [1, 4])
def test_with_a_budget_of_trials_whoever_is_expected_to_end_best_is_not_left_unfinished(gangs):
    """The order of these trials is the same after every epoch, that of what was measured is not."""
    left = []
    for seed in range(6):
        changes = {"budget": {"trials": 24}, "search": {"algorithm": "auto", "seed": seed}}
        done = {e.trial_id: e for e in simulate(problem(**changes), bowl, gangs=gangs)}.values()
        ends = [(bowl("", each.config, 9)["loss"], each.epoch) for each in done]
        left.append(min(loss for loss, epoch in ends if epoch == 9) - min(ends)[0])
        assert sum(epoch - 1 for _, epoch in ends) <= 8 * 2 + 2 * 6 + 2 * 8
    assert max(left) < 0.01


def test_an_earlier_trial_is_never_the_last_to_be_trained_to_its_end():
    """The best of this experiment is, also where one of another is expected to be better."""
    earlier = [Observed(config={"x": 0.3, "y": 0.8, "k": "a"}, results={9: Standing((1 / 9,))}, over=True)]
    experiment = problem(budget={"trials": 16})
    auto = Auto(experiment.space, 1, levels=(1, 3, 9), trials=16, earlier=earlier)
    observed, reported = [], []
    auto.watch(observed, reported, decides=True)

    def train(number, epoch):
        config = observed[number].config
        observed[number].results[epoch] = Standing((bowl("", config, epoch)["loss"],))
        return auto.report(f"{number:05d}", epoch, observed[number].results[epoch])

    reasons = []
    while True:
        promoted = auto.next_promotion(or_new=len(observed) < 16)
        if promoted is None and len(observed) == 16:
            break
        if promoted is None:
            observed.append(Observed(config=auto.propose(len(observed), observed).config))
        number = int(promoted[0]) if promoted else len(observed) - 1
        reasons.append(promoted[1] if promoted else "")
        done = max(observed[number].results, default=0)
        for epoch in (level for level in (1, 3, 9) if level > done):
            if train(number, epoch).action == "pause":
                break
    assert reasons[-1] == TO_THE_END


def test_the_chance_is_that_of_the_model():
    """Against the share of draws; of two objectives, that none of the known is at least as good in both."""
    known, mean, spread = (
        np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]),
        np.array([0.4, 0.7]),
        np.array([0.5, 0.2]),
    )
    draws = mean + spread * np.random.default_rng(5).standard_normal((200_000, 2))
    one = (draws[:, 0] < known[:, 0].min()).mean()
    assert chance_to_improve(known[:, :1], mean[:1], spread[:1]) == pytest.approx(one, abs=0.005)
    beaten = [(known <= draw).all(axis=1).any() for draw in draws[:20_000]]
    assert chance_to_improve(known, mean, spread) == pytest.approx(1 - np.mean(beaten), abs=0.05)
    assert chance_to_improve(known, mean, spread) == chance_to_improve(known, mean, spread)


@in_each_mode(trials=40, epochs=150)
def test_where_trials_fail_is_kept_away_from(changes):
    tried = {}

    def cliff(trial_id, config, epoch):
        tried[trial_id] = config  # a simulation does not yield what failed
        if config["x"] < 0.5:
            return Failure(state="diverged", reason="loss is nan")
        return bowl(trial_id, config, epoch)

    list(simulate(problem(**changes), cliff, gangs=2))
    later = [config for _, config in sorted(tried.items())][10:]
    assert sum(config["x"] < 0.5 for config in later) <= 0.4 * len(later)


def test_early_epochs_that_mislead_do_not_keep_the_best_from_being_found():
    def crossing(trial_id, config, epoch):
        x = config["x"]
        return {"loss": x if epoch < 9 else 1 - x}  # small x looks good until the last epoch

    done = list(simulate(problem(budget={"epochs": 300}), crossing, gangs=2))
    assert min(epoch.metrics["loss"] for epoch in done if epoch.epoch == 9) < 0.05


def test_with_many_gangs_something_is_whole_soon():
    space = {f"x{axis}": {"float": [0, 1]} for axis in range(5)}

    def slope(trial_id, config, epoch):
        misfortune = 10 * (trial_id == "00008")  # the first one to be paused at the first rung
        return {"loss": sum(value**2 for value in config.values()) + 1 / epoch + misfortune}

    done = simulate(problem(budget={"epochs": 300}, search_space=space), slope, gangs=32)
    whole = {epoch.trial_id for epoch in done if epoch.epoch == 9 and epoch.at_s <= 9}
    chosen = whole - {f"{number:05d}" for number in range(STARTUP)}
    assert len(chosen) >= 3, "as soon as a trial can be, though beginning others is worth more"
    assert "00008" not in chosen, "it is chosen from among several"


def test_several_objectives_are_searched_along_the_front():
    several = problem(
        budget={"epochs": 180},
        objectives=[{"metric": "loss", "mode": "min"}, {"metric": "other", "mode": "min"}],
    )
    last = configs(several)[-12:]
    assert sum(abs(config["y"] - 0.8) < 0.2 and config["k"] == "a" for config in last) >= 7
    xs = [config["x"] for config in last]
    assert max(xs) - min(xs) > 0.1, "the front runs from x = 0 to x = 0.3"


def test_units_and_outliers_of_a_loss_do_not_change_the_choices():
    def epochs(curves):
        return [(epoch.trial_id, epoch.epoch, epoch.config) for epoch in simulate(short, curves, gangs=2)]

    def bad(trial_id, config, epoch, worst):
        return {"loss": worst if config["k"] == "b" else bowl(trial_id, config, epoch)["loss"]}

    short = problem(budget={"epochs": 60})
    assert epochs(bowl) == epochs(lambda *asked: {"loss": 1024 * bowl(*asked)["loss"]})
    assert epochs(lambda *asked: bad(*asked, 1e9)) == epochs(lambda *asked: bad(*asked, 1e30))


def test_a_constraint_is_kept_before_the_loss_counts():
    constrained = problem(budget={"epochs": 150}, constraints=[{"metric": "other", "max": 0.2}])
    last = configs(constrained)[-10:]
    assert sum(c["x"] <= 0.2 for c in last) >= 6
    near = [c for c in last if 0.05 < c["x"] <= 0.25 and abs(c["y"] - 0.8) < 0.2 and c["k"] == "a"]
    assert len(near) >= 6, "the bound is where the loss is least"


def by_definition(process, a, t, b, u):
    """float64 [len(a), len(b)]: the covariance that the docstring of the process states, by numpy alone."""
    values = np.exp(process.parameters.numpy())
    l1, l2, (s1, s2, r, s3, q, *_) = values[:2], values[2:4], values[4:]

    def matern(lengths):
        d = math.sqrt(5) * np.linalg.norm((a[:, None] - b[None]) / lengths, axis=-1)
        return (1 + d + d**2 / 3) * np.exp(-d)

    apart = np.abs(t[:, None] - u[None])
    always, then = s1 * matern(l1), s2 * matern(l2) * np.exp(-apart / r)
    return always + then + s3 * np.exp(-((apart / q) ** 2) / 2)


def noise(process, t):
    """Diagonal matrix that is added where results are concerned."""
    always, early = np.exp(process.parameters.numpy()[-2:])
    return np.diag(always + early * (1 - t) + 1e-5)


@pytest.fixture
def process():
    """One with parameters of its own that knows seven results; and those."""
    rng = np.random.default_rng(0)
    results = rng.random((7, 2)), rng.random(7), rng.standard_normal(7)
    process = GaussianProcess(2)
    process.parameters = torch.tensor(rng.standard_normal(len(process.parameters)) * 0.3)
    process.condition(*results)
    return process, *results


def test_the_process_predicts_as_the_definition_has_it(process):
    process, points, times, losses = process
    rng = np.random.default_rng(1)
    asked, at = rng.random((4, 2)), rng.random(4)
    known = by_definition(process, points, times, points, times) + noise(process, times)
    across = by_definition(process, asked, at, points, times)
    mean, spread = process.predict(asked, at)
    assert np.allclose(mean, across @ np.linalg.solve(known, losses), atol=1e-5)
    prior = np.diag(by_definition(process, asked, at, asked, at))
    assert np.allclose(spread**2, prior - np.diag(across @ np.linalg.solve(known, across.T)), atol=1e-5)


def test_what_a_result_will_tell_is_by_how_much_it_will_narrow_the_prediction(process):
    """Each step's variance is what the prediction's own loses when a result at that time is known, too."""
    process, points, times, losses = process
    asked, at = np.array([[0.3, 0.6]]), np.array([0.3, 0.7, 1.0])
    steps = process.futures(asked, at.tolist())[0]
    variances = []
    for count in range(3):
        more = GaussianProcess(2)
        more.parameters = process.parameters
        more.condition(
            np.concatenate([points, np.repeat(asked, count, axis=0)]),
            np.concatenate([times, at[:count]]),
            np.concatenate([losses, np.zeros(count)]),
        )
        variances.append(more.predict(asked, at[-1:])[1][0] ** 2)
    assert np.allclose(steps[:2] ** 2, -np.diff(variances), atol=1e-5)
    assert np.isclose(steps[2] ** 2, variances[-1], atol=1e-4)


def test_fitting_raises_the_likelihood_and_finds_the_coordinate_that_matters():
    points = qmc.Sobol(3, rng=np.random.default_rng(0)).random(32)
    losses = np.sin(6 * points[:, 1])
    process = GaussianProcess(3)
    process.fit(points, np.ones(32), (losses - losses.mean()) / losses.std(), steps=30)
    lengths = process.parameters[:3]
    assert lengths[1] < lengths[0] and lengths[1] < lengths[2]


def test_the_gain_of_one_objective_is_that_of_sampling():
    rng = np.random.default_rng(0)
    known, mean, spread = np.array([[0.5], [0.2]]), np.array([[0.1], [0.4]]), np.array([[0.3], [0.2]])
    gains = expected_gain(known, rng)(mean, spread)
    sampled = np.clip(0.2 - (mean + spread * rng.standard_normal((1, 200_000))), 0, None).mean(axis=1)
    assert np.allclose(gains, sampled, atol=2e-3)


@pytest.mark.parametrize(("objectives", "off"), [(2, 1e-6), (3, 1e-6), (5, 0.02)])
def test_the_gain_of_several_objectives_is_added_hypervolume(objectives, off):
    rng = np.random.default_rng(1)
    known, mean = rng.random((9, objectives)), rng.random((20, objectives))
    gains = expected_gain(known, rng)(mean, np.full_like(mean, 1e-9))
    reference = known.max(axis=0) + 0.1
    before = moocore.hypervolume(known, ref=reference)
    added = [moocore.hypervolume(np.vstack([known, point]), ref=reference) - before for point in mean]
    assert np.allclose(gains, added, atol=off)


def test_the_gain_of_many_objectives_takes_no_time():
    rng = np.random.default_rng(1)
    known = rng.standard_normal((300, 7))
    known -= known.mean(axis=1, keepdims=True)
    assert (expected_gain(known, rng)(known[:9], np.full((9, 7), 0.3)) > 0).all()


@pytest.mark.parametrize("objectives", [1, 2, 3])
def test_the_price_of_a_training_without_rungs_is_its_gain_by_epoch(objectives):
    rng = np.random.default_rng(2)
    gain = expected_gain(rng.standard_normal((5, objectives)), rng)
    mean, spread = rng.standard_normal((6, objectives)), rng.uniform(0.5, 1, (6, objectives))
    prices = highest_prices(mean, spread[:, None], [7], gain)
    assert np.allclose(np.exp(prices), gain(mean, spread) / 7, rtol=1e-5)


def test_at_its_highest_price_a_training_with_a_rung_neither_wins_nor_loses():
    """Played 400,000 times: pay for the rung, see what it tells, pay for the rest where that still wins."""
    rng = np.random.default_rng(3)
    best, mean, told, left, epochs = 0.2, 0.3, 0.5, 0.4, (1, 8)
    gain = expected_gain(np.array([[best]]), rng)
    (price,) = np.exp(highest_prices(np.array([[mean]]), np.array([[[told], [left]]]), epochs, gain))
    seen = mean + told * rng.standard_normal(400_000)
    goes_on = gain(seen[:, None], np.array([[left]])) > price * epochs[1]
    end = seen + left * rng.standard_normal(len(seen))
    wins = np.where(goes_on, np.clip(best - end, 0, None) - price * epochs[1], 0) - price * epochs[0]
    assert abs(wins.mean()) < 0.1 * price * epochs[0], "the integral is by six points, the play by chance"


@pytest.mark.parametrize("objectives", [1, 2])
def test_a_rung_that_tells_more_is_worth_more(objectives):
    rng = np.random.default_rng(4)
    gain = expected_gain(rng.standard_normal((4, objectives)), rng)
    told = np.sqrt(np.array([0.1, 0.5, 0.9]))
    steps = np.stack([told, np.sqrt(1 - told**2)], 1)[:, :, None].repeat(objectives, 2)
    blind, some, much = highest_prices(np.zeros((3, objectives)), steps, [1, 8], gain)
    assert blind < some < much


def test_points_are_as_far_apart_as_values_are():
    encoding = Encoding(SPACE)
    low, high = {"rate": 1e-4, "width": 8, "kind": "plain"}, {"rate": 1e-1, "width": 8, "kind": "plain"}
    other = low | {"kind": "gated", "gate": 0.5}
    points = encoding.points([low, high, other])
    assert points.shape == (3, encoding.dimensions) == (3, 5)
    assert math.isclose(np.linalg.norm(points[0] - points[1]), 1)
    assert math.isclose(np.linalg.norm(points[0] - points[2]), 1)


def test_neighbours_are_in_the_space_and_mostly_near():
    encoding, rng = Encoding(SPACE), np.random.default_rng(0)
    (config,) = encoding.draw(rng, 1)
    around = [encoding.near(config, rng) for _ in range(200)]
    assert all(SPACE.contains(each) for each in around)
    home = encoding.points([config])[0]
    distances = np.linalg.norm(encoding.points(around) - home, axis=1)
    far = np.linalg.norm(encoding.points(encoding.draw(rng, 200)) - home, axis=1)
    assert np.median(distances) < 0.5 * np.median(far)


def test_beside_another_scheduler_results_and_failures_are_learnt_in_the_order_in_which_they_came():
    """And each report is looked at once: else thousands of trials would cost hours."""
    auto = Auto(SPACE, 0, levels=(1, 9))
    observed = [Observed(SPACE.at(dict.fromkeys(SPACE, 0.5)), {}) for _ in range(3)]
    reported = []
    auto.watch(observed, reported, decides=False)

    def tell(number, epoch):
        observed[number].results[epoch] = Standing((1.0,))
        reported.append((number, epoch))

    for number, epoch in ((1, 1), (0, 1), (0, 2), (0, 9)):
        tell(number, epoch)
    auto.propose(3, observed)
    observed[1].over = observed[1].failed = True
    reported.append((1, 0))
    tell(2, 1)
    auto.propose(3, observed)
    live = list(auto._evidence)
    assert live == [(1, 1), (0, 1), (0, 9), (1, 9), (2, 1)], "the failure counts at the rung that it missed"
    resumed = Auto(SPACE, 0, levels=(1, 9))
    resumed.watch(observed, reported, decides=False)
    resumed.propose(3, observed)
    assert list(resumed._evidence) == live


def test_what_is_infeasible_is_ordered_by_violation_and_then_by_loss():
    """Where nothing keeps the constraints, as with one that is misspelt, the objective still counts."""
    losses, violations = [3.0, 1.0, 2.0, math.nan, 0.5], [math.inf, math.inf, math.inf, 0.0, math.inf]
    standings = [Standing((loss,), violation) for loss, violation in zip(losses, violations, strict=True)]
    assert np.argsort(_scores(standings)[:, 0]).tolist() == [4, 1, 2, 0, 3]
    standings[2] = Standing((9.0,))  # the only feasible one
    standings[0] = Standing((3.0,), 1.0)
    assert np.argsort(_scores(standings)[:, 0]).tolist() == [2, 0, 4, 1, 3]


@pytest.mark.parametrize("objectives", [1, 2])
def test_of_more_results_than_the_model_bears_the_best_are_kept(objectives):
    rng = np.random.default_rng(0)
    losses = rng.random((1000, objectives))
    if objectives == 2:
        losses[:, 1] = 1 - losses[:, 0]  # all on the front
    standings = [Standing(tuple(row)) for row in losses.tolist()]
    for index in range(0, 1000, 10):
        standings[index] = Standing((math.nan,) * objectives)
    kept = set(_most_telling(standings))
    assert len(kept) <= MODELLED
    older = losses[sorted(kept & set(range(1000 - MODELLED // 2)))]
    if objectives == 1:
        finite = [index for index in range(1000) if index % 10]
        assert set(sorted(finite, key=lambda index: losses[index, 0])[: MODELLED // 2]) <= kept
    else:
        assert older[:, 0].min() < 0.05 and older[:, 0].max() > 0.95, "both ends of the front"


def test_failures_of_earlier_experiments_count_as_such():
    good = Observed(SPACE.at(dict.fromkeys(SPACE, 0.2)), {9: Standing((0.1,))}, over=True)
    early = Observed(SPACE.at(dict.fromkeys(SPACE, 0.8)), {1: Standing((0.0,))}, over=True, failed=True)
    never = Observed(SPACE.at(dict.fromkeys(SPACE, 0.9)), {}, over=True, failed=True)
    auto = Auto(SPACE, 0, levels=(1, 9), earlier=[good, early, never])
    assert set(auto._evidence) == {(-1, 9), (-2, 1), (-2, 9), (-3, 1)}
    assert not auto._evidence.standing(-2, 9).finite and not auto._evidence.standing(-3, 1).finite


def test_who_knows_earlier_trials_pauses_the_first_new_one():
    earlier = [Observed(SPACE.at({n: r for n in SPACE}), {1: Standing((r,)), 9: Standing((r,))}, over=True)
               for r in np.linspace(0.1, 0.9, 8)]  # fmt: skip
    for known, action in ((earlier, "pause"), (earlier[:3], "continue")):
        auto = Auto(SPACE, 0, levels=(1, 3, 9), earlier=known)
        auto.watch([Observed(SPACE.at(dict.fromkeys(SPACE, 0.5)), {})], [], decides=True)
        assert auto.report("00000", 1, Standing((0.5,))).action == action
