from collections import Counter

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
        ({"int": [1, 2.5]}, "`high` must be a whole number of at most 64 bits, but got 2.5"),
        ({"int": [1, 2**64]}, "`high` must be a whole number of at most 64 bits"),
        ({"int": [1, 10**400]}, "`high` must be a finite number"),
        ({"int": [1, 8], "step": True}, "`step` must be a finite number, but got True"),
        ({"float": [0, 1], "step": [0.1]}, r"`step` must be a finite number, but got \[0.1\]"),
        ({"float": [0, 1], "step": float("inf")}, "`step` must be a finite number, but got inf"),
        ({"float": [0, 1], "step": 1e-300}, "`step` must be at least a ten-millionth of the largest value"),
        ({"float": [20000, 30000], "step": 1e-4}, "but got step=0.0001; leave it out"),
        ({"choice": [1.0, float("nan")]}, "values must be finite, but got nan"),
        ({"float": [0, 1], "when": {"y": b"x"}}, "`when` takes values of 'y', but got b'x'"),
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


DOMAINS = [
    Float(-1, 3),
    Float(1e-4, 1e-1, log=True),
    Float(0.1, 0.35, step=0.1),
    Float(2, 2),
    Int(1, 8, step=2),
    Int(-3, 3),
    Int(1, 64, log=True),
    Int(5, 5),
    Choice(["a", 2, None, True]),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_units_reach_from_one_end_to_the_other_and_never_beyond(domain):
    values = [domain.at(unit / 1000) for unit in range(1001)]
    assert all(domain.contains(value) for value in values)
    ends = [domain.examples()[0], domain.examples()[-1]]
    assert [values[0], values[-1]] == (ends if isinstance(domain, Choice) else pytest.approx(ends))
    if not isinstance(domain, Choice):
        assert values == sorted(values)
        places = [domain.unit(value) for value in values]
        assert places == sorted(places) and 0 <= places[0] <= places[-1] <= 1 + 1e-12


@pytest.mark.parametrize("domain", DOMAINS, ids=repr)
def test_even_units_draw_as_optuna_does(domain):
    """Compared by how often each fifth of the scale (each value of a few) comes up."""
    space, count = Space({"x": domain}), 600
    ours = [domain.at((index + 0.5) / count) for index in range(count)]
    theirs = [config["x"] for config in draw(space, count)]

    def shares(values):
        if not isinstance(domain, Choice) and len(set(ours)) > 10:
            values = [min(int(domain.unit(value) * 5), 4) for value in values]
        return Counter(round(value, 9) if isinstance(value, float) else value for value in values)

    ours, theirs = shares(ours), shares(theirs)
    assert ours.keys() == theirs.keys()
    assert all(abs(ours[value] - theirs[value]) < 0.08 * count for value in ours)


@given(st.floats(0, 1), st.floats(1e-6, 1e3), st.floats(0, 1e3), st.booleans())
def test_the_unit_of_a_number_leads_back_to_it(unit, low, span, log):
    domain = Float(low, low + span, log=log)
    value = domain.at(unit)
    assert domain.contains(value) and domain.at(domain.unit(value)) == pytest.approx(value)


@given(st.integers(-50, 50), st.integers(0, 40), st.integers(1, 5), st.data())
def test_the_unit_of_a_whole_number_leads_back_to_it(low, span, step, data):
    domain = Int(low, low + span, step=step)
    value = data.draw(st.sampled_from(domain.grid()))
    assert domain.at(domain.unit(value)) == value


def test_a_configuration_at_units_has_the_active_names_only():
    assert CHAIN.at({"deep": 0.9, "method": 0.0, "rank": 0.0}) == {"deep": False}
    assert CHAIN.at({"deep": 0.0, "method": 0.9, "rank": 0.6}) == {
        "deep": True,
        "method": "low_rank",
        "rank": 3,
    }


@given(st.fixed_dictionaries(dict.fromkeys(CHAIN, st.floats(0, 1))))
def test_any_units_make_a_configuration(units):
    assert CHAIN.contains(CHAIN.at(units))


def test_the_grid_has_every_configuration_once():
    configs = list(CHAIN.grid())
    assert all(CHAIN.contains(config) for config in configs)
    assert len({tuple(sorted(config.items())) for config in configs}) == len(configs)
    assert len(configs) == 1 + (1 + 4)  # not deep; deep without a rank, with one of four
    assert Float(0.1, 0.35, step=0.1).grid() == [0.1, 0.2, 0.3]
    assert Int(1, 8, step=2).grid() == [1, 3, 5, 7] and Choice(["a", None]).grid() == ["a", None]


def test_a_float_without_steps_has_no_grid():
    with pytest.raises(ValueError, match="without `step` has no grid"):
        list(Space({"x": Float(0, 1), "n": Int(0, 1)}).grid())


def test_what_is_left_out_is_completed_with_what_was_drawn():
    drawn = {"deep": True, "method": "low_rank", "rank": 4}
    assert CHAIN.complete({}, drawn) == drawn
    assert CHAIN.complete({"rank": 1}, drawn) == drawn | {"rank": 1}
    assert CHAIN.complete({"deep": False}, drawn) == {"deep": False}
    assert CHAIN.complete({"method": "none"}, drawn) == {"deep": True, "method": "none"}
    # Active only with what is given: the draw has no value for it, so it is the middle one.
    assert CHAIN.complete({"deep": True, "method": "low_rank"}, {"deep": False}) == {
        "deep": True,
        "method": "low_rank",
        "rank": CHAIN["rank"].at(0.5),
    }


@given(st.data())
def test_a_completed_configuration_is_in_the_space(data):
    units = st.fixed_dictionaries(dict.fromkeys(CHAIN, st.floats(0, 1)))
    whole, drawn = CHAIN.at(data.draw(units)), CHAIN.at(data.draw(units))
    given = {name: whole[name] for name in whole if data.draw(st.booleans())}
    completed = CHAIN.complete(given, drawn)
    assert CHAIN.contains(completed)
    assert all(completed[name] == given[name] for name in given if name in completed)
