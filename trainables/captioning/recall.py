"""Which words of the references a captioner says, and which of them another one stops saying.

Pure strings: knows neither models nor tables. What a word tells is `word_kinds.py`'s business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from trainables.captioning.word_kinds import Kind, content_words, kind_of, object_words

#: References that must use a word before it is expected of a caption: what only one person mentions need not
#: be said. Of an image with fewer references, all of them.
AGREEING = 2
#: Images that are added to each word's when falls are ranked, in which nothing changed: a word of so many
#: images has to fall twice as far as a frequent one to be ranked beside it.
DISCOUNT = 10


@dataclass(frozen=True, slots=True)
class WordRecall:
    """One word, over all images whose references agree on it."""

    word: str
    kind: Kind
    images: int
    """How many they are."""
    said_by_a: int
    """In how many of them A says it."""
    said_by_b: int

    @property
    def recall_a(self) -> float:
        """Share of its images in which A says it."""
        return self.said_by_a / self.images

    @property
    def recall_b(self) -> float:
        """Share of its images in which B says it."""
        return self.said_by_b / self.images

    @property
    def fall(self) -> float:
        """`recall_a - recall_b`."""
        return (self.said_by_a - self.said_by_b) / self.images

    @property
    def discounted_fall(self) -> float:
        """`fall`, drawn towards 0 as if `DISCOUNT` more images had not changed."""
        return (self.said_by_a - self.said_by_b) / (self.images + DISCOUNT)


def agreed_words(references: Sequence[str]) -> set[str]:
    """The content words that at least `AGREEING` references of an image use, or all if they are fewer."""
    uses = Counter(word for reference in references for word in content_words(reference))
    needed = min(AGREEING, len(references))
    return {word for word, times in uses.items() if times >= needed}


def word_recall(
    references: Sequence[Sequence[str]], captions_a: Sequence[str], captions_b: Sequence[str]
) -> list[WordRecall]:
    """The recall of every word that references agree on, in the captions of A and of B.

    Args:
        references: for each image one or more captions.
        captions_a, captions_b: one caption per image, in the same order.

    Returns:
        Sorted by `discounted_fall`, the largest first, then by images and word; at the end what B says and A
        did not.

    Raises:
        ValueError: numbers of images differ.
    """
    images, by_a, by_b = Counter[str](), Counter[str](), Counter[str]()
    for group, a, b in _per_image(references, captions_a, captions_b):
        expected = agreed_words(group)
        images.update(expected)
        by_a.update(expected & content_words(a))
        by_b.update(expected & content_words(b))
    objects = object_words(reference for group in references for reference in group)
    words = [
        WordRecall(each, kind_of(each, objects), images[each], by_a[each], by_b[each]) for each in images
    ]
    return sorted(words, key=lambda each: (-each.discounted_fall, -each.images, each.word))


def lost_words(
    references: Sequence[Sequence[str]], captions_a: Sequence[str], captions_b: Sequence[str]
) -> list[list[str]]:
    """For each image the words that its references agree on, A says and B does not; alphabetically.

    Raises:
        ValueError: numbers of images differ.
    """
    return [
        sorted(agreed_words(group) & content_words(a) - content_words(b))
        for group, a, b in _per_image(references, captions_a, captions_b)
    ]


def _per_image(
    references: Sequence[Sequence[str]], captions_a: Sequence[str], captions_b: Sequence[str]
) -> Iterable[tuple[Sequence[str], str, str]]:
    if not len(references) == len(captions_a) == len(captions_b):
        raise ValueError(
            "references and captions must be of the same images, but got "
            f"{len(references)} groups of references, {len(captions_a)} and {len(captions_b)} captions"
        )
    return zip(references, captions_a, captions_b, strict=True)
