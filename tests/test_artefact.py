import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from trainables.captioning.compress import compress
from trainables.captioning.compress.arithmetic import fast
from trainables.captioning.compress.artefact import load_artefact, save_artefact, size_bytes
from trainables.captioning.compress.hold import released
from trainables.captioning.compress.measure import count_macs, count_parameters
from trainables.captioning.data.tokenizer import CaptionTokenizer
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Settings

SIZE = 16
SHARED = {"tie_embeddings": True, "share_layers": True}
every_decoder = pytest.mark.parametrize("kind", ["gru", "gru_attention", "transformer"])
sharing = pytest.mark.parametrize("shared", [{}, SHARED], ids=["whole", "shared"])


@pytest.fixture(scope="module")
def tokenizer():
    captions = ["a b c d e f g h i j k l m n o p q r s t u v w x y z"] * 3
    return CaptionTokenizer.train(captions, kind="word", vocabulary_size=100, min_frequency=1)


def make(kind: str, vocabulary: int, **settings) -> Captioner:
    torch.manual_seed(0)
    settings = {"decoder_width": 48, "encoder_width": 4, "decoder_layers": 2} | settings
    captioner = Captioner(Settings(decoder=kind, **settings), vocabulary, SIZE).eval()
    with torch.no_grad():  # far from uniform, so that captions tell images apart
        for parameter in captioner.decoder.parameters():
            parameter *= 3
    return captioner


def shipped(captioner: Captioner, method: str, ratio: float | None = None) -> Captioner:
    names = [] if method == "none" else method.split("+")
    return fast(released(compress(captioner, names, ratio)))


@every_decoder
@pytest.mark.parametrize(
    ("method", "ratio"),
    [
        ("none", None),
        ("int8", None),
        ("fp16", None),
        ("low_rank", 0.5),
        ("prune_units+prune+int4", 0.82),
        ("low_rank+int8_per_tensor", 0.8),
        ("distil+bf16", 0.7),
    ],
)
@sharing
def test_a_loaded_artefact_writes_the_same_captions(
    kind, shared, method, ratio, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr("trainables.captioning.compress.arithmetic.FEWEST_WEIGHTS", 4096)
    captioner = shipped(make(kind, tokenizer.vocabulary_size, **shared), method, ratio)
    save_artefact(captioner, tokenizer, tmp_path / "best", max_tokens=7, facts={"trial": "t1"})
    loaded = load_artefact(tmp_path / "best")
    images = torch.randint(256, (5, SIZE, SIZE, 3)).to(torch.uint8)
    tokens = torch.randint(4, tokenizer.vocabulary_size, (5, 6))
    assert torch.equal(loaded.captioner(images, tokens), captioner(images, tokens))
    ids = captioner.generate(images, max_tokens=7, beam_width=3, length_penalty=0.7)
    captions = loaded.caption(list(images.numpy()), batch_size=2)
    assert captions == tokenizer.decode(ids)
    assert any(captions)
    assert loaded.facts == {"trial": "t1"}
    assert not loaded.captioner.training
    written = tmp_path / "best" / "weights.safetensors"
    assert size_bytes(captioner) == size_bytes(loaded.captioner) == written.stat().st_size


@every_decoder
def test_shared_weights_are_counted_and_stored_once(kind):
    settings = {"decoder_layers": 3}
    whole, shared = make(kind, 200, **settings), make(kind, 200, **settings, **SHARED)
    gru = 2 * (48 * 144 + 144)
    layer = {"transformer": 8 * (48 * 48 + 48) + 2 * 4 * 48 * 48 + 5 * 48 + 6 * 48}.get(kind, gru)
    assert count_parameters(whole) - count_parameters(shared) == 2 * layer + 200 * 48
    assert size_bytes(whole) - size_bytes(shared) > 4 * 2 * layer
    # An image is turned into keys once for all layers; nothing else is saved.
    saved = (count_macs(m, image_size=SIZE, max_tokens=5) for m in (whole, shared))
    assert next(saved) - next(saved) == (2 * 2 * 64 * 48 * 48 if kind == "transformer" else 0)
    assert sum(200 in t.shape and t.ndim == 2 for t in shared.state_dict().values()) == 1


def test_the_file_holds_what_the_encodings_say(tokenizer, tmp_path):
    captioner = shipped(make("gru", tokenizer.vocabulary_size), "prune+int4", 0.9)
    save_artefact(captioner, tokenizer, tmp_path, max_tokens=7)
    tensors = load_file(tmp_path / "weights.safetensors")
    name = "decoder.gru.hidden.0.weight"
    assert tensors[name].dtype == torch.uint8 and tensors[name].ndim == 1  # two in a byte
    assert tensors[f"{name}.bits"].numel() == 144 * 48 // 8
    assert tensors[f"{name}.scale"].dtype == torch.bfloat16
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        how = json.loads(file.metadata()["encoded"])[name]
    assert how == {"kind": "int4", "sparse": True, "shape": [144, 48]}


def test_images_come_as_paths_pillow_images_or_arrays(tokenizer, tmp_path):
    save_artefact(make("gru", tokenizer.vocabulary_size), tokenizer, tmp_path, max_tokens=7)
    artefact = load_artefact(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "image.png")
    ways = [tmp_path / "image.png", str(tmp_path / "image.png"), image, pixels]
    assert len(set(artefact.caption(ways, beam_width=1))) == 1
    assert artefact.caption([]) == []
    (tmp_path / "broken.png").write_bytes((tmp_path / "image.png").read_bytes()[:200])
    with pytest.raises(ValueError, match=r"broken\.png: image file is truncated"):
        artefact.caption([*ways, tmp_path / "broken.png"])
    with pytest.raises(ValueError, match=r"broken\.png: image file is truncated"):
        artefact.caption([Image.open(tmp_path / "broken.png")])


@pytest.mark.parametrize("method", ["none", "int8", "prune+int4"])
def test_a_pretrained_encoder_ships_with_its_weights(tokenizer, tmp_path, method):
    pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    settings = Settings(
        encoder="efficientnet_lite0", encoder_trainable=False, decoder="gru", decoder_width=16
    )
    captioner = shipped(Captioner(settings, tokenizer.vocabulary_size, 64), method, 0.85)
    save_artefact(captioner, tokenizer, tmp_path, max_tokens=5)
    loaded = load_artefact(tmp_path).captioner
    assert loaded.encoder.fingerprint == captioner.encoder.fingerprint
    size_mb = (tmp_path / "weights.safetensors").stat().st_size / 1e6
    assert size_mb == pytest.approx({"none": 13.9, "int8": 3.83, "prune+int4": 2.4}[method], rel=0.03)


def test_files_that_do_not_belong_together_are_refused(tokenizer, tmp_path):
    save_artefact(make("gru", tokenizer.vocabulary_size), tokenizer, tmp_path, max_tokens=7)
    config = json.loads((tmp_path / "config.json").read_text())
    config["settings"]["decoder_layers"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit .*config\.json"):
        load_artefact(tmp_path)


def test_another_versions_files_are_refused(tokenizer, tmp_path):
    save_artefact(make("gru", tokenizer.vocabulary_size), tokenizer, tmp_path, max_tokens=7)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"format": 1}))
    with pytest.raises(ValueError, match="format 1, this version reads format 2"):
        load_artefact(tmp_path)
