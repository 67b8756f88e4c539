"""Each layout as it really lies on disk, and what is wrong with it, named."""

import csv
import errno
import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from trainables.captioning.data.formats import read_items
from trainables.captioning.data.images import FileSource
from trainables.captioning.data.items import Items, hashed_split
from trainables.captioning.data.reading import split_of
from trainables.captioning.settings import DataSettings
from trainables.trial import SettingsError


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path)


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        picture(folder / name)


def read(format: str, path: Path | None, **settings) -> Items:
    return read_items(DataSettings(format=format, path=path, **settings))


def captions(items: Items) -> dict[str, list[str]]:
    return {item.name: list(item.captions) for item in items.good}


def splits(items: Items) -> dict[str, str]:
    return {item.name: item.split for item in items.good}


def write(path: Path, content: str | dict | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, dict):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


class TestFlickr8k:
    def test_kaggles_file(self, tmp_path):
        pictures(tmp_path / "Images", "a.jpg", "b.jpg")
        write(
            tmp_path / "captions.txt",
            "image,caption\n"
            "a.jpg,A dog , running , fast .\n"
            'a.jpg,"A dog, quoted ."\n'
            'b.jpg,"A ""big"" cat ."\n'
            'b.jpg,"Stop" says the "sign"\n',
        )
        items = read("flickr8k", tmp_path)
        assert captions(items) == {
            "a.jpg": ["A dog , running , fast .", "A dog, quoted ."],
            "b.jpg": ['A "big" cat .', '"Stop" says the "sign"'],
        }
        assert items.bad == []

    @pytest.mark.parametrize("folder", ["", "images", "Images", "Flicker8k_Dataset"])
    def test_the_original_token_file(self, tmp_path, folder):
        pictures(tmp_path / folder, "a.jpg")
        write(tmp_path / "Flickr8k.token.txt", "a.jpg#0\tA dog, no. 1 #\na.jpg#1\tTwo\n")
        assert captions(read("flickr8k", tmp_path)) == {"a.jpg": ["A dog, no. 1 #", "Two"]}

    def test_byte_order_mark_windows_lines_and_odd_characters(self, tmp_path):
        pictures(tmp_path, "a.jpg", "ü.jpg")
        write(tmp_path / "captions.txt", "\ufeffimage,caption\r\na.jpg,one\u2028line\r\n\r\nü.jpg,grün\r\n")
        items = read("flickr8k", tmp_path)
        assert captions(items) == {"a.jpg": ["one\u2028line"], "ü.jpg": ["grün"]}
        assert items.bad == []

    def test_names_spelled_in_another_unicode_form_are_found(self, tmp_path):
        picture(tmp_path / "u\u0308.jpg")
        write(tmp_path / "captions.txt", "\u00fc.jpg,a letter\n")
        assert captions(read("flickr8k", tmp_path)) == {"\u00fc.jpg": ["a letter"]}

    def test_bad_items_are_named_with_their_reason(self, tmp_path):
        pictures(tmp_path, "a.jpg", "silent.jpg")
        write(
            tmp_path / "captions.txt",
            b"image,caption\na.jpg,good\na.jpg,\ngone.jpg,missing\nsilent.jpg, \nno comma\nb.jpg,\xff\xfe\n",
        )
        items = read("flickr8k", tmp_path)
        assert captions(items) == {"a.jpg": ["good"]}
        bad = dict(items.bad)
        assert bad["gone.jpg"] == "file is missing"
        assert bad["silent.jpg"] == "its captions are empty"
        assert "NAME,CAPTION" in bad["captions.txt:6"]
        assert "UTF-8" in bad["captions.txt:7"]
        assert dict(items.left_out) == {"a.jpg": "1 of its 2 captions are empty"}

    @pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE])
    def test_an_image_that_cannot_be_looked_at_now_is_not_bad(self, tmp_path, monkeypatch, number):
        write(tmp_path / "captions.txt", "a.jpg,x\n")

        def failing(path):
            raise OSError(number, os.strerror(number), str(path))

        monkeypatch.setattr(FileSource, "of", failing)
        with pytest.raises(OSError, match=r"a\.jpg") as caught:
            read("flickr8k", tmp_path)
        assert caught.value.errno == number

    @pytest.mark.parametrize("tokenizer", ["word", "bpe"])
    def test_a_caption_without_a_word_is_empty_where_words_are_read(self, tmp_path, tokenizer):
        pictures(tmp_path, "a.jpg")
        write(tmp_path / "captions.txt", "a.jpg,...\na.jpg,a dog\n")
        kept = {"word": ["a dog"], "bpe": ["...", "a dog"]}[tokenizer]
        assert captions(read("flickr8k", tmp_path, tokenizer=tokenizer)) == {"a.jpg": kept}

    def test_official_lists_decide_and_what_is_in_none_is_left_out(self, tmp_path):
        pictures(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
        write(tmp_path / "captions.txt", "".join(f"{name}.jpg,x\n" for name in "abcd"))
        for name, members in {"train": "b.jpg\r\n", "dev": "a.jpg\n", "test": "c.jpg"}.items():
            write(tmp_path / "Flickr8k_text" / f"Flickr_8k.{name}Images.txt", members)
        items = read("flickr8k", tmp_path)
        assert splits(items) == {"a.jpg": "val", "b.jpg": "train", "c.jpg": "test"}
        assert items.left_out == [("d.jpg", "in none of the official split lists")]

    def test_half_the_lists_are_refused(self, tmp_path):
        write(tmp_path / "captions.txt", "a.jpg,x\n")
        write(tmp_path / "Flickr_8k.trainImages.txt", "a.jpg\n")
        with pytest.raises(SettingsError, match=r"Flickr_8k\.devImages\.txt"):
            read("flickr8k", tmp_path)


def coco(*images: tuple[int, str, list[str]]) -> dict:
    return {
        "images": [{"id": id_, "file_name": name} for id_, name, _ in images],
        "annotations": [{"image_id": id_, "caption": c} for id_, _, texts in images for c in texts],
    }


class TestCoco:
    def test_any_number_of_captions_and_the_splits_of_the_files(self, tmp_path):
        pictures(tmp_path / "train2017", "1.jpg", "2.jpg")
        pictures(tmp_path / "val2017", "3.jpg")
        train = coco((1, "1.jpg", ["a", "b", "c"]), (2, "2.jpg", ["d"]))
        write(tmp_path / "annotations/captions_train2017.json", train)
        write(tmp_path / "annotations/captions_val2017.json", coco((3, "3.jpg", ["e", "f"])))
        items = read("coco", tmp_path)
        assert captions(items) == {"1.jpg": ["a", "b", "c"], "2.jpg": ["d"], "3.jpg": ["e", "f"]}
        assert splits(items) == {"1.jpg": "train", "2.jpg": "train", "3.jpg": "val"}

    def test_a_file_named_by_hand_is_split_by_hash(self, tmp_path):
        names = [f"{i}.jpg" for i in range(40)]
        pictures(tmp_path / "val2017", *names)
        content = coco(*((i, name, ["x"]) for i, name in enumerate(names)))
        write(tmp_path / "annotations/captions_val2017.json", content)
        items = read("coco", tmp_path, captions_file="annotations/captions_val2017.json")
        assert splits(items) == {name: hashed_split(name) for name in names}

    def test_of_few_images_one_validates_whatever_their_names_hash_to(self, tmp_path):
        names = [f"IMG_{i:04d}.jpg" for i in range(1, 13)]
        assert {hashed_split(name) for name in names} == {"train"}
        pictures(tmp_path, *names)
        write(tmp_path / "captions.json", coco(*((i, name, ["x"]) for i, name in enumerate(names))))
        split = splits(read("coco", tmp_path))
        assert sorted(split.values()) == ["train"] * 11 + ["val"]
        assert splits(read("coco", tmp_path)) == split

    def test_orphans_are_bad(self, tmp_path):
        pictures(tmp_path, "1.jpg", "2.jpg")
        content = coco((1, "1.jpg", ["a"]), (2, "2.jpg", []))
        content["annotations"].append({"image_id": 9, "caption": "whose?"})
        write(tmp_path / "captions.json", content)
        bad = dict(read("coco", tmp_path).bad)
        assert bad == {"image_id 9": "is not among the images of captions.json", "2.jpg": "no caption"}

    @pytest.mark.parametrize(
        "content", ["[]", "{", '{"annotations": {}}', '{"annotations": [{}], "images": []}']
    )
    def test_another_file_is_refused(self, tmp_path, content):
        write(tmp_path / "captions.json", content)
        with pytest.raises(SettingsError, match=r"captions\.json"):
            read("coco", tmp_path)


class TestKarpathy:
    def test_restval_is_trained_on_and_folders_are_followed(self, tmp_path):
        pictures(tmp_path, "val2014/a.jpg", "val2014/b.jpg", "train2014/c.jpg", "images/d.jpg")
        sentences = [{"raw": "A dog .", "tokens": ["a", "dog"]}, {"tokens": ["two", "dogs"]}]
        images = [
            {
                "filepath": "val2014",
                "filename": "a.jpg",
                "split": "restval",
                "sentences": sentences,
            },
            {"filepath": "val2014", "filename": "b.jpg", "split": "val", "sentences": sentences},
            {"filepath": "train2014", "filename": "c.jpg", "split": "train", "sentences": sentences},
            {"filename": "d.jpg", "split": "test", "sentences": sentences},
            {"filename": "e.jpg", "split": "extra", "sentences": sentences},
        ]
        write(tmp_path / "dataset_coco.json", {"images": images, "dataset": "coco"})
        items = read("karpathy", tmp_path)
        named = {
            "val2014/a.jpg": "train",
            "val2014/b.jpg": "val",
            "train2014/c.jpg": "train",
            "d.jpg": "test",
        }
        assert splits(items) == named
        assert captions(items)["d.jpg"] == ["A dog .", "two dogs"]
        assert "'extra'" in dict(items.bad)["e.jpg"]


class TestImageFolder:
    RECORDS = [
        {
            "file_name": "images/a.png",
            "text": "a cat, asleep",
            "tags": ["x"],
            "by": {"en": "cat", "de": "Katze"},
            "texts": [{"raw": "a cat"}],
        },
        {"file_name": "images/b.png", "text": ["one", "two"], "tags": [], "by": {"en": "dog", "de": "Hund"}},
    ]

    @pytest.fixture
    def folder(self, tmp_path):
        pictures(tmp_path, "images/a.png", "images/b.png")
        write(tmp_path / "metadata.jsonl", "\n".join(json.dumps(record) for record in self.RECORDS))
        return tmp_path

    def test_one_caption_or_a_list_of_them(self, folder):
        items = read("imagefolder", folder)
        assert captions(items) == {"images/a.png": ["a cat, asleep"], "images/b.png": ["one", "two"]}

    def test_half_a_surrogate_pair_costs_its_character_or_its_image(self, folder):
        with (folder / "metadata.jsonl").open("a") as file:
            file.write('\n{"file_name": "\\ud83d.png", "text": "x"}')
            file.write('\n{"file_name": "images/a.png", "text": "a dog \\ud83d"}')
        items = read("imagefolder", folder)
        assert captions(items)["images/a.png"] == ["a cat, asleep", "a dog ?"]
        assert items.bad == [("?.png", "file is missing")]

    def test_a_dot_reaches_into_a_column(self, folder):
        items = read("imagefolder", folder, caption_column="by.de")
        assert captions(items) == {"images/a.png": ["Katze"], "images/b.png": ["Hund"]}

    @pytest.mark.parametrize(
        ("column", "hint"),
        [
            ("txet", "did you mean 'text'"),
            ("by", "holds objects .*by.en, by.de"),
            ("texts", r"holds objects; did you mean 'text'\? \(columns: text, tags,"),
        ],
    )
    def test_a_wrong_column_is_refused_with_the_nearest(self, folder, column, hint):
        with pytest.raises(SettingsError, match=hint) as caught:
            read("imagefolder", folder, caption_column=column)
        assert caught.value.path == ("data", "caption_column")

    def test_csv_with_quotes_and_line_breaks(self, tmp_path):
        pictures(tmp_path, "a.png", "b.png")
        with (tmp_path / "metadata.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerows([["file_name", "text", "n"], ["a.png", 'a "big", red\ndog', 1], ["b.png", "x", 2]])
            file.write("c.png,short\r\n")
        items = read("imagefolder", tmp_path)
        assert captions(items) == {"a.png": ['a "big", red\ndog'], "b.png": ["x"]}
        assert items.bad == [("metadata.csv:5", "must have 3 columns")]

    def test_folders_are_splits(self, tmp_path):
        for split in ("train", "validation", "test"):
            pictures(tmp_path / split, "a.png")
            write(tmp_path / split / "metadata.jsonl", json.dumps({"file_name": "a.png", "text": split}))
        items = read("imagefolder", tmp_path)
        assert splits(items) == {"train/a.png": "train", "validation/a.png": "val", "test/a.png": "test"}
        assert captions(items)["test/a.png"] == ["test"]

    def test_classes_whose_names_begin_like_a_splits_are_none(self, tmp_path):
        names = [f"{folder}/1.png" for folder in ("train station", "test_tubes", "dev-boards", "shoes")]
        pictures(tmp_path, *names)
        lines = [json.dumps({"file_name": name, "text": "x"}) for name in names]
        write(tmp_path / "metadata.jsonl", "\n".join(lines))
        items = read("imagefolder", tmp_path)
        assert len(items.good) == 4 and items.left_out == []

    def test_without_a_validation_folder_a_tenth_of_the_training_validates(self, tmp_path):
        names = [f"train/{i}.png" for i in range(60)] + ["test/1.png"]
        pictures(tmp_path, *names)
        lines = [json.dumps({"file_name": name, "text": "x"}) for name in names]
        write(tmp_path / "metadata.jsonl", "\n".join(lines))
        found = splits(read("imagefolder", tmp_path))
        assert [name for name, split in found.items() if split == "test"] == ["test/1.png"]
        assert 0 < list(found.values()).count("val") < 20

    def test_broken_lines_are_bad_by_number(self, folder):
        with (folder / "metadata.jsonl").open("a") as file:
            file.write(
                '\n{"file_name": \n[1]\n{"text": "nameless"}\n{"file_name": "images/z.png", "text": 1}'
            )
        bad = dict(read("imagefolder", folder).bad)
        assert set(bad) == {f"metadata.jsonl:{n}" for n in (3, 4, 5)} | {"images/z.png"}

    def test_one_image_in_two_splits_is_bad(self, tmp_path):
        for split in ("train", "val"):
            write(tmp_path / f"captions_{split}2017_small.json", coco((1, "same.jpg", [split])))
        picture(tmp_path / "same.jpg")
        assert dict(read("coco", tmp_path).bad) == {"same.jpg": "is in several splits: train, val"}


class TestWebDataset:
    @staticmethod
    def shard(path: Path, members: dict[str, bytes]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(path, "w") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

    @staticmethod
    def png(colour: str) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (8, 8), colour).save(file, "PNG")
        return file.getvalue()

    def test_images_are_read_out_of_the_shard(self, tmp_path):
        members = {
            "000.png": self.png("red"),
            "000.txt": b"first\nsecond\n",
            "000.json": b'{"width": 8, "caption": "unused"}',
            "dir.v1/001.PNG": self.png("blue"),
            "dir.v1/001.txt": b"\n",
            "dir.v1/001.json": b'{"caption": "from json", "n": 1}',
        }
        self.shard(tmp_path / "00000.tar", members)
        items = read("webdataset", tmp_path)
        assert captions(items) == {"000": ["first", "second"], "dir.v1/001": ["from json"]}
        assert items.good[0].source.pixels(16)[0, 0].tolist() == [255, 0, 0]
        assert items.good[1].source.pixels(16)[0, 0].tolist() == [0, 0, 255]

    def test_shards_name_splits_and_equal_keys_stay_apart(self, tmp_path):
        for split in ("train-0", "val-0"):
            self.shard(tmp_path / f"{split}.tar", {"7.png": self.png("red"), "7.txt": split.encode()})
        items = read("webdataset", tmp_path)
        assert splits(items) == {"7": "train", "val-0/7": "val"}

    def test_a_truncated_shard_gives_what_is_before_the_break(self, tmp_path):
        members = {f"{i}.{kind}": self.png("red") for i in range(4) for kind in ("png", "txt")}
        path = tmp_path / "0.tar"
        self.shard(path, {name: b"x" if name.endswith("txt") else data for name, data in members.items()})
        path.write_bytes(path.read_bytes()[:2900])
        items = read("webdataset", tmp_path)
        assert list(captions(items)) == ["0"]
        assert "broken tar" in dict(items.bad)["0.tar"]

    def test_samples_without_image_or_caption_are_bad(self, tmp_path):
        self.shard(
            tmp_path / "0.tar",
            {
                "a.txt": b"x",
                "b.png": self.png("red"),
                "c.png": b"",
                "c.txt": b"ok",
                "d.png": self.png("red"),
                "d.json": b'{"captions": [{"raw": "no text"}]}',
            },
        )
        assert set(dict(read("webdataset", tmp_path).bad)) == {"0.tar:a", "b", "d"}

    def test_compressed_shards_are_refused_with_the_remedy(self, tmp_path):
        (tmp_path / "0.tar.gz").write_bytes(b"")
        with pytest.raises(SettingsError, match="gunzip"):
            read("webdataset", tmp_path)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Train2017", "train"),
        ("train-00000-of-00010.tar", "train"),
        ("val_2014", "val"),
        ("dev.0003.tar", "val"),
        ("testing", "test"),
        ("test tubes", None),
        ("trainers", None),
    ],
)
def test_what_is_named_after_a_split(name, split):
    assert split_of(name) == split


class TestRefusals:
    def test_no_path(self):
        with pytest.raises(SettingsError, match="reads a folder"):
            read("coco", None)

    def test_a_missing_folder_names_the_nearest(self, tmp_path):
        (tmp_path / "photos").mkdir()
        with pytest.raises(SettingsError, match="did you mean 'photos'") as caught:
            read("flickr8k", tmp_path / "phtos")
        assert caught.value.path == ("data", "path")

    @pytest.mark.parametrize("format", ["flickr8k", "coco", "karpathy", "imagefolder"])
    def test_a_folder_without_caption_file_says_what_it_has(self, tmp_path, format):
        write(tmp_path / "labels.csv", "a,b")
        with pytest.raises(SettingsError, match=r"labels\.csv") as caught:
            read(format, tmp_path)
        assert caught.value.path == ("data", "path")

    def test_a_misspelled_caption_file_names_the_nearest(self, tmp_path):
        write(tmp_path / "text/captions.txt", "a,b")
        with pytest.raises(SettingsError, match=r"did you mean 'text/captions\.txt'") as caught:
            read("flickr8k", tmp_path, captions_file="text/caption.txt")
        assert caught.value.path == ("data", "captions_file")


def test_hashed_splits_are_fixed_and_about_80_10_10():
    assert [hashed_split(f"{i}.jpg") for i in range(6)] == ["train", "train", "train", "val", "val", "train"]
    counts = [sum(hashed_split(f"{i}.jpg") == s for i in range(5000)) for s in ("train", "val", "test")]
    assert abs(counts[0] - 4000) < 120 and abs(counts[1] - 500) < 90 and abs(counts[2] - 500) < 90
    assert hashed_split("u\u0308.jpg") == hashed_split("\u00fc.jpg")
    assert hashed_split("\udcfc.jpg") == "train", "Latin-1 in a tar"
    assert hashed_split("a\\b.jpg") == hashed_split("a/b.jpg")


def test_shapes_have_every_split_from_ten_images_on():
    assert sorted(splits(read("shapes", None, size=10)).values()) == ["test"] + ["train"] * 8 + ["val"]
