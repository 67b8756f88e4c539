import contextlib
import errno
import json
import resource
from pathlib import Path

import pytest
import torch

from trainables.captioning.checkpoint import (
    TrialState,
    load_captioner,
    load_state,
    load_tokenizer,
    load_training,
    save_checkpoint,
)
from trainables.captioning.compress import compress
from trainables.captioning.compress.hold import hold, released
from trainables.captioning.data.tokenizer import CaptionTokenizer
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.optimizer import build_optimizer
from trainables.captioning.settings import Settings
from trainables.checkpoint_files import write_checkpoint

TOKENIZER = CaptionTokenizer.train(
    ["a red circle", "a blue square above it"], kind="word", vocabulary_size=50, min_frequency=1
)


def captioner(**changes):
    settings = Settings.from_flat({"encoder_width": 4, "decoder_width": 16, **changes})
    return Captioner(settings, TOKENIZER.vocabulary_size, 32)


def save(folder, model, **state):
    optimizer = build_optimizer(model, model.settings)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    described = {
        "epoch": 3,
        "image_size": 32,
        "vocabulary_size": TOKENIZER.vocabulary_size,
        "max_caption_tokens": 9,
    }
    save_checkpoint(
        folder,
        state=TrialState(settings=model.settings, model=model.settings, **{**described, **state}),
        captioner=model,
        tokenizer=TOKENIZER,
        training={"optimizer": optimizer.state_dict()},
    )
    return optimizer


def test_everything_comes_back(tmp_path):
    torch.manual_seed(0)
    model = captioner(**{"compression.method": "int8", "learning_rate": 0.003})
    optimizer = save(tmp_path, model, measured={"size_mb": 1.5})
    state = load_state(tmp_path)
    assert state.settings == model.settings
    assert (state.epoch, state.strength, state.measured) == (3, None, {"size_mb": 1.5})
    assert load_tokenizer(tmp_path).encode(["a red square"], 9) == TOKENIZER.encode(["a red square"], 9)

    other = load_captioner(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
    stored = load_training(tmp_path)["optimizer"]
    torch.testing.assert_close(stored, optimizer.state_dict(), rtol=0, atol=0)


def test_frozen_pretrained_weights_are_left_out_and_left_alone(tmp_path):
    pytest.importorskip("efficientnet_lite_pytorch")
    model = captioner(encoder="efficientnet_lite0", encoder_trainable=False)
    save(tmp_path, model)
    assert (tmp_path / "weights.safetensors").stat().st_size < 1_000_000
    other = load_captioner(tmp_path)
    assert torch.equal(other.decoder.output.weight, model.decoder.output.weight)
    assert other.encoder.fingerprint == model.encoder.fingerprint


def test_weights_of_another_shape_are_refused_by_name(tmp_path):
    for changes, message in (
        ({"decoder_width": 24}, r"decoder\.\S+ is \(.*16.*\), the model built for it has \(.*24"),
        ({"decoder_layers": 2}, "decoder"),
    ):
        model = captioner()
        model.settings = captioner(**changes).settings
        save(tmp_path, model)
        with pytest.raises(ValueError, match=message):
            load_captioner(tmp_path)


@pytest.mark.parametrize("method", ["prune_units+int4", "low_rank+prune", "distil", "share+int8"])
def test_a_compressed_captioner_comes_back_as_it_is_trained(tmp_path, method):
    torch.manual_seed(0)
    names = method.split("+")
    model = hold(
        compress(captioner(decoder_layers=2, decoder_width=32), names, 0.85 if len(names) > 1 else 0.5)
    )
    save(tmp_path, model, strength=0.5, encodings=model.encodings)
    other = load_captioner(tmp_path)
    assert (other.settings, other.encodings) == (model.settings, model.encodings)
    for name, tensor in released(model).state_dict().items():
        assert torch.equal(released(other).state_dict()[name], tensor), name


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not a captioning checkpoint"):
        load_state(tmp_path)
    save(tmp_path, captioner())
    path = tmp_path / "trial.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))
    with pytest.raises(ValueError, match="format 99.*format 2"):
        load_state(tmp_path)


@contextlib.contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.pt"])
def test_what_has_no_room_raises_the_systems_error_and_leaves_nothing(tmp_path, file):
    save(tmp_path, captioner())
    place = tmp_path / "checkpoints" / "1"
    with files_of_at_most((tmp_path / file).stat().st_size - 1), pytest.raises(OSError) as caught:
        write_checkpoint(lambda folder: save(folder, captioner()), str(place))
    assert caught.value.errno == errno.EFBIG
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize("reader", ["read_text", "read_bytes"])
def test_a_checkpoint_that_is_away_is_not_taken_for_none(tmp_path, monkeypatch, reader):
    save(tmp_path, captioner())

    def away(self, **_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, reader, away)
    with pytest.raises(OSError, match="Stale") as caught:
        load_captioner(tmp_path)
    assert caught.value.errno == errno.ESTALE


def test_code_in_the_optimizer_file_is_not_run(tmp_path):
    save(tmp_path, captioner())
    torch.save({"optimizer": print}, tmp_path / "optimizer.pt")
    with pytest.raises(Exception, match="weights_only|Weights only"):
        load_training(tmp_path)
