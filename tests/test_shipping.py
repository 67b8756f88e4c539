"""`captune export` and `captune compare`: which model is taken, what is refused, what lies there then."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from recorded import describe, record

from tuning.choosing.shipping import ship
from tuning.choosing.side_by_side import compare
from tuning.cli import main
from tuning.tables.query import QueryError
from tuning.tables.schema import VARIANT_HEAD
from tuning.tables.storage import write_table

#: cider, size_mb, latency_ms by trial; the last looks best and diverged.
TRIALS = [(0.9, 8.0, 30.0), (0.8, 3.0, 12.0), (0.3, 1.0, 10.0), (0.99, 0.5, 1.0)]
VARIANTS = [
    ("00000-none", "00000", "none", 0.9, 8.0, 30.0, "completed"),
    ("00000-int8", "00000", "int8", 0.85, 2.0, 25.0, "completed"),
    ("00001-int8", "00001", "int8", 0.95, 0.8, 22.0, "failed"),
]


class Tellers:
    """A trainable whose models are texts: exported in capitals, compared letter by letter."""

    @classmethod
    def export(cls, checkpoint, folder):
        text = (checkpoint / "text").read_text()
        if text == "broken":
            raise RuntimeError("cannot be read")
        folder.mkdir()
        (folder / "text").write_text(text.upper())

    @classmethod
    def compare(cls, a, b, data, *, progress):
        texts = [(folder / "text").read_text() for folder in (a, b)]
        pairs = list(zip(*texts, strict=True))
        letters = [{"a": one, "b": other, "place": n, "share": n / 8} for n, (one, other) in enumerate(pairs)]
        return {"letters": letters, "sums": [{"voice": data["voice"], "same": None, "known": True}]}

    setup = train_epoch = evaluate = save = load = close = None


for method in ("setup", "train_epoch", "evaluate", "save", "load", "close"):
    setattr(Tellers, method, lambda self: None)


@pytest.fixture
def birds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return found(tmp_path)


def found(tmp_path, name="birds", **changes):
    spec = {
        "trainable": f"{__name__}:Tellers",
        "data": {"voice": "soft"},
        "objectives": [{"metric": "cider", "mode": "max"}],
    }
    spec = describe(tmp_path / "captune-results", name=name, **(spec | changes))
    figures = [dict(zip(("cider", "size_mb", "latency_ms"), trial, strict=True)) for trial in TRIALS]
    states = ["completed", "completed", "completed", "diverged"]
    results = record(
        spec, [({"learning_rate": 0.1}, [each], state) for each, state in zip(figures, states, strict=True)]
    )
    for trial_id, folder in results.trials.set_index("trial_id")["checkpoint"].items():
        (results.folder / folder).mkdir(parents=True)
        (results.folder / folder / "text").write_text(f"trial {trial_id}")
    return results


@pytest.fixture
def variants(birds):
    columns = ["variant_id", "parent", "methods", "cider", "size_mb", "latency_ms", "state"]
    table = pd.DataFrame(VARIANTS, columns=columns).convert_dtypes()
    table = table.assign(checkpoint="variants/" + table["variant_id"])
    table = table.reindex(columns=dict.fromkeys([*(each.name for each in VARIANT_HEAD), *table]))
    write_table(table, birds.folder / "variants.parquet")
    for folder in table["checkpoint"]:
        (birds.folder / folder).mkdir(parents=True)
        (birds.folder / folder / "text").write_text(folder)


def captune(code, *words):
    result = CliRunner().invoke(main, words)
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.output


def words_of(text):
    return " ".join(text.split())


# export


@pytest.mark.parametrize(
    "words, trial, why",
    [
        ([], "00000", "why best cider of 3 candidates"),
        (["--max-size-mb", "5"], "00001", "why best cider of the 2 of 3 candidates with size_mb <= 5"),
        (
            ["--max-size-mb", "5", "--max-latency-ms", "10"],
            "00002",
            "the 1 of 3 candidates with size_mb <= 5",
        ),
        (["--trial", "00002"], "00002", "exported trial 00002 (completed)"),
        (["--trial", "00003"], "00003", "exported trial 00003 (diverged)"),
    ],
)
def test_the_best_within_the_limits_is_exported(birds, words, trial, why):
    text = captune(0, "export", "birds", *words)
    assert f"exported trial {trial} " in words_of(text) and why in words_of(text)
    folder = Path(text.splitlines()[-1].split(maxsplit=1)[1].strip())
    assert folder == Path("captune-results/birds/exported") / trial
    assert (folder / "text").read_text() == f"TRIAL {trial}"
    assert "cider" in text and "size_mb" in text and "latency_ms" in text
    captune(0, "export", "birds", *words)  # once more into its own folder


def test_variants_are_exported_where_there_are_any(birds, variants):
    text = captune(0, "export", "birds", "--max-size-mb", "5", "--to", "to/ship")
    assert "exported variant 00000-int8 (completed)" in words_of(text) and "parent 00000" in words_of(text)
    assert [path.name for path in Path("to").iterdir()] == ["ship"]
    assert Path("to/ship/text").read_text() == "VARIANTS/00000-INT8"
    captune(0, "export", "birds", "--variant", "00001-int8", "--to", "named")
    captune(0, "export", "birds", "--trial", "00001", "--to", "trial")
    assert Path("trial/text").read_text() == "TRIAL 00001"


def test_limits_that_nothing_keeps_are_refused_with_what_comes_nearest(birds):
    text = captune(1, "export", "birds", "--max-size-mb", "0.8")
    assert "nothing in 'birds' keeps size_mb <= 0.8; nearest is trial 00002, size_mb 1 is 25 % above" in text
    text = captune(1, "export", "birds", "--max-size-mb", "2", "--max-latency-ms", "9")
    assert "nearest is trial 00002, latency_ms 10 is 11 % above 9" in text
    assert not Path("captune-results/birds/exported").exists()


def test_constraints_hold_beside_the_limits(birds, tmp_path):
    cider = {"metric": "cider", "min": 0.85}
    found(tmp_path, "choosy", constraints=[cider, {"metric": "size_mb", "max": 9}])
    assert "trial 00000" in captune(0, "export", "choosy")
    text = captune(1, "export", "choosy", "--max-size-mb", "5")
    assert "keeps size_mb <= 5, cider >= 0.85; nearest is trial 00001, cider 0.8 is 5.9 % below 0.85" in text
    assert "size_mb <= 9, cider" in words_of(captune(0, "export", "choosy", "--max-size-mb", "20"))
    assert "trial 00002" in captune(0, "export", "choosy", "--trial", "00002")


def test_a_checkpoint_that_is_gone_is_named_with_what_is_at_hand(birds):
    shutil.rmtree(birds.folder / birds.trials["checkpoint"][0])
    for words in ([], ["--trial", "00000"]):
        text = captune(1, "export", "birds", *words)
        assert "the checkpoint of trial 00000 is gone" in text and "checkpoints/00000/0001" in text
        assert "at hand: trial 00001, trial 00002, trial 00003" in text
    assert "trial 00001" in captune(0, "export", "birds", "--trial", "00001")


def test_a_trial_without_a_result_has_no_checkpoint(birds, tmp_path):
    record(describe(tmp_path / "captune-results", name="young"), [({"learning_rate": 0.1}, [], "running")])
    text = captune(1, "export", "young", "--trial", "00000")
    assert "trial 00000 of 'young' has no checkpoint (it is running); at hand: none of the others" in text
    assert "nothing in 'young' has score, so there is no best" in captune(1, "export", "young")
    assert "nothing in 'young' has score, size_mb" in captune(1, "export", "young", "--max-size-mb", "5")


@pytest.mark.parametrize(
    "words, message",
    [
        (["brids"], "did you mean 'birds'"),
        (["birds", "--trial", "0002"], "no trial of 'birds' is called '0002'; did you mean '00002'"),
        (["birds", "--variant", "00002"], "no variant of 'birds' is called '00002'"),
        (["birds", "--trial", "00002", "--max-size-mb", "5"], "each says which model is exported"),
        (["birds", "--trial", "00002", "--variant", "00002-int8"], "each says which model is exported"),
        (["birds", "--max-size-mb", "nan"], "size_mb must be a finite number"),
        (["birds", "--to", "full"], "--to takes a new or an empty folder, but full has something in it"),
    ],
)
def test_export_refuses(birds, words, message):
    Path("full").mkdir()
    Path("full/mine").write_text("precious")
    assert message in captune(2, "export", *words)
    assert Path("full/mine").read_text() == "precious"


def test_an_export_that_fails_leaves_what_was_there(birds):
    captune(0, "export", "birds", "--trial", "00001")
    (birds.folder / birds.trials["checkpoint"][1] / "text").write_text("broken")
    text = captune(1, "export", "birds", "--trial", "00001")
    assert "checkpoints/00001/0001 could not be exported: RuntimeError: cannot be read" in text
    assert "0001 could not be exported" in captune(1, "compare", "birds", "00000", "00001")
    folder = birds.folder / "exported"
    assert (folder / "00001" / "text").read_text() == "TRIAL 00001"
    assert [path.name for path in folder.iterdir()] == ["00001"]


def test_an_empty_folder_is_as_good_as_none(birds):
    Path("empty").mkdir()
    captune(0, "export", "birds", "--to", "empty")
    assert Path("empty/text").read_text() == "TRIAL 00000"


def test_an_empty_folder_may_be_where_one_stands_or_a_link(birds, monkeypatch):
    for name in ("here", "linked"):
        Path(name).mkdir()
    Path("link").symlink_to("linked")
    captune(0, "export", "birds", "--to", "link")
    assert Path("link").is_symlink() and Path("linked/text").read_text() == "TRIAL 00000"
    storage = str(birds.folder.parent.absolute())
    monkeypatch.chdir("here")
    captune(0, "export", "birds", "--to", ".", "--storage", storage)
    assert Path("text").read_text() == "TRIAL 00000"
    assert "has something in it" in captune(2, "export", "birds", "--to", "new/..", "--storage", storage)
    assert Path("text").exists()


def test_without_export_the_checkpoint_ships(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.json").write_text("{}")
    ship("curves", tmp_path / "checkpoint", tmp_path / "deep" / "best")
    assert [path.name for path in (tmp_path / "deep" / "best").iterdir()] == ["state.json"]


# compare


def test_two_models_are_compared_as_they_ship(birds, variants):
    tables = compare(birds, "00001", "00002")
    assert list(tables) == ["letters", "sums"]
    assert "".join(tables["letters"]["a"]) == "TRIAL 00001" and "".join(tables["letters"]["b"])[-1] == "2"
    assert tables["letters"].dtypes.astype(str).tolist() == ["string", "string", "Int64", "Float64"]
    assert tables["sums"].iloc[0].tolist()[::2] == ["soft", True] and tables["sums"].isna().sum().sum() == 1
    assert "".join(compare(birds, "00000-none", "00000-int8")["letters"]["b"]) == "VARIANTS/00000-INT8"


def test_the_command_shows_the_tables(birds):
    text = captune(0, "compare", "birds", "00000", "00002", "--limit", "2")
    lines = text.splitlines()
    assert lines[0].split() == ["a", "b", "place", "share"] and lines[2].split()[:2] == ["T", "T"]
    assert "letters: 2 of 11 rows" in text and "sums: 1 of 1 row" in text
    assert lines[-1] == "a is trial 00000, b is trial 00002"
    assert "letters" not in captune(0, "compare", "birds", "00000", "00002", "--show", "sums")
    rows = json.loads(captune(0, "compare", "birds", "00000", "00002", "--format", "json"))
    assert len(rows) == 11 and rows[-1] == {"a": "0", "b": "2", "place": 10, "share": 1.25}
    text = captune(0, "compare", "birds", "00000", "00002", "--format", "csv", "--show", "sums")
    assert text == "voice,same,known\nsoft,,True\n"


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["birds", "00000", "0002"],
            "no variant and no trial of 'birds' is called '0002'; did you mean '00002'",
        ),
        (["birds", "00000", "00001", "--show", "leters"], "did you mean 'letters'"),
        (["brids", "00000", "00001"], "did you mean 'birds'"),
    ],
)
def test_compare_refuses(birds, words, message):
    assert message in words_of(captune(2, "compare", *words))


def test_compare_needs_a_trainable_that_can(birds, tmp_path):
    found(tmp_path, "plain", trainable="curves", data={})
    text = captune(2, "compare", "plain", "00000", "00001")
    assert "'plain' tunes 'curves'" in text and "no class method `compare`" in text
    with pytest.raises(QueryError):
        compare(found(tmp_path, "flat", trainable="curves", data={}), "00000", "00001")


def test_compare_names_a_checkpoint_that_is_gone(birds):
    shutil.rmtree(birds.folder / birds.trials["checkpoint"][0])
    assert "the checkpoint of trial 00000 is gone" in captune(1, "compare", "birds", "00001", "00000")
