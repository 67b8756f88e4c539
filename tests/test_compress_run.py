"""The best trials of a search compressed, on a real Ray: run, measured, extended, killed, resumed."""

from pathlib import Path

import pytest

from tuning import Experiment, load, run
from tuning.results import check_tables
from tuning.runner import ExportFailed, compress

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def experiment(tmp_path, **compression):
    tree = {
        "name": "small",
        "trainable": "compressible:Compressible",
        "model": {"log": str(tmp_path / "measured.log")},
        "search_space": {"learning_rate": {"float": [1e-4, 1e-1], "log": True}},
        "objectives": [{"metric": "score", "mode": "max"}],
        "scheduler": {"algorithm": "none", "max_epochs": 3},
        "budget": {"trials": 2},
        "compression": {"search": "children", "parents": 1, "epochs": 2} | compression,
        "storage": str(tmp_path),
    }
    return Experiment.from_dict(tree)


def epochs_of(found):
    return found.epochs[["trial_id", "epoch", "at"]].to_dict("records")


def test_the_best_trial_is_compressed_measured_and_later_extended(cluster, tmp_path):
    said = []
    asked = {"methods": ["none", "fp16", "prune", "broken", "unmeasurable"], "ratios": [0.5, 0.95]}
    with pytest.raises(ExportFailed, match="1 variant could not be .*v00004: .*no clock"):
        run(experiment(tmp_path, **asked), say=said.append)
    found = load(tmp_path / "small")
    best, variants = found.best(), found.variants.set_index("variant_id")
    assert (found.folder / "best").is_dir()
    assert set(variants["parent"]) == {best["trial_id"]}
    assert list(variants["methods"]) == ["none", "fp16", "prune", "broken", "unmeasurable"]
    assert list(variants["state"]) == ["stopped", "stopped", "stopped", "failed", "completed"]
    assert "cannot be compressed" in variants.at["v00003", "error"]
    assert "no clock" in variants.at["v00004", "error"]
    assert variants.at["v00000", "score"] == pytest.approx(best["score"], abs=1e-9)
    assert f"{best['trial_id']}: prune 0.95 would leave nothing" in said
    measured = variants[variants["measured_at"].notna()]
    assert list(measured.index) == ["v00000", "v00001", "v00002"]
    assert (measured["size_mb"] % 1).round(6).eq(0.001).all(), "as measured at the end"
    assert (found.folder / "variants/exported/v00001/model.json").is_file()
    children = load(found.folder / "variants")
    assert not check_tables(children.trials, children.epochs)

    more = experiment(tmp_path, methods=["fp16", "prune", "none"], ratios=[0.5, 0.9])
    with pytest.raises(ExportFailed, match="v00004"):
        compress(more)
    extended = load(found.folder).variants
    assert list(extended["methods"][5:]) == ["prune"] and extended["ratio_asked"].iloc[-1] == 0.9
    before = epochs_of(children)
    assert epochs_of(load(found.folder / "variants"))[: len(before)] == before
    log = Path(more.model["log"]).read_text().split()
    assert sorted(log) == ["v00000", "v00001", "v00002", "v00004", "v00004", "v00005"]
