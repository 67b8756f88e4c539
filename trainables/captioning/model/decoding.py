"""Captions out of a decoder: batched greedy search and beam search.

Knows what a decoder must offer for step-by-step generation (`Decoder`, `State`) and nothing of how it
computes. Works on token ids; turning them into words is the tokenizer's business.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from trainables.captioning.data.tokenizer import BOS, EOS, PAD, UNK


@dataclass(frozen=True, kw_only=True)
class State:
    """What a decoder carries from one token to the next. The first dimension of every tensor is the row."""

    memory: tuple[Tensor, ...]
    """Facts of the image, the same at every step and for all beams of an image."""
    carry: tuple[Tensor, ...]
    """What the tokens so far have left behind: hidden states, or cached keys and values."""
    attention: Tensor | None = None
    """[B, P] weights of the step just made, where the decoder computes them."""

    def repeat(self, times: int) -> State:
        """Every row `times` times in a row: one for each beam."""
        return replace(
            self,
            memory=tuple(t.repeat_interleave(times, 0) for t in self.memory),
            carry=tuple(t.repeat_interleave(times, 0) for t in self.carry),
        )

    def follow(self, rows: Tensor) -> State:
        """The state whose row i continues what row `rows[i]` (int64) had; both of the same image."""
        return replace(self, carry=tuple(t.index_select(0, rows) for t in self.carry))

    def keep(self, rows: Tensor) -> State:
        """Only the rows `rows` (int64), of whatever images."""
        return replace(self.follow(rows), memory=tuple(t.index_select(0, rows) for t in self.memory))


class Decoder(Protocol):
    """The two calls that generation needs; every decoder also has `forward` for teacher forcing."""

    def start(self, features: Tensor) -> State:
        """The state before the first token, from features [B, P, C]."""

    def step(self, token: Tensor, state: State) -> tuple[Tensor, State]:
        """Logits [B, V] of what follows `token` [B] (int64), and the state after it."""


@torch.no_grad()
def generate(
    decoder: Decoder, features: Tensor, *, max_tokens: int, beam_width: int = 1, length_penalty: float = 0.7
) -> list[list[int]]:
    """Writes a caption for each row of `features` [B, P, C].

    Args:
        decoder: in evaluation mode.
        features: of the encoder, on the decoder's device.
        max_tokens: a caption that has not ended by then is cut; counts the end token.
        beam_width: hypotheses kept per image; 1 is greedy.
        length_penalty: hypotheses are ranked by log-probability over length to this power (a simplification
            of Wu et al. 2016, eq. 14); length counts the end token. No effect on greedy search.

    Returns:
        Token ids of each caption, without BOS and EOS. PAD, BOS and UNK are never written.
    """
    if beam_width == 1:
        tokens = _greedy(decoder, features, max_tokens)
    else:
        tokens = _beam_search(decoder, features, max_tokens, beam_width, length_penalty)
    return [row[: row.index(EOS)] if EOS in row else row for row in tokens.tolist()]


def _forbid(logits: Tensor) -> Tensor:
    """`logits` [..., V] in float32 with the tokens that are never written at -inf."""
    logits = logits.float()
    logits[..., [PAD, BOS, UNK]] = -torch.inf
    return logits


def _greedy(decoder: Decoder, features: Tensor, max_tokens: int) -> Tensor:
    """Most probable token at each step: int64 [B, max_tokens], EOS and whatever after it included."""
    batch, device = features.shape[0], features.device
    state = decoder.start(features)
    token = torch.full((batch,), BOS, device=device)  # [B]
    tokens = torch.full((batch, max_tokens), EOS, device=device)  # [B, T]
    ended = torch.zeros(batch, dtype=torch.bool, device=device)
    for t in range(max_tokens):
        logits, state = decoder.step(token, state)
        token = _forbid(logits).argmax(-1)
        tokens[:, t] = token
        ended |= token == EOS
        if ended.all():
            break
    return tokens


def _beam_search(
    decoder: Decoder, features: Tensor, max_tokens: int, width: int, length_penalty: float
) -> Tensor:
    """Best hypothesis per image: int64 [B, max_tokens], filled up with EOS.

    A hypothesis that ends leaves the beam, which narrows by one (as in Bahdanau et al. 2015), so that a
    width of 1 is exactly greedy search. An image is done when its beam is empty, or when even a hypothesis
    that lost no more probability up to the last step could not beat its best ended one.
    """
    batch, device = features.shape[0], features.device
    state = decoder.start(features).repeat(width)
    tokens = torch.full((batch, width, max_tokens), EOS, device=device)  # [B, W, T]
    last = torch.full((batch, width), BOS, device=device)
    scores = torch.full((batch, width), -torch.inf, device=device)  # log-probabilities; -inf: not alive
    scores[:, 0] = 0.0  # all beams start equal: one is enough
    slots = torch.full((batch, 1), width, device=device)  # hypotheses still wanted
    best = torch.full((batch,), -torch.inf, device=device)
    result = torch.full((batch, max_tokens), EOS, device=device)
    images = torch.arange(batch, device=device)  # rows of `result` that are still searched
    ranks = torch.arange(width, device=device)

    for t in range(max_tokens):
        logits, state = decoder.step(last.flatten(), state)
        gains = _forbid(logits).log_softmax(-1).unflatten(0, (-1, width))  # [B, W, V]
        vocabulary = gains.shape[-1]
        scores, choice = (scores.unsqueeze(-1) + gains).flatten(1).topk(width)  # [B, W]
        scores = scores.masked_fill(ranks >= slots, -torch.inf)
        parent, last = choice // vocabulary, choice % vocabulary
        tokens = tokens.gather(1, parent.unsqueeze(-1).expand_as(tokens))
        tokens[:, :, t] = last

        done = (last == EOS) & (scores > -torch.inf) if t + 1 < max_tokens else scores > -torch.inf
        ranked = (scores / (t + 1) ** length_penalty).masked_fill(~done, -torch.inf)
        top, which = ranked.max(1)
        better = top > best[images]
        result[images[better]] = tokens[better, which[better]]
        best[images] = torch.maximum(best[images], top)
        slots = slots - done.sum(1, keepdim=True)
        scores = scores.masked_fill(done, -torch.inf)

        hope = scores.max(1).values / max_tokens**length_penalty  # no step raises a log-probability
        scores = scores.masked_fill((best[images] >= hope).unsqueeze(1), -torch.inf)
        alive = (scores > -torch.inf).any(1)
        remaining = int(alive.sum())
        if remaining == 0:
            break
        rows = parent + torch.arange(len(images), device=device).unsqueeze(1) * width  # [B, W]
        if 2 * remaining > len(images):
            state = state.follow(rows.flatten())
        else:  # most images are done: go on with the others only
            state = state.keep(rows[alive].flatten())
            images, tokens, last = images[alive], tokens[alive], last[alive]
            scores, slots = scores[alive], slots[alive]
    return result
