import contextlib
import re
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from search_spaces import SHIPPED, Choice, Float, Space
from trainables.trial import SettingsError
from tuning.experiment import Experiment, ExperimentError, Scheduler, TooLarge

BASE = """\
name: mine
trainable: own_stub:Stub
data: {path: photos/, image_size: 64}
model: {decoder: gru}
search_space:
  learning_rate: {float: [1e-4, 1e-2], log: true}
objectives: [{metric: cider, mode: max}]
budget: {trials: 4}
training:
  workers: 2
  cpus_per_worker: 1
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write an experiment file whose trainable `own_stub:Stub` accepts learning rates up to 1."""
    (tmp_path / "own_stub.py").write_text(
        textwrap.dedent("""
        from trainables.trial import SettingsError

        class Stub:
            setup = train_epoch = evaluate = save = load = close = lambda self, *given: None

            @classmethod
            def check(cls, data, settings, searched):
                for name, examples in searched.items():
                    if name != "learning_rate":
                        raise SettingsError(("search_space", name), "is unknown; try learning_rate")
                if settings.get("decoder") == "rnn":
                    raise SettingsError(("model", "decoder"), "got 'rnn': there are gru, transformer")
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_stub", raising=False)
    folder = tmp_path / "experiments"
    folder.mkdir()

    def write(text=BASE):
        (folder / "mine.yaml").write_text(text)
        return folder / "mine.yaml"

    return write


def problems(path, *overrides):
    with pytest.raises(ExperimentError) as error:
        Experiment.load(path, overrides)
    return list(error.value.problems)


def test_a_file_is_read_with_its_defaults(write):
    experiment = Experiment.load(write())
    assert experiment.space == Space({"learning_rate": Float(1e-4, 1e-2, log=True)})
    assert experiment.objectives[0].metric == "cider"
    assert experiment.search.algorithm == experiment.scheduler.algorithm == "auto"
    assert experiment.search.from_ == experiment.search.start == () and experiment.scheduler.max_epochs == 9
    assert experiment.folder == Path("captune-results/mine")
    with pytest.raises(ValueError, match="frozen"):
        experiment.name = "other"


def test_resolved_form_comes_back_whole(write):
    experiment = Experiment.load(write(), ["budget.time=1h30m", "constraints=[{metric: size_mb, max: 20}]"])
    again = Experiment.from_dict(yaml.safe_load(yaml.safe_dump(experiment.to_dict())))
    assert again == experiment
    assert again.space == experiment.space and again.budget.time_s == 5400


def test_every_problem_is_named_with_line_value_rule_and_nearest_name(write):
    path = write("""\
name: my photos
tranable: captioning
data: {}
search_space:
  learning_rate: {float: [1e-2, 1e-4], log: true}
  dropout: {flaot: [0, 1]}
  ratio: {float: [0, 1], when: {methd: [low_rank]}}
  method: {choice: [none, low_rank]}
objectives:
  - {metric: cider, mode: maximum}
search: {algorithm: tpee}
scheduler: {min_epochs: 9, max_epochs: 3}
budget: {time: 2 hours}
training:
  workers: 0
  gangs: some
  gpus_per_worker: 1.5
storage: ftp://host/results
""")
    assert problems(path, "search.seed=x") == [
        f"{path}:1: name: got 'my photos': names a folder: letters, digits, '.', '_', '-', at most 100; "
        "did you mean 'my-photos'?",
        f"{path}:5: search_space.learning_rate: `low <= high` must hold, but got low=0.01, high=0.0001",
        f"{path}:6: search_space.dropout: unknown key 'flaot'; did you mean 'float'?",
        f"{path}:7: search_space.ratio.when: 'methd' is not searched; did you mean 'method'?",
        f"{path}:10: objectives.0.mode: got 'maximum': should be 'max' or 'min'; did you mean 'max'?",
        f"{path}:11: search.algorithm: got 'tpee': should be 'auto', 'random', 'grid', 'sobol', 'tpe', 'gp', "
        "'cmaes', 'nsga2' or 'pbt'; did you mean 'tpe'?",
        "--set search.seed=x: search.seed: got 'x': should be a valid integer",
        f"{path}:12: scheduler: `min_epochs <= max_epochs` must hold, but got min_epochs=9, max_epochs=3",
        f"{path}:13: budget.time: got '2 hours': must be seconds or text such as 90s, 30m, 2h, 1h30m",
        f"{path}:15: training.workers: got 0: should be greater than or equal to 1",
        f"{path}:17: training.gpus_per_worker: got 1.5: must be 'auto', a share of a GPU from 0 to 1, "
        "or a whole number",
        f"{path}:16: training.gangs: got 'some': must be 'auto' or a whole number from 1",
        f"{path}:18: storage: got 'ftp://host/results': takes a folder or a URL that begins with s3://, "
        "gs://, gcs://, abfs://, abfss://",
        f"{path}:2: tranable: unknown key; did you mean 'trainable'?",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("budget: {trials: 4}", ":1: budget: is missing"),
        ("budget: {}", ":8: budget: needs one of `trials`, `epochs`, `time`, `worker_hours`, `money`"),
        ("budget: {trials: 1%s}" % (400 * "0"), ":8: budget.trials: got 1"),
        ("budget: {plateau: 5, price_per_hour: 2}", ":8: budget: needs one of `trials`"),
        ("budget: {money: 20}", ":8: budget: `money` needs `price_per_hour`"),
        ("budget: {worker_hours: 0}", ":8: budget.worker_hours: got 0: should be greater than 0"),
        ("budget: {trials: 4, epochs: 0}", ":8: budget.epochs: got 0: should be greater than or equal to 1"),
        ("objectives: [{metric: '', mode: max}]", ":7: objectives.0.metric: got '': should have at least 1"),
        ("objectives: []", ":7: objectives: needs an objective"),
        (
            "objectives: [{metric: cider, mode: max}, {metric: cider, mode: min}]",
            ":7: objectives: 'cider' is there twice",
        ),
        ("search: {from: [birds, birds]}", ":12: search.from: 'birds' is there twice"),
        ("search: {from: [' ']}", ":12: search.from: names an experiment, a folder or a .parquet table"),
        ("search: {from: ['s3://a/b']}", ":12: search.from: only folders and files"),
        ("search: {from: [mine]}", ":12: search.from.0: got 'mine': is this experiment itself"),
        (
            "search: {from: [birds], algorithm: sobol}",
            ":12: search.from: `search.algorithm: sobol` learns nothing from earlier experiments; "
            "leave it out, or take auto, tpe, gp",
        ),
        ("search: {from_: [birds]}", ":12: search.from_: unknown key; did you mean 'from'?"),
        ("trainable: captionin", ":2: trainable: 'captionin' is neither shipped"),
        ("model: {decoder: rnn}", ":4: model.decoder: got 'rnn': there are gru, transformer"),
        ("constraints: [{metric: size_mb}]", ":12: constraints.0: needs `max` or `min`"),
        (
            "constraints: [{metric: size_mb, max: .inf}]",
            ":12: constraints.0.max: got inf: should be a finite",
        ),
    ],
)
def test_single_mistakes(write, change, expected):
    key = change.split(":")[0]
    lines = [line for line in BASE.splitlines() if not line.startswith(f"{key}:")]
    if "missing" not in expected:
        at = next((n for n, line in enumerate(BASE.splitlines()) if line.startswith(f"{key}:")), len(lines))
        lines.insert(at, change)
    path = write("\n".join(lines))
    (problem,) = problems(path)
    assert problem.startswith(f"{path}{expected}")


TWO = "[{metric: cider, mode: max, reference: 0.1}, {metric: size_mb, mode: min}]"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("search.algorithm=gp", "got 'gp': needs exactly one objective, but there are 2 (cider, size_mb)"),
        ("search.algorithm=cmaes", "got 'cmaes': needs exactly one objective"),
    ],
)
def test_an_algorithm_for_one_objective_refuses_two(write, override, message):
    (problem,) = problems(write(), f"objectives={TWO}", override)
    assert problem.startswith(f"--set {override}: search.algorithm: {message}")
    assert problem.endswith("; auto, tpe, nsga2, pbt, random, grid and sobol take several")
    Experiment.load(write(), [override])


def test_nsga2_needs_two_objectives(write):
    (problem,) = problems(write(), "search.algorithm=nsga2")
    assert "got 'nsga2': needs at least two objectives, but there is one (cider); auto, tpe, gp" in problem
    assert (
        Experiment.load(write(), ["search.algorithm=nsga2", f"objectives={TWO}"]).objectives[0].reference
        == 0.1
    )


def test_a_grid_needs_steps_and_says_how_to_give_them(write):
    tree = yaml.safe_load(BASE) | {"search": {"algorithm": "grid"}}
    tree["search_space"] = {
        "a": {"float": [0, 1]},
        "b": {"float": [1e-3, 1.0], "log": True},
        "c": {"float": [0, 1], "step": 0.5},
        "d": {"int": [1, 3]},
        "e": {"choice": [1, 2]},
    }
    with pytest.raises(ExperimentError) as refusal:
        Experiment.from_dict(tree)
    assert refusal.value.problems == (
        "search_space.a: `search.algorithm: grid` needs a `step` for every float; "
        "add one, as in {float: [0, 1], step: 0.25}",
        "search_space.b: `search.algorithm: grid` needs a `step` for every float; "
        "`log` excludes one: list the values, as in {choice: [0.001, 1]}",
    )


CONDITIONAL = {
    "compression.method": {"choice": ["none", "int8", "low_rank"]},
    "compression.ratio": {"float": [0.1, 0.9], "when": {"compression.method": ["low_rank"]}},
    "width": {"int": [64, 256], "step": 64},
}


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"witdh": 64}, "witdh: is not searched; did you mean 'width'?"),
        ({"width": 65}, "width: got 65: must be in {'int': [64, 256], 'step': 64}"),
        (
            {"compression.method": "int8", "compression.ratio": 0.5},
            "compression.ratio: applies only where 'compression.method' is 'low_rank', which is 'int8' here",
        ),
        (
            {"compression.ratio": 0.5},
            "compression.ratio: applies only where 'compression.method' is 'low_rank', "
            "which is left out here",
        ),
    ],
)
def test_starting_points_outside_the_space_are_refused(config, problem):
    tree = yaml.safe_load(BASE) | {"search_space": CONDITIONAL, "search": {"start": [{"width": 64}, config]}}
    with pytest.raises(ExperimentError) as refusal:
        Experiment.from_dict(tree)
    assert refusal.value.problems == (f"search.start.1.{problem}",)


def test_starting_points_may_leave_names_out_and_be_nested():
    start = [{"width": 128}, {"compression": {"method": "low_rank", "ratio": 0.5}}]
    tree = yaml.safe_load(BASE) | {"search_space": CONDITIONAL, "search": {"start": start}}
    assert Experiment.from_dict(tree).search.start == (
        {"width": 128},
        {"compression.method": "low_rank", "compression.ratio": 0.5},
    )
    with pytest.raises(ExperimentError, match=r"search.start.0: names no hyperparameter; there are comp"):
        Experiment.from_dict(tree | {"search": {"start": [{}]}})


def test_what_is_taken_from_earlier_experiments_comes_back_whole(write):
    experiment = Experiment.load(
        write(),
        [
            "search.from=[birds, tables/earlier.parquet]",
            "search.start=[{learning_rate: 1e-3}]",
            f"objectives={TWO}",
            "budget={epochs: 90, worker_hours: 2, money: 9.5, price_per_hour: 2.5, plateau: 20}",
        ],
    )
    assert experiment.search.from_ == ("birds", "tables/earlier.parquet")
    tree = yaml.safe_load(yaml.safe_dump(experiment.to_dict()))
    assert tree["search"]["from"] == ["birds", "tables/earlier.parquet"] and "from_" not in tree["search"]
    assert Experiment.from_dict(tree) == experiment


def test_what_the_trainable_refuses_is_named_with_its_line(write):
    path = write(BASE.replace("objectives:", "  droput: {float: [0, 1]}\nobjectives:"))
    assert problems(path) == [
        f"{path}:7: search_space.droput: is unknown; try learning_rate",
    ]
    override = "--set model.decoder=rnn"
    assert problems(write(), "model.decoder=rnn") == [
        f"{override}: model.decoder: got 'rnn': there are gru, transformer"
    ]


def test_a_metric_that_the_trainable_does_not_report_is_refused_where_that_is_known(write):
    curves = ["trainable=curves", "data={}", "model={}"]
    path = write(BASE.replace("cider", "socre"))
    Experiment.load(path)  # of one's own: nobody knows
    assert problems(path, *curves) == [
        f"{path}:7: objectives.0.metric: got 'socre': 'curves' does not report it; did you mean 'score'?"
    ]
    (problem,) = problems(path, *curves, "objectives.0.metric=score", "constraints=[{metric: macs, max: 1}]")
    assert "constraints.0.metric: got 'macs': 'curves' does not report it; there are checkpoint" in problem
    Experiment.load(path, [*curves, "objectives.0.metric=worker_s"])


def test_a_setting_both_fixed_and_searched_is_refused(write):
    path = write(BASE.replace("{decoder: gru}", "{learning_rate: 0.1}"))
    assert problems(path) == [
        f"{path}:6: search_space.learning_rate: is fixed to 0.1 in `model`; keep one",
    ]


def test_a_shipped_space_leaves_out_what_model_fixes():
    tree = yaml.safe_load(BASE) | {"search_space": "captioning"}
    whole = Experiment.from_dict(tree)
    assert whole.space == SHIPPED["captioning"]()
    tree["model"] = {"dropout": 0.1, "compression": {"method": "low_rank"}}
    part = Experiment.from_dict(tree)
    assert part.model == {"dropout": 0.1, "compression.method": "low_rank"}
    assert set(whole.space) - set(part.space) == {"dropout", "compression.method"}
    assert Experiment.from_dict(part.to_dict()) == part


def test_a_space_may_be_given_as_one():
    tree = yaml.safe_load(BASE) | {"search_space": Space({"x": Choice([1, 2])})}
    assert Experiment.from_dict(tree).space["x"] == Choice([1, 2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (BASE + "  workers: 3\n", ":12: training.workers: is there twice, first on line 10; keep one"),
        (BASE + "budget: {trials: 2}\n", ":12: budget: is there twice, first on line 8; keep one"),
        (BASE + "model: [\n", ":13: not valid YAML"),
        ("- a list\n", ":1: an experiment file holds keys and values"),
        ("", ":1: an experiment file holds keys and values"),
        (BASE + "storage: 0x_\n", ":12: not valid YAML: '0x_' is no int"),
        ("a: &a [x]\nb: &b [*a, *a]\n", ":2: not valid YAML: *a is within what has an anchor itself"),
        ("a: &a [*a]\n", ":1: not valid YAML: *a is within"),
        ("a: " + 2000 * "[", ": not valid YAML: maximum recursion depth"),
    ],
)
def test_broken_files(write, text, expected):
    path = write(text)
    assert problems(path)[0].startswith(f"{path}{expected}")


def test_a_missing_file(tmp_path):
    assert problems(tmp_path / "no.yaml") == [
        f"{tmp_path / 'no.yaml'}: cannot read the experiment file: No such file or directory"
    ]


def test_nested_and_dotted_twice(write):
    path = write(BASE.replace("{decoder: gru}", "{compression: {ratio: 0.1}, compression.ratio: 0.2}"))
    assert (
        problems(path)[0]
        == f"{path}:4: model: 'compression.ratio' is there twice, nested and dotted; keep one"
    )


def test_overrides_reach_every_kind_of_place(write):
    experiment = Experiment.load(
        write(),
        [
            "training.workers=1",
            "scheduler.max_epochs=27",  # a section that the file leaves out
            "objectives.0.mode=min",
            "model.compression.method=int8",
            "model.compression.ratio=0.25",
            "search_space.learning_rate.float=[1e-3, 1e-1]",
            "budget={time: 90}",
        ],
    )
    assert experiment.training.workers == 1 and experiment.scheduler.max_epochs == 27
    assert experiment.objectives[0].mode == "min"
    assert experiment.model == {"decoder": "gru", "compression.method": "int8", "compression.ratio": 0.25}
    assert experiment.space["learning_rate"] == Float(1e-3, 1e-1, log=True)
    assert experiment.budget.trials is None and experiment.budget.time_s == 90
    dotted = Experiment.from_dict(
        Experiment.load(write(BASE.replace("{decoder: gru}", "{compression.method: none}"))).to_dict()
    )
    assert dotted.model == {"compression.method": "none"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.workers", "must be of the form a.b=c"),
        ("=3", "must be of the form a.b=c"),
        ("name.first=3", "name is 'mine' and holds no keys"),
        ("objectives.1.mode=max", "objectives has the items 0 to 0"),
        ("model.decoder=[", "'[' is not valid YAML"),
        ("name=!!int x", "'!!int x' is not valid YAML: 'x' is no int"),
        ("budget.time=" + 400 * "9", f"budget.time: got {400 * '9'}: must be more than no time and at most"),
        ("budget.time=" + 400 * "9" + "h", f"budget.time: got '{400 * '9'}h': must be more than no time and"),
        ("training.precision=fp8", "training.precision: got 'fp8': should be 'auto', 'fp32', 'bf16' or 'fp"),
        ("scheduler.min_epochs=autoo", "scheduler.min_epochs: got 'autoo': must be 'auto' or a whole number"),
        ("training.gpus_per_worker=" + 400 * "9", "training.gpus_per_worker: got 9"),
        ("training.workrs=3", "training.workrs: unknown key; did you mean 'workers'?"),
    ],
)
def test_broken_overrides(write, override, message):
    (problem,) = problems(write(), override)
    assert problem.startswith(f"--set {override}: {message}")
    assert "there are auto" not in problem  # not once more


def test_relative_data_paths_start_at_the_file_and_overridden_ones_here(write, monkeypatch, tmp_path):
    path = write()
    monkeypatch.chdir(tmp_path)
    assert Experiment.load(path).data["path"] == str(path.parent / "photos")
    assert Experiment.load("experiments/mine.yaml").data["path"] == str(path.parent / "photos")
    assert Experiment.load(path, ["data.path=here"]).data["path"] == str(tmp_path / "here")
    assert Experiment.load(path, ["data.path=/there"]).data["path"] == "/there"
    assert Experiment.load(path, ["data.path=2026-11-31"]).data["path"] == str(tmp_path / "2026-11-31")
    assert Experiment.load(path, ["data.path=~nobody-here"]).data["path"] == str(tmp_path / "~nobody-here")


@pytest.mark.parametrize(
    ("nodes", "changes", "expected"),
    [
        ([{"CPU": 8.0}], {}, (4, 2, 1, 0.0)),
        ([{"CPU": 40.0}], {}, (4, 2, 1, 0.0)),  # no more gangs than trials
        ([{"CPU": 9.0, "GPU": 4.0}], {}, (2, 2, 1, 1.0)),
        ([{"CPU": 9.0, "GPU": 4.0}], {"gpus_per_worker": 0}, (4, 2, 1, 0.0)),
        ([{"CPU": 9.0, "GPU": 1.0}], {"workers": 1, "gpus_per_worker": 0.5}, (2, 1, 1, 0.5)),
        ([{"CPU": 8.0}], {"cpus_per_worker": 3}, (1, 2, 3, 0.0)),
        ([{"CPU": 8.0}], {"gangs": 1}, (1, 2, 1, 0.0)),
        ([{"CPU": 8.0}], {"max_gangs": 3}, (3, 2, 1, 0.0)),
        ([{"CPU": 3.0}] * 3, {"workers": 1, "cpus_per_worker": 2}, (3, 1, 2, 0.0)),  # and not 4
        ([{"CPU": 3.0}] * 2, {}, (3, 2, 1, 0.0)),  # the third on both nodes
        ([{"CPU": 8.0}, {"CPU": 2.0, "GPU": 4.0}], {"workers": 1}, (2, 1, 1, 1.0)),  # cores beside the GPUs
        ([{"CPU": 9.0, "GPU": 2.0}], {"workers": 1, "gpus_per_worker": 0.4}, (4, 1, 1, 0.4)),  # and not 5
        ([{"memory": 1e9}, {"CPU": 4.0}], {}, (2, 2, 1, 0.0)),  # a head that does not work
    ],
)
def test_gangs_fill_the_cluster(write, nodes, changes, expected):
    overrides = [f"training.{key}={value}" for key, value in changes.items()]
    plan = Experiment.load(write(), overrides).plan_resources(nodes)
    assert (plan.gangs, plan.workers, plan.cpus_per_worker, plan.gpus_per_worker) == expected


@pytest.mark.parametrize(
    ("changes", "asked"), [({}, 1), ({"max_gangs": 3}, 3), ({"max_gangs": 9}, 4), ({"gangs": 2}, 2)]
)
def test_an_autoscaler_is_asked_for_what_the_file_says_and_no_more_than_there_are_trials(
    write, changes, asked
):
    overrides = [f"training.{key}={value}" for key, value in changes.items()]
    plan = Experiment.load(write(), overrides).plan_resources([{"CPU": 4.0}])
    assert (plan.gangs, plan.asked_gangs) == (2, asked)


ON_ONE = "2 workers with {each} each do not fit on the cluster ({has}); the largest possible value is {most}"


@pytest.mark.parametrize(
    ("nodes", "change", "key", "expected"),
    [
        ([{"CPU": 1.0}], "", "workers", ("1 CPU", "1 CPU", 1)),
        ([{"CPU": 8.0, "GPU": 1.0}], "", "workers", ("1 CPU and 1 GPU", "8 CPU and 1 GPU", 1)),
        ([{"CPU": 8.0}], "cpus_per_worker=9", "cpus_per_worker", ("9 CPU", "8 CPU", 4)),
        ([{"CPU": 8.0}], "gpus_per_worker=1", "gpus_per_worker", ("1 CPU and 1 GPU", "8 CPU", 0)),
        (
            [{"CPU": 3.0}, {"CPU": 5.0}, {"CPU": 3.0}],
            "cpus_per_worker=6",
            "cpus_per_worker",
            ("6 CPU", "nodes: 2 of 3 CPU, 1 of 5 CPU", 3),
        ),
        (
            [{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 3.0}],
            "gpus_per_worker=4",
            "gpus_per_worker",
            ("1 CPU and 4 GPU", "nodes: 1 of 4 CPU and 2 GPU, 1 of 4 CPU and 3 GPU", 2),
        ),
    ],
)
def test_impossible_resources_are_refused(write, nodes, change, key, expected):
    path = write()
    place = f"--set training.{change}" if change else f"{path}:10"
    value = change.partition("=")[2] or 2
    each, has, most = expected
    rule = ON_ONE.format(each=each, has=has, most=most)
    overrides = [f"training.{change}"] if change else []
    with pytest.raises(TooLarge) as error:
        Experiment.load(path, overrides).plan_resources(nodes)
    assert str(error.value) == f"{place}: training.{key}: got {value}: {rule}"
    if most:  # what the message advises works, and one more does not
        advised = {key: most}
        for extra, fits in ((0, True), (1, False)):
            changed = [*overrides, *(f"training.{k}={v + extra}" for k, v in advised.items())]
            with contextlib.nullcontext() if fits else pytest.raises(TooLarge):
                Experiment.load(path, changed).plan_resources(nodes)


def test_more_gangs_than_fit_are_refused(write):
    with pytest.raises(TooLarge) as error:
        Experiment.load(write(), ["training.gangs=3"]).plan_resources([{"CPU": 5.0}])
    assert str(error.value) == (
        "--set training.gangs=3: training.gangs: got 3: so many gangs of 2 workers with 1 CPU each do not "
        "fit on the cluster (5 CPU); the largest possible value is 2"
    )


def test_gpus_that_no_cluster_can_give_are_refused_for_good(write):
    with pytest.raises(ExperimentError, match="several workers of one trial cannot share a GPU") as error:
        Experiment.load(write(), ["training.gpus_per_worker=0.5"]).plan_resources([{"CPU": 5.0, "GPU": 1}])
    assert not isinstance(error.value, TooLarge)


def test_what_is_said_about_gangs_fits_together(write):
    assert problems(write(), "training.gangs=2", "training.max_gangs=3") == [
        "--set training.max_gangs=3: training.max_gangs: is for `gangs: auto`, but `gangs` is 2"
    ]
    (problem,) = problems(write(), "training.priority=0")
    assert "training.priority: got 0: should be greater than 0" in problem
    (problem,) = problems(write(), "training.wait_for_resources=soon")
    assert "must be seconds or text such as 90s" in problem
    assert Experiment.load(write(), ["training.wait_for_resources=10m"]).training.wait_s == 600


@pytest.mark.parametrize(
    ("settings", "rungs"),
    [
        ({"min_epochs": 1, "max_epochs": 9, "reduction_factor": 3}, (1, 3)),
        ({"min_epochs": 1, "max_epochs": 10, "reduction_factor": 3}, (1, 3, 9)),
        ({"min_epochs": 2, "max_epochs": 16, "reduction_factor": 2}, (2, 4, 8)),
        ({"min_epochs": 5, "max_epochs": 5}, ()),
        ({"algorithm": "asha_stopping", "max_epochs": 9}, (1, 3)),
        ({"algorithm": "none", "max_epochs": 9}, ()),
    ],
)
def test_rungs(settings, rungs):
    assert Scheduler(**settings).rungs() == rungs


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("30m", 1800), ("2h", 7200), ("1h30m", 5400), (12.5, 12.5), ("1.5d", 129600)],
)
def test_durations(text, seconds):
    tree = yaml.safe_load(BASE) | {"budget": {"time": text}}
    assert Experiment.from_dict(tree).budget.time_s == seconds


@pytest.mark.parametrize(("given", "seconds"), [("auto", None), ("30m", 1800), (10, 10)])
def test_hang_timeout(given, seconds):
    tree = yaml.safe_load(BASE) | {"training": {"hang_timeout": given}}
    assert Experiment.from_dict(tree).training.hang_timeout_s == seconds


def test_a_hang_timeout_in_which_workers_need_not_speak_is_refused():
    tree = yaml.safe_load(BASE) | {"training": {"hang_timeout": "5s"}}
    with pytest.raises(ExperimentError, match="hang_timeout: got '5s': must be 'auto' or at least 10s"):
        Experiment.from_dict(tree)


def test_constraints_measure_how_far_beyond_they_are():
    tree = yaml.safe_load(BASE) | {"constraints": [{"metric": "a", "max": 20}, {"metric": "b", "min": 0.5}]}
    most, least = Experiment.from_dict(tree).constraints
    assert most.excess(25) == 0.25 and most.excess(20) == 0 and most.excess(10) == -0.5
    assert least.excess(0.4) == pytest.approx(0.2) and least.excess(0.6) < 0


def test_errors_survive_the_way_between_processes():
    import pickle

    for error in (ExperimentError(["a: b"]), SettingsError(("a", "b"), "c")):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize(
    "content, name, message",
    [
        ("def broken(:", "Mine", "cannot import 'own_other': SyntaxError"),
        ("import not_installed_here", "Mine", "No module named 'not_installed_here'"),
        ("1 / 0", "Mine", "ZeroDivisionError: division by zero"),
        ("class Mine: pass", "Mein", "has no class 'Mein'; did you mean 'Mine'?"),
        ("Mine = 3", "Mine", "has no class 'Mine'"),
        (
            "class Mine:\n    def setup(self, config, context): pass",
            "Mine",
            "Mine lacks train_epoch, evaluate",
        ),
    ],
)
def test_a_trainable_that_is_none_is_refused_with_its_line(
    write, tmp_path, monkeypatch, content, name, message
):
    (tmp_path / "own_other.py").write_text(content)
    monkeypatch.delitem(sys.modules, "own_other", raising=False)
    path = write(re.sub("trainable: .*", f"trainable: own_other:{name}", BASE))
    with pytest.raises(ExperimentError) as refusal:
        Experiment.load(path)
    (problem,) = refusal.value.problems
    assert re.search(r":\d+: trainable: ", problem) and message in problem


def test_the_section_compression(write):
    joint = Experiment.load(write())
    assert joint.compression.search == "joint"
    assert Experiment.from_dict(joint.to_dict()) == joint
    tree = joint.to_dict()
    children = Experiment.from_dict(tree | {"compression": {"search": "children", "methods": ["int8"]}})
    assert (children.compression.methods, children.compression.epochs) == (("int8",), 3)
    assert problems(write(), "compression.parents=3") == [
        "--set compression.parents=3: compression.parents: is for `search: children`, but `search` is 'joint'"
    ]
    for wrong, rule in {
        "methods=[int8, int8]": "'int8' is there twice; keep one",
        "ratios=[1.5]": "compression.ratios.0: got 1.5: should be less than 1",
        "ratios=[]": "compression.ratios: needs at least one",
        "epochs=-1": "got -1: should be greater than or equal to 0",
    }.items():
        (problem,) = problems(write(), "compression.search=children", f"compression.{wrong}")
        assert rule in problem


def test_children_have_parents_that_are_whole(write):
    tree = yaml.safe_load(BASE) | {"trainable": "captioning", "search_space": "captioning"}
    shipped = write(yaml.safe_dump(tree | {"data": {"format": "shapes", "size": 60}}))
    assert "compression.method" in Experiment.load(shipped).space
    whole = Experiment.load(shipped, ["compression.search=children"])
    assert "compression.method" not in whole.space and "learning_rate" in whole.space
    assert Experiment.from_dict(whole.to_dict()) == whole

    method = "search_space.compression.method={choice: [none, int8]}"
    (problem,) = problems(write(), "compression.search=children", method)
    assert "search_space.compression.method: with `compression.search: children` trials are" in problem
    (problem,) = problems(write(), "compression.search=children", "model.compression.method=int8")
    assert "model.compression.method: got 'int8'" in problem


def test_children_are_refused_where_the_trainable_cannot_have_them(write):
    (problem,) = problems(write(), "compression.search=children")
    assert problem.endswith("got 'children': the trainable 'own_stub:Stub' has no `variants`, use joint")
    import own_stub

    def check_variants(methods, ratios):
        raise SettingsError(("compression", "methods"), f"got {methods[0]!r}: there is int8")

    own_stub.Stub.variants, own_stub.Stub.check_variants = None, check_variants
    (problem,) = problems(write(), "compression.search=children", "compression.methods=[int9]")
    assert problem.endswith("compression.methods: got 'int9': there is int8"), "its own check is asked"
