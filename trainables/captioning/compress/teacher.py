"""What a student learns from its teacher: how probable every next word is, at each token of the captions.

The teacher is asked once, under teacher forcing, without augmentation or dropout; its answers lie in the data
cache, memory-mapped by all workers and trials of the machine. Of each distribution the k most probable words
are kept and, as one more outcome, the probability of all the others together. Renormalising over the k
instead (as in Tan et al. 2019, who keep 8) would teach that nothing else can follow: a biased teacher, as
Anshumann et al. 2025 show.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from trainables.captioning.data.cache import CaptionData
from trainables.captioning.data.loader import Features, eval_batches
from trainables.captioning.data.tokenizer import PAD
from trainables.captioning.model.captioner import Captioner
from trainables.machine_cache import build_once

#: Raise when the same teacher's answers would be stored differently.
VERSION = 1
#: k: words kept of each distribution. At 130 bytes a token, Flickr8k's captions take some 50 MB.
KEPT = 32
_BATCH = 64
#: Settings that decide what a captioner says, beside its weights and their shapes.
_TELLING = {"encoder", "decoder", "decoder_layers", "decoder_heads", "tie_embeddings", "share_layers"}


@dataclass(frozen=True, kw_only=True)
class TeacherOutputs:
    """A teacher's answers for R tokens of training captions, M captions in the data set."""

    ids: NDArray[np.unsignedinteger | np.signedinteger]
    """uint16 or int32 [R, k], the most probable words, the most probable first."""
    log_probabilities: NDArray[np.float16]
    """[R, k + 1]: of `ids`, and of all other words together; at `temperature`."""
    starts: NDArray[np.int64]
    """[M] row of each training caption's first target, whose others follow; without meaning elsewhere."""
    temperature: float

    def divergence(self, logits: Tensor, targets: Tensor, captions: NDArray[np.int64]) -> Tensor:
        """Sum over the tokens of T^2 KL(teacher || student) at temperature T, in nats; with a graph.

        Of the k + 1 outcomes: the student's probability of the last is that of all words but the k. So how
        it divides the rest is its own affair (and the captions'), and the divergence never exceeds that of
        the whole distributions. T^2 keeps the gradient's size, whatever T (Hinton et al. 2015).

        Args:
            logits: [B, T, V], any floating dtype; computed in float32.
            targets: int64 [B, T]; PAD where there is none.
            captions: [B] indices of training captions in the data set.
        """
        row = self.starts[captions][:, None] + np.arange(targets.shape[1])
        row = np.minimum(row, len(self.ids) - 1)  # past the last caption: of padding, which counts nothing
        ids = torch.from_numpy(self.ids[row].astype(np.int64)).to(logits.device)  # [B, T, k]
        told = torch.from_numpy(self.log_probabilities[row]).to(logits.device).float()  # [B, T, k + 1]
        student = _outcomes(logits.float() / self.temperature, ids).log_softmax(-1)
        # What was rounded to float16 is a distribution again after its own softmax.
        each = F.kl_div(student, told.log_softmax(-1), reduction="none", log_target=True).sum(-1)  # [B, T]
        return self.temperature**2 * each.masked_fill(targets == PAD, 0.0).sum()


def teacher_outputs(
    data: CaptionData,
    teacher: Captioner,
    features: Features,
    device: torch.device,
    *,
    temperature: float,
) -> TeacherOutputs:
    """The teacher's answers for all training captions; asked if they are not there.

    Safe in several processes at once: one asks, the others wait. The teacher's training mode stays.

    Args:
        data: that the student is trained on.
        teacher: on `device`, trained on the same vocabulary.
        features: of its frozen encoder; None: it sees the images.
        device: of the teacher.
        temperature: by which logits are divided; above 1 tells more of the less probable words.
    """
    kept = min(KEPT, data.tokenizer.vocabulary_size - 1)
    told = f"{VERSION}/{data.key}/{fingerprint(teacher)}/{kept}/{temperature!r}"
    folder = data.folder / f"teacher-{hashlib.blake2b(told.encode(), digest_size=12).hexdigest()}"
    captions = data.captions_of("train")
    starts = np.zeros(len(data.lengths), dtype=np.int64)
    starts[captions] = np.cumsum(data.lengths[captions]) - data.lengths[captions]
    build_once(
        folder, lambda aside: _write(aside, data, teacher, features, device, temperature, starts, kept)
    )
    return TeacherOutputs(
        ids=np.load(folder / "ids.npy", mmap_mode="r"),
        log_probabilities=np.load(folder / "log_probabilities.npy", mmap_mode="r"),
        starts=starts,
        temperature=temperature,
    )


@torch.no_grad()
def _write(
    folder: Path,
    data: CaptionData,
    teacher: Captioner,
    features: Features,
    device: torch.device,
    temperature: float,
    starts: NDArray[np.int64],
    kept: int,
) -> None:
    total = int(data.lengths[data.captions_of("train")].sum())
    narrow = np.uint16 if teacher.vocabulary_size <= 1 << 16 else np.int32
    ids = open_memmap(folder / "ids.npy", "w+", narrow, (total, kept))
    answers = open_memmap(folder / "log_probabilities.npy", "w+", np.float16, (total, kept + 1))
    training = teacher.training
    teacher.eval()
    try:
        for batch in eval_batches(data, split="train", batch_size=_BATCH, features=features):
            tokens = batch.tokens.to(device)  # [B, T + 1]
            logits = teacher(batch.inputs.to(device), tokens[:, :-1]).float() / temperature
            best = logits.topk(kept).indices  # [B, T, k]
            real = (batch.tokens[:, 1:] != PAD).numpy()
            row = (starts[batch.captions][:, None] + np.arange(real.shape[1]))[real]
            ids[row] = best.cpu().numpy()[real]
            answers[row] = _outcomes(logits, best).log_softmax(-1).cpu().numpy()[real]
    finally:
        teacher.train(training)
    ids.flush()
    answers.flush()


def _outcomes(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits [..., k + 1] of the words `ids` [..., k] and of all others as one, out of [..., V]."""
    rest = logits.scatter(-1, ids, -math.inf).logsumexp(-1, keepdim=True)
    return torch.cat([logits.gather(-1, ids), rest], -1)


def fingerprint(teacher: Captioner) -> str:
    """Hash of everything that decides what the teacher says: its architecture and its weights."""
    digest = hashlib.sha256(
        f"{teacher.settings.model_dump_json(include=_TELLING)} {teacher.image_size}".encode()
    )
    for name, tensor in teacher.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
