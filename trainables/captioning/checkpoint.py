"""A trial's checkpoint on disk: enough to go on training, or to build what ships.

    trial.json            settings, epoch, shape of the model; readable by eye
    tokenizer.json        the vocabulary
    weights.safetensors   the model in float32, without a frozen pretrained encoder that nothing has changed:
                          it comes from its package
    optimizer.pt          optimizer and loss scaler; tensors and numbers only, read with weights_only=True

Random state is not in it: every epoch is seeded anew from the trial's seed, so that an epoch after a resume
draws what it would have drawn. Writing aside, renaming and fsync are the gang's business.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from trainables.captioning.compress.encoding import Encoding
from trainables.captioning.compress.hold import plain_state
from trainables.captioning.compress.rebuild import rebuilt
from trainables.captioning.data.tokenizer import CaptionTokenizer
from trainables.captioning.model.captioner import Captioner
from trainables.captioning.settings import Settings

#: Settings that no weight's shape and no optimizer's state depends on: training goes on with others of these.
MUTABLE = frozenset(
    {
        "augment",
        "batch_size",
        "beam_width",
        "dropout",
        "encoder_learning_rate_factor",
        "gradient_clip",
        "label_smoothing",
        "learning_rate",
        "length_penalty",
        "micro_batch_size",
        "momentum",
        "weight_decay",
    }
)

FORMAT = 2
_TRIAL, _TOKENIZER, _WEIGHTS, _OPTIMIZER = (
    "trial.json",
    "tokenizer.json",
    "weights.safetensors",
    "optimizer.pt",
)


@dataclass(frozen=True, kw_only=True)
class TrialState:
    """What `trial.json` says."""

    settings: Settings
    """Of the trial."""
    model: Settings
    """Of the captioner: the trial's, but for what compression has changed."""
    epoch: int
    """Epochs done."""
    image_size: int
    vocabulary_size: int
    max_caption_tokens: int
    strength: float | None = None
    """How strongly the captioner was compressed, 0 to 1; None: not yet."""
    encodings: Mapping[str, Encoding] = field(default_factory=dict)
    """How weights will lie in the file that ships, by name."""
    measured: dict[str, float] = field(default_factory=dict)
    """Size, cost and latency, where they have been measured."""
    quality: dict[str, float] = field(default_factory=dict)
    """Figures of the last full evaluation."""
    facts: dict[str, Any] = field(default_factory=dict)
    """For the model card: the trial, the data."""


def save_checkpoint(
    folder: Path,
    *,
    state: TrialState,
    captioner: Captioner,
    tokenizer: CaptionTokenizer,
    training: Mapping[str, Any],
) -> None:
    """Write the four files into the existing `folder`. `training` holds state dicts by name."""
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in plain_state(captioner).items()
        if not _left_out(state, name)
    }
    # By way of memory: where a disk is full or away, neither library passes the system's error number on.
    (folder / _WEIGHTS).write_bytes(save(weights))
    tokenizer.save(folder / _TOKENIZER)
    buffer = io.BytesIO()
    torch.save(dict(training), buffer)
    (folder / _OPTIMIZER).write_bytes(buffer.getbuffer())
    described = asdict(state) | {
        "format": FORMAT,
        "settings": state.settings.model_dump(mode="json"),
        "model": state.model.model_dump(mode="json"),
    }
    (folder / _TRIAL).write_text(json.dumps(described, indent=2), encoding="utf-8")


def load_state(folder: Path) -> TrialState:
    """What a checkpoint says about itself.

    Raises:
        ValueError: no checkpoint, or one of another format.
        OSError: it cannot be read now: that may pass.
    """
    path = folder / _TRIAL
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        written_as = described.pop("format")
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not a captioning checkpoint: {error}") from error
    if written_as != FORMAT:
        raise ValueError(f"{path} has format {written_as}, this version reads format {FORMAT}")
    typed = {name: Settings.model_validate(described[name]) for name in ("settings", "model")}
    encodings = {name: Encoding(**each) for name, each in described["encodings"].items()}
    return TrialState(**described | typed | {"encodings": encodings})


def load_tokenizer(folder: Path) -> CaptionTokenizer:
    """The checkpoint's vocabulary."""
    return CaptionTokenizer.load(folder / _TOKENIZER)


def load_captioner(folder: Path, settings: Settings | None = None) -> Captioner:
    """The checkpoint's captioner on the CPU, compressed as it was but not held (`compress/hold.py`).

    Args:
        folder: of the checkpoint.
        settings: whose `MUTABLE` values are to hold from now on; default: those of the checkpoint.

    Raises:
        ValueError: no checkpoint, or names or shapes differ from what it says; the message names the first.
        OSError: as `load_state`.
    """
    state = load_state(folder)
    changed = {} if settings is None else {name: getattr(settings, name) for name in MUTABLE}
    captioner = Captioner(state.model.model_copy(update=changed), state.vocabulary_size, state.image_size)
    stored = load((folder / _WEIGHTS).read_bytes())
    if state.strength is not None:
        captioner = rebuilt(captioner, {name: tuple(tensor.shape) for name, tensor in stored.items()})
    own = {name: each for name, each in captioner.state_dict().items() if not _left_out(state, name)}
    for name in sorted(own.keys() | stored.keys()):
        shapes = [tuple(weights[name].shape) if name in weights else "missing" for weights in (own, stored)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{folder / _WEIGHTS}: {name} is {shapes[1]}, the model built for it has {shapes[0]}"
            )
    captioner.load_state_dict(stored, strict=False)
    captioner.encodings = dict(state.encodings)
    return captioner


def load_training(folder: Path) -> dict[str, Any]:
    """The state dicts that `save_checkpoint` was given as `training`, on the CPU.

    An optimizer moves what belongs to its parameters itself; its step counters are to stay there.
    """
    return torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)


def _left_out(state: TrialState, name: str) -> bool:
    """Whether a tensor of this name comes from the pretrained encoder's package."""
    if not name.startswith("encoder.") or state.model.encoder == "cnn" or state.model.encoder_trainable:
        return False
    return not any(encoded.startswith("encoder.") for encoded in state.encodings)
