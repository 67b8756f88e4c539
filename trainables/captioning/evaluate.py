"""Figures on held-out images: the exact loss, and the quality of generated captions.

Each worker sees its own shard of the split; what comes out is summed over the gang and equal on every
worker. Knows model, batches and metrics; how often to evaluate, and on which variant of the model, is
`trial.py`'s business.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from numpy.typing import NDArray
from torch import Tensor

from trainables.captioning import collective
from trainables.captioning.data.cache import CaptionData
from trainables.captioning.data.loader import Batch
from trainables.captioning.data.tokenizer import PAD
from trainables.captioning.metrics import caption_metrics
from trainables.captioning.model.captioner import Captioner, token_loss
from trainables.captioning.settings import Settings
from trainables.trial import Metrics

HELD_OUT = ("val_loss", "token_accuracy")
QUALITY = ("bleu4", "rouge_l", "cider")


@torch.no_grad()
def held_out_loss(captioner: Captioner, batches: Iterable[Batch], device: torch.device) -> Metrics:
    """`val_loss` (nats per token, without label smoothing) and `token_accuracy` over all workers' batches.

    The model is put into evaluation mode. Sums and counts are added up over the workers, so that every
    caption counts once and the figures depend on the number of workers by rounding only.
    """
    captioner.eval()
    tally = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in batches:
        tokens = batch.tokens.to(device)  # [B, T+1]
        logits = captioner(batch.inputs.to(device), tokens[:, :-1])  # [B, T, V]
        tally += torch.stack([figure.double() for figure in token_loss(logits, tokens[:, 1:])])
    loss, correct, tokens_seen = collective.summed(list(tally), device)
    return {"val_loss": loss / tokens_seen, "token_accuracy": correct / tokens_seen}


@torch.no_grad()
def caption_quality(
    captioner: Captioner,
    data: CaptionData,
    split: str,
    images: Iterable[tuple[NDArray, Tensor]],
    settings: Settings,
    device: torch.device,
) -> Metrics:
    """BLEU-4, ROUGE-L and CIDEr-D of the captions that `captioner` writes for a split's images.

    Args:
        captioner: as shipped, in evaluation mode.
        images: this worker's shard: indices int64 [b] and inputs [b, ...], every image on one worker.
    """
    longest = data.tokens.shape[1] - 1
    written: dict[int, list[int]] = {}
    for indices, inputs in images:
        captions = captioner.generate(
            inputs.to(device),
            max_tokens=longest,
            beam_width=settings.beam_width,
            length_penalty=settings.length_penalty,
        )
        written.update(zip(indices.tolist(), captions, strict=True))

    place = {int(image): number for number, image in enumerate(data.splits[split])}
    own = {place[image]: caption for image, caption in written.items()}
    everyone = collective.merged(own, (len(place), longest), device)
    figures: Metrics = {}
    if collective.rank() == 0:  # the others would compute the same
        texts = data.tokenizer.decode([[token for token in row if token != PAD] for row in everyone])
        figures = caption_metrics(texts, [data.captions[image] for image in place])
    return collective.agree(figures, QUALITY, device)
