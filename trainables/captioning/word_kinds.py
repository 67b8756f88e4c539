"""What the words of captions tell: objects, colours, counts, and the rest of what is no function word.

Pure strings. Words are those of `metrics.tokenize`; forms are not joined: `dogs` is another word than `dog`.
Colours, counts and function words are closed lists of English; objects are found in the captions by where
they stand, with no tagger or dictionary. In another language there are content words only, its function words
among them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal, get_args

from trainables.captioning.metrics import tokenize

Kind = Literal["object", "colour", "count", "content"]
KINDS: tuple[Kind, ...] = get_args(Kind)

#: A word that is used less often is not known well enough to be called an object.
FEWEST_USES = 5
#: An object follows a determiner, a count or a colour (`a dog`, `two dogs`, `black dog`) in this share of its
#: uses at least, which verbs do not, ...
LEAST_INTRODUCED = 0.2
#: ... and a content word or a colour follows it in less than this share, unlike an adjective (`a big dog`).
LEAST_ADJECTIVAL = 0.75


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: The eleven basic terms of Berlin & Kay (1969) and others that are frequent in captions; some are things.
_COLOURS = _words(
    """
    black white red green yellow blue brown orange pink purple gray
    beige tan gold golden silver bronze turquoise teal cyan magenta violet maroon navy cream blond
    """
)
_COUNTS = _words(
    """
    one two three four five six seven eight nine ten eleven twelve dozen dozens hundred
    single double triple pair pairs couple couples several many multiple numerous
    """
)
#: Spellings of the same word.
_SPELLINGS = {
    **{"grey": "gray", "blonde": "blond"},
    **{"1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six"},
    **{"7": "seven", "8": "eight", "9": "nine", "10": "ten", "11": "eleven", "12": "twelve"},
}
_DETERMINERS = _words("a an the this that another some his her its their")
#: Articles, pronouns, auxiliaries, conjunctions, and prepositions that say little about where things are.
_FUNCTION_WORDS = _DETERMINERS | _words(
    """
    these those any each every all both other
    i you he she it we they him them hers theirs our your my itself himself herself
    who which what whose where when while there here
    is are was were be been being am has have had having do does did can could will would may might must
    and or but nor so if as than because
    of in on at to by for from with without into onto upon about up down out off over through
    not no n't 's 'm 'd 're 've 'll very too also just
    """
)


def content_words(caption: str) -> set[str]:
    """The words of `caption` without function words; `2` is `two`, `grey` is `gray`."""
    return set(_spelt(caption)) - _FUNCTION_WORDS


def object_words(captions: Iterable[str]) -> set[str]:
    """The words that stand where captions name things: often right after a determiner, seldom before others.

    A rule of thumb. Of the 220 most frequent content words of 5,000 captions by people (Flickr8k), a person
    would move about one in fifteen: mostly plurals without an article (`sunglasses`), things that specify
    others (`tennis ball`), and adjectives that end a phrase.
    """
    uses, introduced, adjectival = Counter[str](), Counter[str](), Counter[str]()
    for caption in captions:
        words = _spelt(caption)
        for before, word, after in zip(["", *words], words, [*words[1:], ""], strict=False):
            if kind_of(word) != "content" or word in _FUNCTION_WORDS:
                continue
            uses[word] += 1
            introduced[word] += before in _DETERMINERS or kind_of(before) in ("count", "colour")
            adjectival[word] += bool(after) and after not in _FUNCTION_WORDS and kind_of(after) != "count"
    return {
        word
        for word, times in uses.items()
        if times >= FEWEST_USES
        and introduced[word] >= LEAST_INTRODUCED * times
        and adjectival[word] < LEAST_ADJECTIVAL * times
    }


def kind_of(word: str, objects: Iterable[str] = frozenset()) -> Kind:
    """What a content word tells, where `objects` are things. Numerals above twelve are counts, too."""
    if word in _COLOURS:
        return "colour"
    if word in _COUNTS or word.isdecimal():
        return "count"
    return "object" if word in objects else "content"


def _spelt(caption: str) -> list[str]:
    return [_SPELLINGS.get(word, word) for word in tokenize(caption)]
