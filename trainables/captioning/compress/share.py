"""One matrix for several: output layer and word vectors, layers of the decoder (fixed: does it or not).

What a trained captioner's matrices have in common is kept: their mean, and behind it, where widths differ,
the projection that is nearest by least squares. That says little until it has been fine-tuned; in a search,
`tie_embeddings` and `share_layers` train shared weights from the start.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from trainables.captioning.model.captioner import Captioner
from trainables.trial import SettingsError

#: A layer's number in the names of what its kind has one set of for each.
_LAYER = re.compile(r"^(decoder\.(?:layers|gru\.input|gru\.hidden)\.)(\d+)(\..*)$")


def share(captioner: Captioner, strength: float) -> Captioner:
    """A copy with tied word vectors and one set of weights for all layers of the decoder.

    Raises:
        SettingsError: everything that can be shared is shared already.
    """
    before = captioner.settings
    layers = before.decoder_layers > 1 and not before.share_layers
    if before.tie_embeddings and not layers:
        raise SettingsError(
            ("model", "compression", "method"),
            "share: word vectors are tied and layers shared already; leave it out",
        )
    settings = before.model_copy(update={"tie_embeddings": True, "share_layers": True})
    device = next(captioner.parameters()).device
    with torch.device("meta" if device.type == "meta" else "cpu"):
        shared = Captioner(settings, captioner.vocabulary_size, captioner.image_size, load_weights=False)
    shared.to(device).train(captioner.training)
    if device.type != "meta":
        shared.load_state_dict(_merged(captioner, shared))
    return shared


@torch.no_grad()
def _merged(captioner: Captioner, shared: Captioner) -> dict[str, Tensor]:
    old, merged = captioner.state_dict(), shared.state_dict()
    for name, tensor in merged.items():
        found = [old[each] for each in _sources(name, old) if old[each].shape == tensor.shape]
        if found:
            merged[name] = torch.stack(found).mean(0) if len(found) > 1 else found[0].clone()
    widen = "decoder.gru.widen.weight"
    if widen in merged and widen not in old:  # what the first layer read, through the mean of the others
        merged[widen] = _nearest(merged["decoder.gru.input.0.weight"], old["decoder.gru.input.0.weight"])
    if not captioner.settings.tie_embeddings:
        _tie(old, merged, captioner)
    return merged


def _sources(name: str, old: dict[str, Tensor]) -> list[str]:
    """The old tensors that this one stands for."""
    here = _LAYER.match(name)
    if not here:
        return [name] if name in old else []
    alike = (each for each in old if (found := _LAYER.match(each)) and found[1] == here[1])
    return [each for each in alike if each.endswith(here[3])]


def _tie(old: dict[str, Tensor], merged: dict[str, Tensor], captioner: Captioner) -> None:
    """Word vectors of what was looked up and what was multiplied; a projection, where widths differ."""
    width = old["decoder.embedding.weight"].shape[1]
    looked_up = old["decoder.embedding.weight"]
    if captioner.settings.decoder == "transformer":
        scale = captioner.settings.decoder_width**0.5  # that an untied transformer has behind `widen`
        looked_up = looked_up * scale
        if "decoder.widen.bias" in merged:
            merged["decoder.widen.bias"] = old["decoder.widen.bias"] * scale
    looked_up = looked_up / width**0.5  # as a tied vector is multiplied when it is looked up
    multiplied = old["decoder.output.weight"]
    merged["decoder.embedding.bias"] = old["decoder.output.bias"].clone()
    if "decoder.output.weight" in merged:
        merged["decoder.embedding.weight"] = looked_up
        merged["decoder.output.weight"] = _nearest(looked_up, multiplied)
    else:
        merged["decoder.embedding.weight"] = (looked_up + multiplied) / 2


def _nearest(left: Tensor, product: Tensor) -> Tensor:
    """X with `left` X as near to `product` as possible, by least squares."""
    return torch.linalg.lstsq(left, product).solution
