"""BLEU-4, ROUGE-L and CIDEr-D of generated captions, with the definitions of the COCO evaluation.

BLEU is sacrebleu's. ROUGE-L and CIDEr-D are computed here in numpy over all captions at once and equal
pycocoevalcap's. Knows strings only: who generated them, and when, is `evaluate.py`'s business.

Tokenisation, of candidates and references alike: Unicode NFC, lower case, words are runs of characters
that are neither space nor punctuation; hyphens and apostrophes inside a word stay (`t-shirt`), English
clitics are split off as the Penn Treebank does (`man 's`, `do n't`), other punctuation is dropped. On
English captions that is PTB with COCO's punctuation list removed, for 99 % of captions. Languages that
do not write spaces between words are not segmented.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from sacrebleu.metrics.bleu import BLEU

ROUGE_BETA = 1.2
"""Weight of recall over precision in ROUGE-L, as in the COCO evaluation."""
CIDER_SIGMA = 6.0
"""Width of CIDEr-D's penalty on differences in length, in tokens."""
CIDER_N = 4
"""Longest n-gram of CIDEr-D."""

_PAIRS_PER_CHUNK = 4096  # LCS tables of so many pairs stay in the cache
_PUNCTUATION = r"""\s.,;:!?"'`(){}\[\]<>/\\|~^*_=+“”‘’„«»…–—¿¡、。！？，：；（）「」-"""
_WORD = rf"[^{_PUNCTUATION}]+"
_TOKEN = re.compile(
    rf"{_WORD}?(?=n't\b)|n't\b|'(?:s|m|d|re|ve|ll)\b"  # clitics
    rf"|\d+(?:[.,:]\d+)+"  # 3.5, 1,000, 10:30
    rf"|{_WORD}(?:-{_WORD})*"
)


def tokenize(caption: str) -> list[str]:
    """Words of `caption` as they are scored; see the module's docstring."""
    return _TOKEN.findall(unicodedata.normalize("NFC", caption).lower().replace("’", "'"))


def caption_metrics(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Scores of one candidate caption per image against that image's references.

    Args:
        candidates: one caption per image; may be empty strings, which score nothing.
        references: for each image one or more captions, not necessarily equally many.

    Returns:
        `bleu4` (corpus BLEU, no smoothing) and `rouge_l` in 0..1, `cider` (CIDEr-D) in 0..10 as COCO
        prints it. CIDEr weighs words by their rarity in these references: its value depends on the set,
        and is 0 for a single image.

    Raises:
        ValueError: no images, numbers of candidates and references differ, an image has no reference.
    """
    candidate_words = [" ".join(tokenize(caption)) for caption in candidates]
    reference_words = [[" ".join(tokenize(caption)) for caption in group] for group in references]
    return {
        "bleu4": bleu4(candidate_words, reference_words),
        "rouge_l": float(rouge_l(candidate_words, reference_words).mean()),
        "cider": float(cider_d(candidate_words, reference_words).mean()),
    }


def bleu4(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU-4 in 0..1 of tokenised captions (words joined by spaces), unsmoothed, by sacrebleu."""
    _check(candidates, references)
    most = max(map(len, references))
    # sacrebleu wants equally many references for all images and skips those that are None.
    streams = [[group[k] if k < len(group) else None for group in references] for k in range(most)]
    scorer = BLEU(tokenize="none", smooth_method="none", force=True)
    return scorer.corpus_score(list(candidates), streams).score / 100  # type: ignore[arg-type]


def rouge_l(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """ROUGE-L of each image's candidate, float64 [N] in 0..1.

    COCO's definition: the best precision and the best recall over the references (perhaps of different
    ones), joined with beta 1.2. Captions are tokenised: words joined by spaces. An empty candidate
    scores 0.
    """
    _check(candidates, references)
    words = _Words(candidates, references)
    common = _lcs_lengths(words, words.candidate_of_reference, words.references)  # [R]
    precision = common / np.maximum(words.lengths[words.candidate_of_reference], 1)
    recall = common / np.maximum(words.lengths[words.references], 1)
    precision = np.maximum.reduceat(precision, words.first_reference)  # [N]
    recall = np.maximum.reduceat(recall, words.first_reference)  # [N]
    weighted = recall + ROUGE_BETA**2 * precision
    return (1 + ROUGE_BETA**2) * precision * recall / np.where(weighted > 0, weighted, 1)


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each image's candidate, float64 [N] in 0..10 (Vedantam et al. 2015, the clipped variant).

    n-grams to length 4, document frequencies from `references`, Gaussian length penalty with sigma 6.
    Captions are tokenised: words joined by spaces.
    """
    _check(candidates, references)
    words = _Words(candidates, references)
    # As the COCO code has it, a caption's length is its number of bigrams.
    bigrams = np.maximum(words.lengths - 1, 0)
    delta = bigrams[words.candidate_of_reference] - bigrams[words.references]
    penalty = np.exp(-(delta**2) / (2 * CIDER_SIGMA**2))  # [R]

    similarity = np.zeros(len(words.references))  # [R], summed over n
    grams = np.zeros(len(words.ids), np.int64)  # [W] the empty n-gram at every position
    positions = np.arange(len(words.ids))
    for n in range(1, CIDER_N + 1):
        inside = words.caption[np.minimum(positions + n - 1, len(words.ids) - 1)] == words.caption[positions]
        inside &= positions + n <= len(words.ids)
        positions = positions[inside]
        if not len(positions):
            break
        runs = _GramRuns(words, grams, positions, n)
        grams[runs.positions] = runs.grams
        similarity += _tf_idf_similarity(words, runs)
    per_image = np.add.reduceat(similarity * penalty, words.first_reference)
    return 10 * per_image / CIDER_N / np.bincount(words.image[words.references])


class _Words:
    """All captions as one array of word numbers: each image's candidate, then its references."""

    def __init__(self, candidates: Sequence[str], references: Sequence[Sequence[str]]):
        captions: list[str] = []
        for candidate, group in zip(candidates, references, strict=True):
            captions.append(candidate)
            captions.extend(group)
        # One split for all: a line break is a word of its own, "" stands for an empty caption.
        pieces = " \n ".join(captions).split(" ")
        numbers: defaultdict[str, int] = defaultdict()
        numbers.default_factory = numbers.__len__
        end, nothing = numbers["\n"], numbers[""]
        ids = np.fromiter(map(numbers.__getitem__, pieces), np.int64, len(pieces))
        caption = np.cumsum(ids == end)
        kept = (ids != end) & (ids != nothing)
        self.ids, self.caption = ids[kept], caption[kept]  # [W] word, and the caption that it is in
        self.vocabulary_size = len(numbers)
        self.lengths = np.bincount(self.caption, minlength=len(captions))  # [C] words
        self.starts = np.cumsum(self.lengths) - self.lengths  # [C] first word

        sizes = np.fromiter(map(len, references), np.int64, len(references))  # [N]
        firsts = np.cumsum(sizes + 1) - sizes - 1  # [N] the candidates' places among the captions
        self.image = np.repeat(np.arange(len(sizes)), sizes + 1)  # [C]
        self.is_candidate = np.zeros(len(captions), bool)  # [C]
        self.is_candidate[firsts] = True
        self.references = np.flatnonzero(~self.is_candidate)  # [R]
        self.candidate_of_reference = np.repeat(firsts, sizes)  # [R]
        self.first_reference = np.cumsum(sizes) - sizes  # [N] index into the R references

    def padded(self, captions: np.ndarray, fill: int) -> np.ndarray:
        """Word numbers of `captions` as columns, int32 [longest, len(captions)]."""
        offset = np.arange(self.lengths[captions].max())[:, None]
        inside = offset < self.lengths[captions]
        index = np.where(inside, self.starts[captions] + offset, 0)
        return np.where(inside, self.ids[index], fill).astype(np.int32)


class _GramRuns:
    """The n-grams at `positions`, sorted by n-gram, image and caption, an image's candidate first.

    One sort of (n-gram, position) packed into an integer; counts, document frequencies and matches are
    then lengths of runs. `grams` holds the (n-1)-gram at each position, numbered densely.
    """

    def __init__(self, words: _Words, grams: np.ndarray, positions: np.ndarray, n: int):
        kind = grams[positions] * words.vocabulary_size + words.ids[positions + n - 1]
        if (int(kind.max()) + 1) * len(words.ids) >= 2**63:
            raise ValueError(f"{len(words.ids)} words are too many to be scored at once; score in parts")
        kind, self.positions = np.divmod(np.sort(kind * len(words.ids) + positions), len(words.ids))
        new_gram = np.diff(kind, prepend=-1) != 0
        self.grams = np.cumsum(new_gram) - 1
        caption = words.caption[self.positions]
        starts = np.flatnonzero(new_gram | (np.diff(caption, prepend=-1) != 0))
        self.caption, self.gram = caption[starts], self.grams[starts]  # [E] one entry per caption and n-gram
        self.count = np.diff(starts, append=len(kind))  # [E]


def _tf_idf_similarity(words: _Words, runs: _GramRuns) -> np.ndarray:
    """Clipped cosine of each reference and its image's candidate in one length of n-gram, float64 [R]."""
    image = words.image[runs.caption]
    is_candidate = words.is_candidate[runs.caption]
    new = (np.diff(runs.gram, prepend=-1) != 0) | (np.diff(image, prepend=-1) != 0)
    head = np.flatnonzero(new)  # first entry of each (n-gram, image)
    size = np.diff(head, append=len(new))
    in_references = ~is_candidate[head] | (size > 1)
    frequency = np.bincount(runs.gram[head[in_references]], minlength=int(runs.gram[-1]) + 1)
    idf = np.log(words.image[-1] + 1) - np.log(np.maximum(frequency, 1))

    weight = runs.count * idf[runs.gram]
    norm = np.sqrt(np.bincount(runs.caption, weight**2, minlength=len(words.lengths)))
    candidate_weight = np.repeat(np.where(is_candidate[head], weight[head], 0), size)
    clipped = np.minimum(candidate_weight, weight) * weight
    dot = np.bincount(runs.caption, clipped, minlength=len(words.lengths))[words.references]
    norms = norm[words.candidate_of_reference] * norm[words.references]
    return dot / np.where(norms > 0, norms, 1)


def _lcs_lengths(words: _Words, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Lengths of the longest common subsequences of captions `left[i]` and `right[i]`, int64 [P].

    The usual table, one cell at a time but for all pairs of a chunk. Pairs of like length share a chunk,
    so that one long caption does not widen the table of all.
    """
    result = np.zeros(len(left), np.int64)
    order = np.argsort(np.maximum(words.lengths[left], words.lengths[right]), kind="stable")
    for start in range(0, len(order), _PAIRS_PER_CHUNK):
        chunk = order[start : start + _PAIRS_PER_CHUNK]
        rows, columns = words.padded(left[chunk], -1), words.padded(right[chunk], -2)
        table = np.zeros((len(rows) + 1, len(chunk)), np.int16)  # [m+1, P] one column of the table
        for word in columns:
            offered = table[:-1] + (rows == word)
            np.maximum(offered, table[1:], out=offered)
            for i, best in enumerate(offered):
                np.maximum(table[i], best, out=table[i + 1])
        result[chunk] = table[-1]
    return result


def _check(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(candidates) != len(references) or not candidates:
        raise ValueError(
            "one candidate per group of references and at least one must be given, "
            f"but got {len(candidates)} candidates and {len(references)} groups"
        )
    for number, group in enumerate(references):
        if not group or isinstance(group, str):
            raise ValueError(f"references[{number}] must be one or more captions, but is {group!r}")
