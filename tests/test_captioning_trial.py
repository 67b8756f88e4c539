import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image

from search_spaces import Int
from trainables.captioning import shipped
from trainables.captioning.checkpoint import load_state
from trainables.captioning.compress.artefact import load_artefact
from trainables.captioning.compress.measure import COST
from trainables.captioning.data.loader import eval_batches, eval_images
from trainables.captioning.data.shapes import draw, scene
from trainables.captioning.evaluate import caption_quality, held_out_loss
from trainables.captioning.model.encoders import EfficientNetLite0
from trainables.captioning.trial import Captioning
from trainables.patience import StorageFailed
from trainables.trial import LeftEarly, SettingsError, TrialContext, resolve_trainable

SMALL = {"encoder_width": 4, "decoder_width": 24, "batch_size": 32, "learning_rate": 1e-2, "beam_width": 2}
#: Of which much can be removed.
WIDE = {"encoder_width": 16, "decoder_width": 48}
TIMES = {
    "images_per_s", "data_wait_s", "latency_ms", "latency_p90_ms", "latency_ratio", "latency_ratio_low",
    "latency_ratio_high", "latency_noisy", "captions_per_s",
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    section = {
        "format": "shapes",
        "size": 60,
        "image_size": 24,
        "min_frequency": 1,
        "cache": str(tmp_path_factory.mktemp("cache")),
    }
    Captioning.prepare(section, SMALL)
    return section


def trial(data, max_epochs=3, seed=1, **changes):
    captioning = Captioning()
    context = TrialContext(trial_id="t", seed=seed, max_epochs=max_epochs, data=data)
    captioning.setup({**SMALL, **changes}, context)
    return captioning


def run(captioning, epochs, full_last=True):
    figures = []
    for number in range(epochs):
        trained = captioning.train_epoch()
        figures.append(trained | captioning.evaluate(full=full_last and number == epochs - 1))
    return [{k: v for k, v in row.items() if k not in TIMES} for row in figures]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"compression.method": "low_rank", "compression.ratio": 0.4, "compression.warmup_epochs": 1},
        {"optimizer": "adabelief", "augment": True, "compression.method": "int8"},
        {"compression.method": "prune_units+prune+int4", "compression.ratio": 0.6},
    ],
    ids=["plain", "low_rank", "adabelief-augment-int8", "three-methods-gradually"],
)
def test_a_resumed_trial_is_the_same_as_one_that_never_stopped(data, tmp_path, changes):
    whole = run(trial(data, **changes), 3)
    for done in (1, 2):
        first = trial(data, **changes)
        run(first, done, full_last=False)
        folder = tmp_path / str(done)
        folder.mkdir()
        first.save(folder)
        first.close()
        second = trial(data, **changes)
        second.load(folder)
        assert run(second, 3 - done) == whole[done:]


@pytest.mark.parametrize(
    "changes",
    [{}, {"augment": True, "compression.method": "prune+int8", "compression.ratio": 0.55}],
    ids=["plain", "pruned-gradually"],
)
def test_an_epoch_that_was_broken_off_goes_on_as_if_it_had_not_been(data, tmp_path, changes):
    """Without dropout, whose draws depend on where an epoch is taken up."""
    changes = {"dropout": 0.0, "batch_size": 4, **changes}
    whole = run(trial(data, **changes), 3)
    first, asked = trial(data, **changes), []
    run(first, 1, full_last=False)
    first.context = dataclasses.replace(first.context, leaving=lambda: asked.append(1) or len(asked) == 2)
    with pytest.raises(LeftEarly):
        first.train_epoch()
    first.save(tmp_path)
    first.close()
    second = trial(data, **changes)
    second.load(tmp_path)
    assert 0 < second.trainer.steps_done < second.trainer.steps_per_epoch
    assert run(second, 2) == whole[1:]


def test_a_checkpoint_goes_on_under_other_values_of_what_may_change(data, tmp_path):
    """Each is taken by `load`, and what is new acts: the old optimizer brings no old settings back."""
    first = trial(data, optimizer="sgd", learning_rate=0.1)
    run(first, 1, full_last=False)
    first.save(tmp_path)
    weights = first.trainer.captioner.state_dict()
    others = {
        "augment": True,
        "batch_size": 16,
        "beam_width": 1,
        "dropout": 0.0,
        "encoder_learning_rate_factor": 0.5,
        "gradient_clip": 0.01,
        "label_smoothing": 0.2,
        "learning_rate": 0.2,
        "length_penalty": 0.0,
        "micro_batch_size": 8,
        "momentum": 0.0,
        "weight_decay": 0.3,
    }
    assert set(others) == Captioning.mutable

    def went_on(**changes):
        second = trial(data, **{"optimizer": "sgd", "learning_rate": 0.1, **changes})
        second.load(tmp_path)
        torch.testing.assert_close(second.trainer.captioner.state_dict(), weights, rtol=0, atol=0)
        (figures,) = run(second, 1, full_last=False)
        return figures, second.trainer.captioner.state_dict()

    same, there = went_on()
    for name, value in others.items():
        figures, changed = went_on(**{name: value})
        assert np.isfinite(figures["val_loss"]), name
        if name in ("beam_width", "length_penalty"):  # no matter of training
            torch.testing.assert_close(changed, there, rtol=1e-4, atol=1e-6)
        else:
            assert any(not torch.equal(changed[key], there[key]) for key in there), name
    still, unmoved = went_on(learning_rate=1e-12, weight_decay=0.0, momentum=0.0)
    assert still["learning_rate"] < 1e-12 < same["learning_rate"]
    torch.testing.assert_close(unmoved, weights, rtol=0, atol=1e-9)


def test_a_trial_does_not_depend_on_what_ran_before(data):
    first = run(trial(data), 1)
    run(trial(data, seed=5), 1)
    assert run(trial(data), 1) == first
    assert run(trial(data, seed=5), 1) != first


def test_it_learns(data):
    figures = run(trial(data, max_epochs=8), 8)
    assert figures[-1]["val_loss"] < 0.75 * figures[0]["val_loss"]
    assert figures[-1]["token_accuracy"] > figures[0]["token_accuracy"]
    assert figures[-1]["cider"] > 0.05


def test_a_full_evaluation_tells_quality_and_cost(data):
    captioning = trial(data)
    training = captioning.train_epoch()
    light, full = captioning.evaluate(full=False), captioning.evaluate(full=True)
    assert training.keys() | full == captioning.reported_metrics
    assert set(light) == {"val_loss", "token_accuracy"}
    assert set(full) - set(light) == {"bleu4", "rouge_l", "cider", "compression_ratio", *COST}
    assert all(math.isfinite(value) for value in full.values())
    assert captioning.evaluate(full=True)["latency_ms"] == full["latency_ms"]  # measured once


def test_a_trial_that_moves_keeps_the_processor_of_its_latency(data, tmp_path, monkeypatch):
    for number, name in enumerate(["first", "second"]):
        monkeypatch.setattr("trainables.captioning.trial.processor", lambda name=name: name)
        captioning = trial(data)
        if number:
            captioning.load(tmp_path / "first")
        captioning.evaluate(full=True)
        (tmp_path / name).mkdir()
        captioning.save(tmp_path / name)
        facts = load_state(tmp_path / name).facts
        assert facts["hardware"] == "first" and facts["torch"] == torch.__version__


@pytest.mark.parametrize("method", ["int8", "low_rank", "prune", "share"])
def test_compression_makes_what_ships_smaller(data, method):
    dense = trial(data).evaluate(full=True)
    small = trial(data, **{"compression.method": method}).evaluate(full=True)
    assert small["size_mb"] < dense["size_mb"]
    assert small["val_loss"] == pytest.approx(dense["val_loss"])  # of the model in training


@pytest.mark.parametrize("method", ["none", "int8", "low_rank", "prune+fp16"])
def test_what_is_exported_captions_files_as_the_trial_did(data, tmp_path, method):
    captioning = trial(data, max_epochs=6, **{"compression.method": method})
    run(captioning, 6, full_last=False)
    captioning.evaluate(full=True)
    (tmp_path / "checkpoint").mkdir()
    captioning.save(tmp_path / "checkpoint")
    Captioning.export(tmp_path / "checkpoint", tmp_path / "best")

    pixels = draw(scene(0, 3), 24, noise_seed=(0, 3))
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    images = [tmp_path / "photo.png", tmp_path / "photo.png"]
    first, second = Captioning.caption(tmp_path / "best", images)
    assert first == second and first
    shipped = captioning._shipped()
    ids = shipped.generate(_tensor(pixels), max_tokens=30, beam_width=2, length_penalty=0.7)
    assert captioning.data.tokenizer.decode(ids) == [first]
    config = json.loads((tmp_path / "best" / "config.json").read_text())
    assert config["facts"]["epoch"] == 6 and config["facts"]["cost"]["size_mb"] > 0
    assert config["facts"]["data"]["tokenizer"] == "word"


def test_a_ratio_out_of_reach_is_refused_before_anything_is_trained(data):
    with pytest.raises(SettingsError, match=r"0\.4: prune\+int8 removes between 0\.\d+ and 0\.\d+"):
        trial(data, **WIDE, **{"compression.method": "prune+int8", "compression.ratio": 0.4})


# children


@pytest.fixture(scope="module")
def parent(data, tmp_path_factory):
    captioning = trial(data, max_epochs=6, **WIDE)
    figures = run(captioning, 6)[-1]
    folder = tmp_path_factory.mktemp("parent")
    captioning.save(folder)
    return folder, figures


#: And what each removes.
CHILDREN = {
    "none": 0.0, "int8": 0.7, "share": 0.05,
    "prune+int4": 0.85, "prune_units": 0.6, "low_rank+int8": 0.8, "distil": 0.6,
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("method", CHILDREN)
def test_a_child_is_judged_untrained_and_then_fine_tuned(data, parent, tmp_path, method):
    folder, figures = parent
    (point,), refused = Captioning.variants(folder, [method], [CHILDREN[method]])
    assert refused == [] and point["compression.parent"] == str(folder)
    child = trial(data, max_epochs=4, seed=2, learning_rate=1.0, **point)  # the parent's settings hold
    assert child.train_epoch() == {}
    first = child.evaluate(full=True)
    if method in ("none", "int8"):
        assert first["val_loss"] == pytest.approx(figures["val_loss"], rel=2e-3)
    assert first["compression_ratio"] == pytest.approx(CHILDREN[method], abs=0.09)  # the header: 0.04
    (tmp_path / "checkpoint").mkdir()
    child.save(tmp_path / "checkpoint")
    resumed = trial(data, max_epochs=4, seed=2, **point)
    resumed.load(tmp_path / "checkpoint")
    rest, again = run(child, 3), run(resumed, 3)
    assert rest == again
    assert 0 < rest[0]["learning_rate"] <= SMALL["learning_rate"]
    if method != "none":
        assert rest[-1]["val_loss"] < first["val_loss"] * (1.02 if method == "int8" else 1)
    (tmp_path / "last").mkdir()
    resumed.save(tmp_path / "last")
    Captioning.export(tmp_path / "last", tmp_path / "shipped")
    shipped = load_artefact(tmp_path / "shipped").captioner
    size = (tmp_path / "shipped" / "weights.safetensors").stat().st_size
    assert size == round(rest[-1]["size_mb"] * 1e6)
    assert rest[-1]["compression_ratio"] == pytest.approx(1 - size / (figures["size_mb"] * 1e6), abs=1e-9)
    cost = Captioning.measure(tmp_path / "shipped")
    assert all(cost[name] == rest[-1][name] for name in ("params", "macs", "size_mb", "inference_memory_mb"))
    image = _tensor(draw(scene(0, 3), 24, noise_seed=(0, 3)))
    assert shipped.generate(image, max_tokens=9) == resumed._shipped().generate(image, max_tokens=9)


def test_what_cannot_be_made_of_a_parent_is_named(data, parent, tmp_path):
    folder, _ = parent
    points, refused = Captioning.variants(folder, ["prune+int8", "int8"], [0.3, 0.8])
    assert [(p["compression.method"], p.get("compression.ratio")) for p in points] == [
        ("prune+int8", 0.8),
        ("int8", None),
    ]
    assert len(refused) == 1 and "prune+int8: 0.3: " in refused[0]
    with pytest.raises(SettingsError, match="'int9'.*did you mean 'int8'"):
        Captioning.variants(folder, ["int9"], [0.5])
    with pytest.raises(SettingsError, match="not a captioning checkpoint"):
        Captioning.variants(tmp_path, ["int8"], [0.5])
    child = trial(data, **{"compression.parent": str(folder), "compression.method": "int8"})
    child.train_epoch()
    (tmp_path / "child").mkdir()
    child.save(tmp_path / "child")
    with pytest.raises(SettingsError, match=r"is compressed \(int8\); name one that is whole"):
        Captioning.variants(tmp_path / "child", ["int4"], [0.5])


def test_a_parent_of_other_data_is_refused(data, parent):
    with pytest.raises(StorageFailed, match="other data"):
        trial({**data, "image_size": 32}, **{"compression.parent": str(parent[0])})


def test_captions_that_changed_since_are_refused(data, tmp_path):
    """Though their vocabulary is as large: its numbers mean other words."""
    before, now = ({**data, "vocabulary_size": 24, "seed": seed} for seed in (0, 5))
    trained = trial(before)
    trained.save(tmp_path)
    assert trial(now).data.tokenizer.vocabulary_size == trained.data.tokenizer.vocabulary_size == 24
    with pytest.raises(StorageFailed, match="captions have changed"):
        trial(now, **{"compression.parent": str(tmp_path), "compression.method": "int8"})
    with pytest.raises(StorageFailed, match="captions have changed"):
        trial(now).load(tmp_path)


def test_a_child_for_which_memory_did_not_suffice_takes_smaller_parts(data, parent):
    child = {"compression.parent": str(parent[0]), "compression.method": "int8"}
    assert trial(data, **child, micro_batch_size=4).settings.micro_batch_size == 4


def test_distilling_without_a_parent_is_refused(data):
    with pytest.raises(SettingsError, match="distil needs a trained parent"):
        trial(data, **{"compression.method": "distil"})


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["prune+int4", "distil+int8"])
def test_a_frozen_encoder_is_compressed_too(data, tmp_path, method):
    pytest.importorskip("efficientnet_lite_pytorch")
    frozen = {"encoder": "efficientnet_lite0", "encoder_trainable": False}
    section = {**data, "size": 10, "image_size": 32}
    whole = trial(section, **frozen)
    whole.train_epoch()
    (tmp_path / "parent").mkdir()
    whole.save(tmp_path / "parent")
    ((point,), _) = Captioning.variants(tmp_path / "parent", [method], [0.85 if "int4" in method else 0.73])
    child = trial(section, **point)
    child.train_epoch()
    assert child.features is None  # those of the whole encoder are not its
    before = child.evaluate(full=True)
    child.train_epoch()
    assert child.features is not None
    (tmp_path / "child").mkdir()
    child.save(tmp_path / "child")
    again = trial(section, **point)
    again.load(tmp_path / "child")
    assert again.features is None
    assert again.evaluate(full=False)["val_loss"] == pytest.approx(
        child.evaluate(full=False)["val_loss"], abs=2e-3
    )
    assert before["compression_ratio"] > 0.7


def _tensor(pixels):
    import torch

    return torch.from_numpy(np.array(pixels)[None])


def test_cached_features_give_what_the_frozen_encoder_gives(data, tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    frozen = {"encoder": "efficientnet_lite0", "encoder_trainable": False}
    section = {**data, "size": 10, "image_size": 64}
    Captioning.prepare(section, {**SMALL, **frozen})
    captioning = trial(section, **frozen)
    assert captioning.features is not None and captioning.features.dtype == np.float16
    cached = captioning.evaluate(full=False)
    from_images = eval_batches(captioning.data, batch_size=64)
    direct = held_out_loss(captioning.trainer.captioner, from_images, captioning.device)
    assert direct["val_loss"] == pytest.approx(cached["val_loss"], abs=1e-3)


@pytest.mark.timeout(120)
def test_a_compressed_encoder_sees_the_images_once_for_all_trials(data, monkeypatch):
    pytest.importorskip("efficientnet_lite_pytorch")
    frozen = {"encoder": "efficientnet_lite0", "encoder_trainable": False}
    section = {**data, "size": 12, "image_size": 32}
    changes = {**frozen, "compression.method": "int4", "compression.warmup_epochs": 1}
    first = trial(section, **changes)
    first.train_epoch()
    written = first.evaluate(full=True)
    small, images = first._shipped(), eval_images(first.data, batch_size=64)
    seen = caption_quality(small, first.data, "val", images, first.settings, first.device)
    assert {name: written[name] for name in seen} == pytest.approx(seen, abs=1e-6)
    first.train_epoch()  # compressed before it

    other = trial(section, seed=2, **changes)
    other.measured = {"params": 1}  # measuring runs the encoder, too
    monkeypatch.setattr(EfficientNetLite0, "forward", lambda *_: pytest.fail("the encoder ran again"))
    for _ in range(2):
        other.train_epoch()
        other.measured = {"params": 1}
        other.evaluate(full=True)


@pytest.mark.parametrize(
    ("data_changes", "settings", "searched", "path", "message"),
    [
        ({"formt": "shapes"}, {}, {}, ("data", "formt"), "did you mean 'format'"),
        ({"image_size": 4}, {}, {}, ("data", "image_size"), "16"),
        ({"seed": -1}, {}, {}, ("data", "seed"), "greater than or equal to 0"),
        ({"format": "coco"}, {}, {}, ("data", "path"), "folder"),
        (
            {"format": "flickr"},
            {},
            {},
            ("data", "format"),
            "got 'flickr': should be 'shapes', .* did you mean 'flickr8k'",
        ),
        ({}, {"encoder": "resnet"}, {}, ("model", "encoder"), "got 'resnet': should be 'cnn'"),
        ({"path": "/tmp"}, {}, {}, ("data", "path"), "leave the path out"),
        ({}, {"droput": 0.1}, {}, ("model", "droput"), "did you mean 'dropout'"),
        ({}, {"dropout": 1.5}, {}, ("model", "dropout"), "1.5"),
        ({}, {"compression.rato": 0.5}, {}, ("model", "compression", "rato"), "did you mean 'ratio'"),
        ({}, {}, {"learning_rte": [1e-3]}, ("search_space", "learning_rte"), "learning_rate"),
        ({}, {}, {"compression.ratio": [0.5, 1.0]}, ("search_space", "compression.ratio"), "less than 1"),
        ({}, {"decoder": "transformer", "decoder_width": 250}, {}, ("model", "decoder_heads"), "nearest"),
        (
            {},
            {"decoder": "transformer", "decoder_heads": 6},
            {"decoder_width": [96, 128]},
            ("search_space", "decoder_width"),
            "6 heads must divide decoder_width 128",
        ),
        ({}, {"encoder_trainable": False}, {}, ("model", "encoder_trainable"), "random weights"),
        (
            {},
            {"decoder": "transformer"},
            {"decoder_width": Int(64, 512).examples()},
            ("search_space", "decoder_width"),
            "4 heads must divide decoder_width 65",
        ),
        (
            {},
            {"encoder": "efficientnet_lite0", "encoder_trainable": False},
            {"augment": [True, False]},
            ("search_space", "augment"),
            "computed once",
        ),
    ],
)
def test_what_cannot_work_is_refused_with_its_place(data, data_changes, settings, searched, path, message):
    with pytest.raises(SettingsError, match=message) as caught:
        Captioning.check({**data, **data_changes}, settings, searched)
    assert caught.value.path == path


def test_what_can_work_is_not_refused(data):
    searched = {"decoder": ["gru", "transformer"], "decoder_width": [128, 256], "learning_rate": [1e-4, 1e-2]}
    Captioning.check(data, SMALL | {"decoder_width": 64}, searched)
    assert resolve_trainable("captioning") is Captioning


def test_the_report_on_the_data_names_what_was_skipped(tmp_path):
    lines = ["image,caption"]
    for number in range(30):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,a red square")
    (tmp_path / "7.png").write_bytes(b"no image")
    (tmp_path / "captions.txt").write_text("\n".join(lines))
    section = {
        "format": "flickr8k",
        "path": str(tmp_path),
        "image_size": 16,
        "min_frequency": 1,
        "max_bad_fraction": 0.1,
        "cache": str(tmp_path / "cache"),
    }
    report = Captioning.prepare(section, SMALL)
    assert report[0].startswith("29 images (")
    assert "1 skipped as bad:" in report
    assert any(line.startswith("  7.png: ") for line in report)


@pytest.mark.timeout(120)
def test_what_ships_has_a_card_and_graphs_for_other_programs(data, parent, tmp_path):
    pytest.importorskip("onnxruntime")
    folder, figures = parent
    Captioning.export(folder, tmp_path / "shipped")
    card = (tmp_path / "shipped" / "README.md").read_text()
    assert f"{figures['cider']:.4g}" in card and "ONNX" not in card
    assert "`shapes`" in card and "Trial t." in card
    said = Captioning.convert(tmp_path / "shipped", data)
    assert "encoder.onnx" in said and (tmp_path / "shipped" / "decoder_step.onnx").exists()
    assert "int8" not in said and not list((tmp_path / "shipped").glob("*.int8.onnx"))
    assert "| ONNX Runtime |" in (tmp_path / "shipped" / "README.md").read_text()


@pytest.mark.timeout(120)
def test_what_ships_in_int8_has_int8_graphs_which_are_measured(data, parent, tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    folder, _ = parent
    child = trial(data, **{"compression.method": "int8", "compression.parent": str(folder)})
    child.train_epoch()
    (tmp_path / "child").mkdir()
    child.save(tmp_path / "child")
    Captioning.export(tmp_path / "child", tmp_path / "shipped")
    said = Captioning.convert(tmp_path / "shipped", data)
    size = {way: (tmp_path / "shipped" / f"decoder_step{way}.onnx").stat().st_size for way in ("", ".int8")}
    assert size[".int8"] < 0.6 * size[""]
    told = dict(re.findall(r"^(.+): [\d.e-]+ MB, [\d.]+ of PyTorch's time, CIDEr ([\d.e-]+) ", said, re.M))
    assert list(told) == ["PyTorch", "ONNX Runtime", "ONNX Runtime, int8"]
    assert float(told["ONNX Runtime"]) == pytest.approx(float(told["PyTorch"]), rel=1e-3, abs=1e-6)
    assert f"| {told['ONNX Runtime, int8']} |" in (tmp_path / "shipped" / "README.md").read_text()

    gone = data | {"format": "flickr8k", "path": str(tmp_path / "gone")}
    monkeypatch.setattr(shipped, "write_onnx", lambda *_, **__: "graphs")  # are there
    said = Captioning.convert(tmp_path / "shipped", gone)
    assert said.count("CIDEr not measured: data.path") == 3


def test_one_sequence_under_two_names_is_refused(data):
    with pytest.raises(
        SettingsError, match=r"^compression.methods: 'int8\+prune' is the same as 'prune\+int8'"
    ):
        Captioning.check_variants(["none", "prune+int8", "prune+int4", "int8+prune"], [0.5])
    searched = {"compression.method": ["int8+low_rank", "int8", "low_rank + int8"]}
    with pytest.raises(
        SettingsError, match=r"^search_space.compression.method: 'low_rank \+ int8' is .* 'int8\+low_rank'"
    ):
        Captioning.check(data, {}, searched)
    Captioning.check(data, {}, {"compression.method": ["prune+int8", "prune+int4", "prune"]})


def test_methods_that_do_not_exist_are_refused_before_anything_is_trained():
    Captioning.check_variants(["none", "prune+int8", "distil+int8"], [0.5])
    with pytest.raises(SettingsError, match="compression.methods: got 'prune.int9': .*did you mean 'int8'"):
        Captioning.check_variants(["int8", "prune+int9"], [0.5])
