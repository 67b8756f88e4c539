import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import FixedTrial

from search_spaces import SHIPPED, Choice, Float, Int, Space, SpaceError
from trainables.captioning.settings import Settings


def draw(space, count=50, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.suggest(study.ask()) for _ in range(count)]


CHAIN = Space(  # children stand before their parents on purpose
    {
        "rank": Int(1, 4, when={"method": ["low_rank"], "deep": [True]}),
        "method": Choice(["none", "low_rank"], when={"deep": [True]}),
        "deep": Choice([True, False]),
    }
)


def test_conditional_names_are_there_only_where_every_condition_up_the_chain_holds():
    seen = draw(CHAIN)
    shapes = {tuple(sorted(config)) for config in seen}
    assert shapes == {("deep",), ("deep", "method"), ("deep", "method", "rank")}
    for config in seen:
        assert ("method" in config) == config["deep"]
        assert ("rank" in config) == (config.get("method") == "low_rank")


def test_contains_accepts_what_is_suggested_and_nothing_near_it():
    assert all(CHAIN.contains(config) for config in draw(CHAIN))
    assert not CHAIN.contains({"deep": True})  # an active name is missing
    assert not CHAIN.contains({"deep": False, "method": "none"})  # an inactive one is there
    assert not CHAIN.contains({"deep": False, "deeper": 1})
    assert not CHAIN.contains({"deep": True, "method": "low_rank", "rank": 5})


def test_yaml_form_comes_back_whole():
    text = """
    learning_rate: {float: [1e-4, 1e-2], log: true}
    dropout: {float: [0, 0.6], step: 0.2}
    width: {int: [1, 8], step: 2}
    layers: {int: [1, 64], log: true}
    method: {choice: [none, 2, 2.5, true, null]}
    ratio: {float: [.1, .9], when: {method: none, width: [3, 5]}}
    """
    space = Space.from_dict(yaml.safe_load(text))  # plain PyYAML: 1e-4 arrives as text
    assert space["learning_rate"] == Float(1e-4, 1e-2, log=True)
    assert space["layers"] == Int(1, 64, log=True)
    assert space["ratio"].when == {"method": ("none",), "width": (3, 5)}
    again = Space.from_dict(yaml.safe_load(yaml.safe_dump(space.to_dict())))
    assert again == space


def test_the_order_of_the_names_does_not_change_what_is_drawn():
    turned = Space({name: CHAIN[name] for name in reversed(list(CHAIN))})
    assert draw(turned) == draw(CHAIN)


def test_a_bound_that_no_step_reaches_is_never_suggested_nor_warned_about(recwarn):
    space = Space({"n": Int(1, 8, step=2), "x": Float(0.1, 0.35, step=0.1)})
    values = draw(space)
    assert {v["n"] for v in values} == {1, 3, 5, 7}
    assert {round(v["x"], 9) for v in values} == {0.1, 0.2, 0.3}
    assert all(space.contains(v) for v in values)
    assert not space.contains({"n": 8, "x": 0.1}) and not space.contains({"n": 1, "x": 0.15})
    assert not recwarn.list


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"flaot": [0, 1]}, "unknown key 'flaot'; did you mean 'float'?"),
        ({"float": [1, 0]}, "`low <= high` must hold, but got low=1, high=0"),
        ({"float": [0, 1], "log": True}, "`low > 0` must hold with `log`, but got low=0"),
        ({"float": [1, 2], "log": True, "step": 0.5}, "exclude each other"),
        ({"float": [1]}, r"takes \[low, high\], but got \[1\]"),
        ({"float": ["small", 1]}, "must be a number, but got 'small'"),
        ({"float": [0, float("inf")]}, "`high` must be a finite number, but got inf"),
        ({"int": [1, 2.5]}, "`high` must be a whole number, but got 2.5"),
        ({"int": [1, 8], "step": 0}, "`step >= 1` must hold, but got step=0"),
        ({"choice": []}, "at least one value"),
        ({"choice": "abc"}, "takes a list, but got 'abc'"),
        ({"choice": [1, 2, 1]}, "1 is there twice"),
        ({"choice": [1, True]}, "True is there twice"),  # equal to Optuna too
        ({"choice": [[1, 2]]}, r"must be text, numbers, true, false or null, but got \[1, 2\]"),
        ({"choice": [1], "log": True}, "unknown key 'log'"),
        ({"float": [0, 1], "int": [0, 1]}, "exactly one of float, int, choice, but has float, int"),
        (3, "must be like"),
    ],
)
def test_a_broken_domain_is_refused_with_law_and_value(entry, message):
    with pytest.raises(SpaceError, match=message) as error:
        Space.from_dict({"x": entry})
    assert error.value.problems[0][0] == ("x",)


def test_all_problems_come_at_once():
    with pytest.raises(SpaceError) as error:
        Space.from_dict(
            {
                "a": {"flaot": [0, 1]},
                "b": {"choice": [1, 2], "when": {"c": [4], "dd": [1], "a": [1]}},
                "c": {"int": [1, 3]},
                "d": {"int": [1, 3]},
            }
        )
    assert [path for path, _ in error.value.problems] == [("a",), ("b", "when"), ("b", "when")]
    assert "'c' never is 4; it is 1 … 3" in str(error.value)
    assert "'dd' is not searched" in str(error.value)


def test_conditions_in_a_circle_are_refused():
    with pytest.raises(SpaceError, match="run in a circle among a, b"):
        Space({"a": Int(0, 1, when={"b": [1]}), "b": Int(0, 1, when={"a": [1]}), "c": Int(0, 1)})


def test_fixing_names_decides_the_conditions_on_them():
    assert list(CHAIN.fix({"deep": False})) == []
    assert set(CHAIN.fix({"method": "none"})) == {"deep"}
    left = CHAIN.fix({"method": "low_rank", "unrelated": 1})
    assert left["rank"].when == {"deep": (True,)} and set(left) == {"rank", "deep"}
    assert CHAIN.fix({"method": "low_rank", "deep": True})["rank"].when is None
    assert CHAIN.fix({}) == CHAIN


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_spaces_search_settings_that_the_trainable_accepts(name):
    space = SHIPPED[name]()
    assert Space.from_dict(space.to_dict()) == space
    for config in draw(space, 100):
        Settings.from_flat(config)
    for hyperparameter, domain in space.items():
        for value in domain.examples():
            Settings.from_flat({hyperparameter: value})


@given(
    low=st.floats(1e-6, 1e3),
    span=st.floats(0, 1e3),
    log=st.booleans(),
    share=st.floats(0, 1),
)
def test_any_value_between_the_bounds_is_contained_and_accepted_by_optuna(low, span, log, share):
    domain = Float(low, low + span, log=log)
    value = min(domain.high, low + share * span)
    assert domain.contains(value)
    assert domain.suggest("x", FixedTrial({"x": value})) == value
    assert domain.distribution()._contains(value)
