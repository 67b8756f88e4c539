"""Captions to ids and back."""

import json

import pytest

from trainables.captioning.data.tokenizer import BOS, EOS, PAD, UNK, CaptionTokenizer

CAPTIONS = [
    "A dog's red t-shirt, on a chair.",
    "A red dog runs!",
    "Two dogs run on the grass.",
    "Ein großer Hund läuft.",
] * 3


def trained(kind: str, vocabulary_size: int = 200, min_frequency: int = 1) -> CaptionTokenizer:
    return CaptionTokenizer.train(
        CAPTIONS, kind=kind, vocabulary_size=vocabulary_size, min_frequency=min_frequency
    )


def test_words_are_lower_case_without_punctuation_and_keep_inner_marks():
    tokenizer = trained("word")
    ids = tokenizer.encode(["A dog's red T-shirt, on a chair!"], 30)
    assert len(ids[0]) == 8  # seven words and the end
    assert tokenizer.decode(ids) == ["a dog's red t-shirt on a chair"]


def test_byte_pairs_give_the_text_back_with_its_punctuation():
    tokenizer = trained("bpe")
    assert tokenizer.decode(tokenizer.encode(CAPTIONS, 100)) == [caption.lower() for caption in CAPTIONS]


def test_byte_pairs_spell_words_they_never_saw():
    tokenizer = trained("bpe")
    assert tokenizer.decode(tokenizer.encode(["the rogue dog"], 100)) == ["the rogue dog"]
    words = trained("word")
    assert words.encode(["the rogue dog"], 100)[0][1] == UNK


@pytest.mark.parametrize("kind", ["word", "bpe"])
class TestBothKinds:
    def test_ends_with_one_end_token_and_no_start(self, kind):
        for ids in trained(kind).encode([*CAPTIONS, "", "!!!"], 30):
            assert ids[-1] == EOS
            assert not {PAD, BOS, EOS} & set(ids[:-1])

    def test_is_cut_to_the_limit_with_the_end_token(self, kind):
        (ids,) = trained(kind).encode(["two dogs run on the grass"], 4)
        assert len(ids) == 4
        assert ids[-1] == EOS

    def test_special_tokens_spelled_in_a_caption_are_not_special(self, kind):
        (ids,) = trained(kind).encode(["a <pad> dog <eos> runs <bos>"], 30)
        assert not {PAD, BOS, EOS} & set(ids[:-1])

    def test_decoding_stops_at_the_end_token_and_leaves_specials_out(self, kind):
        tokenizer = trained(kind)
        (ids,) = tokenizer.encode(["a red dog"], 30)
        assert tokenizer.decode([[BOS, *ids, *ids, PAD], []]) == ["a red dog", ""]

    def test_saved_and_loaded_it_is_the_same(self, kind, tmp_path):
        tokenizer = trained(kind)
        tokenizer.save(tmp_path / "tokenizer.json")
        loaded = CaptionTokenizer.load(tmp_path / "tokenizer.json")
        assert loaded.vocabulary_size == tokenizer.vocabulary_size
        assert loaded.encode(CAPTIONS, 30) == tokenizer.encode(CAPTIONS, 30)
        assert loaded.decode(loaded.encode(CAPTIONS, 30)) == tokenizer.decode(tokenizer.encode(CAPTIONS, 30))

    def test_vocabulary_keeps_to_its_bound_and_holds_the_frequent(self, kind):
        assert trained(kind, vocabulary_size=16).vocabulary_size == 16
        (a,) = trained(kind, vocabulary_size=16).encode(["a"], 5)
        assert UNK not in a

    def test_training_twice_gives_the_same(self, kind, tmp_path):
        for name in ("first", "second"):
            trained(kind, vocabulary_size=40).save(tmp_path / name)
        assert (tmp_path / "first").read_text() == (tmp_path / "second").read_text()


def test_of_equally_rare_characters_the_same_are_kept():
    captions = ["".join(map(chr, range(0x4E00 + start, 0x4E00 + start + 40))) for start in range(0, 400, 40)]
    settings = {"kind": "bpe", "vocabulary_size": 64, "min_frequency": 1}
    first, *others = [CaptionTokenizer.train(captions, **settings) for _ in range(4)]
    assert all(other == first for other in others)
    assert not any(UNK in ids for ids in first.encode([captions[0][:1]], 9)), "a caption begins like a word"
    assert first != CaptionTokenizer.train(captions[::-1] + ["\u9999" * 3], **settings)


def test_rare_words_are_left_out():
    tokenizer = CaptionTokenizer.train(["a dog", "a cat"], kind="word", vocabulary_size=50, min_frequency=2)
    assert tokenizer.vocabulary_size == 5
    assert tokenizer.encode(["a cat"], 5) == [[4, UNK, EOS]]


@pytest.mark.parametrize("content", ["", "{}", json.dumps({"model": {"type": "WordLevel"}})])
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="tokenizer.json"):
        CaptionTokenizer.load(path)
