"""Captions into token ids and back, on the `tokenizers` library.

Knows text only: no images, no tensors. Captions are lower-cased; ids 0 to 3 are PAD, BOS, EOS, UNK in every
vocabulary. A tokenizer is one JSON file, saved with every checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PAD, BOS, EOS, UNK = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")

Kind = Literal["word", "bpe"]

#: What stands for a space in pieces of words.
SPACE = "▁"
#: A word: letters, marks and digits, with apostrophes and hyphens inside ("t-shirt", "dog's").
WORD = r"\w+(?:['’\-]\w+)*"


class CaptionTokenizer:
    """A trained vocabulary.

    * `word`: lower-cased words; punctuation is dropped (COCO's metrics ignore it, and each mark would
      cost the decoder a step). Words outside the vocabulary become UNK.
    * `bpe`: byte-pair pieces over characters (Sennrich et al. 2016); punctuation and word boundaries are
      kept, no language needs spaces. Only characters outside the alphabet become UNK.
    """

    def __init__(self, tokenizer: Tokenizer):
        for id_, token in enumerate(SPECIAL):
            if tokenizer.token_to_id(token) != id_:
                raise ValueError(
                    f"id {id_} must be {token}, but got {tokenizer.id_to_token(id_)!r}: "
                    "not a tokenizer that CaptionTokenizer.save wrote"
                )
        self._tokenizer = tokenizer
        self.vocabulary_size: int = tokenizer.get_vocab_size()

    @classmethod
    def train(
        cls, captions: Iterable[str], *, kind: Kind, vocabulary_size: int, min_frequency: int
    ) -> CaptionTokenizer:
        """The most frequent words or merges of `captions`, at most `vocabulary_size` with the four specials.

        Words or pairs seen fewer than `min_frequency` times are left out.
        """
        captions = list(captions)
        normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        trainer: trainers.Trainer
        if kind == "word":
            tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[UNK]))
            # Inverted: what is no word is removed.
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
            trainer = trainers.WordLevelTrainer(
                vocab_size=vocabulary_size,
                min_frequency=min_frequency,
                show_progress=False,
                special_tokens=list(SPECIAL),
            )
        else:
            tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[UNK]))
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
            )
            tokenizer.decoder = decoders.Metaspace()
            texts = map(normalizer.normalize_str, captions)
            alphabet = _alphabet(texts, vocabulary_size - len(SPECIAL))
            trainer = trainers.BpeTrainer(
                vocab_size=vocabulary_size,
                min_frequency=min_frequency,
                show_progress=False,
                special_tokens=list(SPECIAL),
                initial_alphabet=alphabet,
                limit_alphabet=len(alphabet),
            )
        tokenizer.normalizer = normalizer
        tokenizer.train_from_iterator(captions, trainer)
        return cls(tokenizer)

    def __eq__(self, other: object) -> bool:
        """Whether they give every text the same ids."""
        return isinstance(other, CaptionTokenizer) and self._text() == other._text()

    def __hash__(self) -> int:
        return hash(self._text())

    def _text(self) -> str:
        return self._tokenizer.to_str(pretty=False)

    def encode(self, captions: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Ids of each caption: no BOS, EOS last, cut to `max_tokens` with the EOS."""
        # One by one: the library's batches run on every core of the machine, whatever this worker was given.
        encoded = (self._tokenizer.encode(caption, add_special_tokens=False).ids for caption in captions)
        # A caption that spells "<pad>" must not become padding.
        return [[id_ if id_ > EOS else UNK for id_ in ids[: max_tokens - 1]] + [EOS] for ids in encoded]

    def decode(self, ids: Sequence[Sequence[int]]) -> list[str]:
        """Text of each sequence up to its first EOS; special tokens, UNK included, are left out."""
        bodies = [list(row[: row.index(EOS)] if EOS in row else row) for row in map(list, ids)]
        return [self._tokenizer.decode(body, skip_special_tokens=True) for body in bodies]

    def save(self, path: Path) -> None:
        """Write one JSON file."""
        path.write_text(self._text(), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> CaptionTokenizer:
        """Read what `save` wrote.

        Raises:
            ValueError: the file is not a tokenizer, or not one of ours.
        """
        text = path.read_text(encoding="utf-8")
        try:
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"{path} is not a tokenizer file: {error}") from error
        return cls(tokenizer)


def _alphabet(texts: Iterable[str], most: int) -> list[str]:
    """The most frequent characters, of equally frequent ones the first: the library leaves that to chance."""
    counts = Counter(character for text in texts for character in SPACE + text.replace(" ", SPACE))
    return sorted(counts, key=lambda character: (-counts[character], character))[:most]
