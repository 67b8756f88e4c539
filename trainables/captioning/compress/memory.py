"""The most memory that tensors need at one time, counted exactly, tensor by tensor.

Not what a process occupies: that depends on the machine, on the allocator and on all that ran before.
Buffers that live inside a single kernel are not seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, UntypedStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary


class PeakMemory(TorchDispatchMode):
    """Within this context, `bytes` is the most that tensors have occupied at one time so far.

    Tensors from outside count from the start on, whether given here or met on the way; those made within, as
    long as they live. Views and tied weights count once.

    Args:
        held: tensors that occupy memory whether they are used or not.
    """

    def __init__(self, held: Iterable[Tensor]):
        super().__init__()
        self._sizes: MutableMapping[UntypedStorage, int] = WeakIdKeyDictionary()  # made within, still alive
        self._outside: MutableMapping[UntypedStorage, int] = WeakIdKeyDictionary()
        self._held = self._peak = 0
        for tensor in held:
            self._hold(tensor)

    @property
    def bytes(self) -> int:
        """The peak so far."""
        return self._held + self._peak

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs the operation and counts what it read and what it made."""
        for given in _tensors((args, kwargs)):
            self._hold(given)
        result = function(*args, **(kwargs or {}))
        for made in _tensors(result):
            storage = made.untyped_storage()
            if storage not in self._outside:
                self._sizes[storage] = storage.nbytes()
        self._peak = max(self._peak, sum(self._sizes.values()))
        return result

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._sizes and storage not in self._outside:
            self._outside[storage] = storage.nbytes()
            self._held += storage.nbytes()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
