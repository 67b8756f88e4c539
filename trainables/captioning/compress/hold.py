"""Keeping weights compressed while they are trained: zeros stay zero, values are used as they would ship.

Each encoded weight becomes a parametrisation (`torch.nn.utils.parametrize`): the optimizer has the float32
weight, the model computes with its value on the grid, and the gradient passes as if nothing had been
rounded (straight-through estimator, Bengio et al. 2013; quantisation-aware training, Jacob et al. 2018).
What is not trained is put on its grid at once.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import cast

from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainables.captioning.compress.encoding import Encoding, on_grid
from trainables.captioning.compress.prune import zero_smallest
from trainables.captioning.model.captioner import Captioner

_HELD = ".parametrizations."


class _Held(nn.Module):
    mask: Tensor | None

    def __init__(self, encoding: Encoding, weight: Tensor):
        super().__init__()
        self._kind = encoding.kind
        mask = (weight != 0).to(weight.dtype) if encoding.sparse else None
        self.register_buffer("mask", mask, persistent=False)  # the zeros of the weight tell it

    def forward(self, weight: Tensor) -> Tensor:
        if self.mask is not None:
            weight = weight * self.mask
        return weight + (on_grid(weight.detach(), self._kind) - weight).detach()


def hold(captioner: Captioner) -> Captioner:
    """Changes `captioner`, which is returned: from now on it computes with its weights as encoded."""
    for name, encoding in captioner.encodings.items():
        path, _, attribute = name.rpartition(".")
        module = captioner.get_submodule(path)
        weight = getattr(module, attribute)
        if weight.requires_grad:
            parametrize.register_parametrization(module, attribute, _Held(encoding, weight.detach()))
        else:
            weight.data = on_grid(weight.data, encoding.kind)
    return captioner


def released(captioner: Captioner) -> Captioner:
    """A copy with plain weights, on their grids: what ships. In evaluation mode."""
    copied = copy.deepcopy(captioner).eval()
    for module in list(copied.modules()):
        if parametrize.is_parametrized(module):
            _make_plain(module)
    for name, encoding in copied.encodings.items():
        weight = copied.get_parameter(name)
        weight.data = on_grid(weight.data, encoding.kind)
    return copied


def _make_plain(module: nn.Module) -> None:
    # Not `remove_parametrizations`: it changes the class, which a copied module shares with its original.
    values = {attribute: getattr(module, attribute).detach() for attribute in module.parametrizations}  # type: ignore[union-attr]
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for attribute, value in values.items():
        module.register_parameter(attribute, nn.Parameter(value))


def plain_state(captioner: Captioner) -> dict[str, Tensor]:
    """The state dict under the names that it had before `hold`; of held weights what the optimizer has."""
    state = {}
    for name, tensor in captioner.state_dict().items():
        if _HELD in name:
            holder, name = _holder(captioner, name), _plain(name)
            if holder.mask is not None:  # what the optimizer's momentum moves behind the mask is nothing
                tensor = tensor * holder.mask
        state[name] = tensor
    return state


def _plain(name: str) -> str:
    return name.replace(_HELD, ".").removesuffix(".original")


def _holder(captioner: Captioner, name: str) -> _Held:
    return cast(_Held, captioner.get_submodule(name.removesuffix(".original") + ".0"))


def prune_further(captioner: Captioner, sparsity: float) -> None:
    """Zeroes more weights of a captioner whose trained weights are all held, sparse among them, in place."""
    parameters = {name: each for name, each in captioner.named_parameters() if _HELD in name}
    for name, parameter in parameters.items():
        parameter.data *= cast(Tensor, _holder(captioner, name).mask)
    densities = zero_smallest(parameters, sparsity)
    for name, parameter in parameters.items():
        _holder(captioner, name).mask = (parameter != 0).to(parameter.dtype)
        encoding = captioner.encodings[_plain(name)]
        captioner.encodings[_plain(name)] = replace(encoding, density=densities[name])
