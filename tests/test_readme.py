"""The READMEs say what the code does: keys, defaults, columns, commands, files, examples."""

import ast
import importlib
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import yaml
from click.testing import CliRunner
from pydantic import BaseModel

from search_spaces import SHIPPED, Space
from trainables.captioning.settings import DataSettings, Settings
from tuning.cli import main
from tuning.experiment import Experiment
from tuning.experiment_file import read_experiment_file
from tuning.tables import schema

ROOT = Path(__file__).parent.parent
PACKAGES = ("search_spaces", "trainables", "tuning", "cluster", "benchmarks", "examples")
TEXTS = {
    folder: (folder / "README.md").read_text()
    for folder in [ROOT, *(ROOT / package for package in PACKAGES)]
    if (folder / "README.md").exists()
}
TEXT = "\n".join(TEXTS.values())


def section(heading, text=TEXT):
    """The text under the heading that begins so, up to the next heading."""
    found = re.search(rf"^(#+) {re.escape(heading)}.*?$(.*?)(?=^#+ |\Z)", text, re.M | re.S)
    assert found, f"no README has a heading {heading!r}"
    return found[2]


def table(heading):
    """Cells of the first table under a heading, without its head."""
    lines = re.findall(r"^\|(.+)\|$", section(heading), re.M)
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)] for line in lines[2:]]
    assert rows and all(len(row) == 3 for row in rows)
    return rows


def blocks(language):
    """Fenced blocks of a language, by the line on which they begin."""
    fenced = re.finditer(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
    return {TEXT[: f.start()].count("\n") + 1: f[2] for f in fenced if f[1] == language}


def section_model(annotation):
    """The model of a nested section, and how its keys are reached: `search.` or `objectives[].`."""
    inner = getattr(annotation, "__args__", ())
    for candidate, suffix in ((annotation, "."), (inner[0] if inner else None, "[].")):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate, suffix
    return None, ""


def keys(model, prefix=""):
    """(key, field) of everything that a file may say; a section with defaults is told by its keys."""
    for python_name, field in model.model_fields.items():
        name = field.alias or python_name  # `from` is no name in Python
        nested, suffix = section_model(field.annotation)
        if nested is None or suffix == "[]." or field.is_required():
            yield prefix + name, field
        if nested is not None:
            yield from keys(nested, prefix + name + suffix)


TABLES = {
    "The experiment file, key by key": Experiment,
    "`data` of the trainable `captioning`": DataSettings,
    "`model` and hyperparameters of the trainable `captioning`": Settings,
}


@pytest.mark.parametrize("heading, model", TABLES.items())
def test_every_key_is_explained_with_its_default(heading, model):
    rows = {key.strip("`"): (default, meaning) for key, default, meaning in table(heading)}
    fields = dict(keys(model))
    assert list(rows) == list(fields)
    for key, field in fields.items():
        default, meaning = rows[key]
        if field.is_required():
            assert default == "required", key
        else:
            expected = field.get_default(call_default_factory=True)
            told = yaml.safe_load(default.strip("`"))
            assert (tuple(told) if isinstance(expected, tuple) else told) == expected, key
            assert type(told) is type(expected) or isinstance(expected, tuple), key
        assert meaning.startswith(" ".join((field.description or "").split())), key
        assert meaning, key


def choices(annotation):
    """The texts that a key may hold, where these are few."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return [choice for part in get_args(annotation) for choice in choices(part)]


def test_every_choice_of_a_key_is_named():
    for heading, model in TABLES.items():
        rows = {key.strip("`"): default + meaning for key, default, meaning in table(heading)}
        for key, field in keys(model):
            missing = [choice for choice in choices(field.annotation) if f"`{choice}`" not in rows[key]]
            assert not missing, key


FIGURES = "`cider` … `train_loss`"
COSTS = "`params` … `captions_per_s`"


@pytest.mark.parametrize(
    "heading, columns",
    [
        (
            "`trials`, a row per trial",
            [*schema.TRIAL_HEAD, "`config/NAME`", *schema.FIGURES, *schema.TRIAL_TAIL],
        ),
        (
            "`epochs`, a row per trial and epoch",
            [*schema.EPOCH_HEAD, FIGURES, *schema.COSTS, *schema.EPOCH_TAIL],
        ),
        (
            "`variants`, a row per compressed trial",
            [
                *schema.VARIANT_HEAD,
                FIGURES,
                COSTS,
                *(column for column in schema.VARIANT_TAIL if column not in schema.MODEL_COSTS),
            ],
        ),
    ],
)
def test_every_column_is_explained(heading, columns):
    rows = table(heading)
    assert len(rows) == len(columns)
    for row, column in zip(rows, columns, strict=True):
        if isinstance(column, str):
            assert row[0] == column
        else:
            assert row == [f"`{column.name}`", f"`{column.dtype}`", column.meaning]
    assert f"`{schema.MODEL_COSTS[0].name}` … `{schema.MODEL_COSTS[-1].name}`" == COSTS
    assert f"`{schema.FIGURES[0].name}` … `{schema.FIGURES[-1].name}`" == FIGURES


def mapped():
    """Paths in the maps, folders with a slash at their end; a folder's README maps that folder."""
    paths = []
    for folder, text in TEXTS.items():
        (block,) = re.findall(r"^```\n(.*?)^```$", section("Map", text), re.M | re.S)
        stack = [] if folder == ROOT else [f"{folder.name}/"]
        depth = len(stack)
        for line in block.splitlines():
            indent, name = re.match(r"( *)(\S+)", line).groups()
            assert re.match(r" *\S+ {2,}\S", line), f"a path and what it is: {line!r}"
            del stack[depth + len(indent) // 2 :]
            paths.append("".join([*stack, name]))
            stack.append(name)
    return paths


def test_the_map_has_every_python_file():
    paths = mapped()
    assert len(paths) == len(set(paths))
    there = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).glob("**/*.py")}
    packages = {path.removesuffix("__init__.py") for path in there if path.endswith("__init__.py")}
    files = {path for path in there if not path.endswith("__init__.py")}  # its folder's line stands for it
    assert files - set(paths) == set()
    assert packages - set(paths) == set()


def test_what_the_map_names_is_there():
    assert [path for path in mapped() if not (ROOT / path).exists()] == []


def anchors(text):
    """What links into a text may name: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere():
    for folder, text in TEXTS.items():
        links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
        assert links or folder.name == "benchmarks"
        for path, _, anchor in (link.partition("#") for link in links):
            target = (folder / path).resolve()
            assert target.exists(), f"{folder.name}: {path}"
            assert not anchor or anchor in anchors(target.read_text()), f"{folder.name}: {path}#{anchor}"


def commands():
    """Everything typed after `captune`, in blocks and in the text."""
    code = [line for block in blocks("").values() for line in block.splitlines()]
    code += re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S))
    found = [re.match(r"(?:\$ )?(?:\.venv/bin/)?captune ([a-z]\w*)(.*)", line.strip()) for line in code]
    return [(match[1], match[2].split("  #")[0]) for match in found if match]


def commands_there():
    """Those of `tuning`, and those that pyproject.toml adds; what is installed may be older."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    group = "captune.commands"
    found = {name: EntryPoint(name, value, group).load() for name, value in declared[group].items()}
    return main.commands | found


def test_every_command_and_option_exists():
    there = commands_there()
    assert {name for name, _ in commands()} == set(there), "each command is shown, and no other"
    for name, arguments in commands():
        options = {option for parameter in there[name].params for option in parameter.opts}
        for option in re.findall(r"(?<=\s)--?[a-z][\w-]*", re.sub(r'"[^"]*"', "", arguments)):
            assert option in {*options, "--help", "-h"}, f"captune {name} has no {option}"


def test_every_option_in_the_text_exists():
    options = {
        option for command in commands_there().values() for each in command.params for option in each.opts
    }
    for option in re.findall(r"`(--[a-z][\w-]*)", TEXT):
        assert option in {*options, "--help"}, option


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_simulation_that_is_shown_is_what_is_printed(monkeypatch):
    monkeypatch.chdir(ROOT)
    command = "simulate examples/polynomial.yaml --curves trainable --gangs 1,8"
    told = section("What another scheduler would have done")
    assert command in told
    outcome = CliRunner().invoke(main, [*command.split(), "--schedulers", "auto,none"])
    assert outcome.exit_code == 0, outcome.output
    printed = [line.split() for line in outcome.output.splitlines() if line.startswith(("auto", "none"))]
    shown = [line.split() for line in told.splitlines()]
    assert len(printed) == 4 and all(row in shown for row in printed)


def test_every_make_target_exists():
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake (\w+)(?=[`\s])(?=`|[ \t]*#|\n)", TEXT)) <= targets


def test_yaml_blocks_are_valid(tmp_path):
    assert blocks("yaml")
    for line, block in blocks("yaml").items():
        path = tmp_path / f"README-{line}.yaml"
        path.write_text(block)
        tree, _ = read_experiment_file(path)
        if "name" not in tree:
            space = Space.from_dict(tree.pop("search_space"))
            assert not tree and all(Settings.from_flat({n: v}) for n in space for v in space[n].examples())
            continue
        experiment = Experiment.from_dict(tree)
        DataSettings.model_validate(experiment.data)
        Settings.from_flat(experiment.model)
        # The same experiment as in examples/, so that what is printed below it can be repeated.
        example, _ = read_experiment_file(ROOT / "examples" / f"{experiment.name}.yaml")
        assert tree == example


def test_the_shipped_space_is_told_in_full():
    told = section("Search spaces").split("The shipped space searches")[1].split(".\n")[0]
    assert set(re.findall(r"`([\w.]+)`", told)) - {"model"} == set(SHIPPED["captioning"]())


@pytest.mark.timeout(60)  # imports Optuna
def test_names_imported_in_python_blocks_exist():
    assert blocks("python")
    for block in blocks("python").values():
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, name.name) for name in node.names)
