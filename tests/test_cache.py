"""Prepared once, shared by all, never read half."""

import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from trainables.captioning.data import cache, shapes
from trainables.captioning.data.cache import check_items, prepare
from trainables.captioning.data.features import cached_features
from trainables.captioning.data.items import hashed_split
from trainables.captioning.data.tokenizer import BOS, EOS, PAD
from trainables.captioning.settings import DataSettings
from trainables.machine_cache import build_once
from trainables.trial import SettingsError


@pytest.fixture
def data(tmp_path) -> DataSettings:
    return DataSettings(format="shapes", size=20, image_size=16, cache=tmp_path / "cache", min_frequency=1)


@pytest.fixture
def photos(tmp_path) -> DataSettings:
    """40 images with two captions each, redder from one to the next; split by hash."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for number in range(40):
        Image.new("RGB", (30, 20), (6 * number, 0, 0)).save(folder / f"{number}.png")
        lines += [f"{number}.png,a photo of {word}\n" for word in ("dogs", "cats")]
    (folder / "captions.txt").write_text("".join(lines))
    return DataSettings(format="flickr8k", path=folder, image_size=16, cache=tmp_path / "cache")


def test_what_is_prepared_is_what_the_sources_hold(data):
    prepared = prepare(data)
    assert prepared.images.shape == (20, 16, 16, 3)
    assert prepared.decoded == 20
    for index in (0, 7, 19):
        assert (prepared.images[index] == shapes.SceneSource(0, index).pixels(16)).all()
        assert prepared.captions[index] == list(shapes.captions(0, index))
    assert [len(prepared.splits[name]) for name in ("train", "val", "test")] == [16, 2, 2]
    assert not prepared.images.flags.writeable


def test_tokens_are_the_captions(data):
    prepared = prepare(data.model_copy(update={"max_caption_tokens": 8}))
    flat = [caption for captions in prepared.captions for caption in captions]
    assert prepared.tokens.shape == (100, 9)
    assert prepared.caption_image.tolist() == [image for image in range(20) for _ in range(5)]
    expected = prepared.tokenizer.encode(flat, 8)
    for row, ids, length in zip(prepared.tokens.tolist(), expected, prepared.lengths, strict=True):
        assert row == [BOS, *ids, *[PAD] * (8 - len(ids))]
        assert length == len(ids)
        assert EOS in ids
    assert prepared.lengths.max() == 8


def test_the_tokenizer_sees_training_captions_only(photos):
    file = photos.path / "captions.txt"
    held_out = prepare(photos).splits["test"]
    name = prepare(photos).names[held_out[0]]
    file.write_text(file.read_text() + f"{name},zebra zebra zebra\n")
    tokenizer = prepare(photos).tokenizer
    assert tokenizer.decode(tokenizer.encode(["zebra dogs"], 9)) == ["dogs"]


class TestReopening:
    def test_decodes_nothing_and_is_equal(self, photos):
        first, second = prepare(photos), prepare(photos)
        assert (first.decoded, second.decoded) == (40, 0)
        assert first.key == second.key
        assert (first.images[:] == second.images[:]).all()
        assert (first.tokens == second.tokens).all()

    def test_another_vocabulary_decodes_nothing(self, photos):
        first = prepare(photos)
        second = prepare(photos.model_copy(update={"tokenizer": "bpe"}))
        assert second.decoded == 0
        assert second.key != first.key
        assert second.image_key == first.image_key

    def test_another_size_or_a_changed_image_is_another_cache(self, photos):
        first = prepare(photos)
        assert prepare(photos.model_copy(update={"image_size": 24})).images.shape[1] == 24
        Image.new("RGB", (30, 20), "green").save(photos.path / "3.png")
        os.utime(photos.path / "3.png", ns=(1, 1))
        changed = prepare(photos)
        assert changed.decoded == 40
        assert changed.image_key != first.image_key
        assert changed.images[changed.names.index("3.png"), 8, 8, 1] > 100

    def test_another_caption_is_another_key(self, photos):
        first = prepare(photos)
        file = photos.path / "captions.txt"
        file.write_text(file.read_text().replace("7.png,a photo of dogs", "7.png,a photo of owls"))
        second = prepare(photos)
        assert second.key != first.key and second.decoded == 0
        assert second.captions[second.names.index("7.png")][0] == "a photo of owls"

    def test_moved_data_keep_their_cache(self, photos, tmp_path):
        prepare(photos)
        shutil.copytree(photos.path, tmp_path / "elsewhere")  # keeps times
        assert prepare(photos.model_copy(update={"path": tmp_path / "elsewhere"})).decoded == 0

    def test_copies_are_the_same_data_and_other_captions_are_not(self, photos, tmp_path, monkeypatch):
        first = prepare(photos)
        shutil.copytree(photos.path, tmp_path / "copy", copy_function=shutil.copyfile)  # now
        copy = photos.model_copy(update={"path": tmp_path / "copy", "tokenizer": "bpe"})
        monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
        assert prepare(copy).identity == first.identity and prepare(copy).key != first.key
        file = tmp_path / "copy" / "captions.txt"
        before = file.read_text()
        for now in (before.replace("7.png,a photo", "7.png,one photo"), before.replace("7.png", "5.png")):
            file.write_text(now)
            assert prepare(copy).identity != first.identity
        file.write_text(before)
        assert prepare(copy).identity == first.identity

    def test_another_code_version_is_another_cache(self, photos, monkeypatch):
        first = prepare(photos)
        monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
        assert prepare(photos).image_key != first.image_key


def test_the_cache_lies_where_it_is_told(data, monkeypatch, tmp_path):
    bare = data.model_copy(update={"cache": None})
    assert cache.cache_folder(bare) == Path(os.environ.get("CAPTUNE_CACHE", "~/.cache/captune")).expanduser()
    monkeypatch.setenv("CAPTUNE_CACHE", str(tmp_path / "env"))
    assert prepare(bare).folder == tmp_path / "env"
    assert prepare(data).folder == data.cache


class TestCorruption:
    @staticmethod
    def stores(data: DataSettings) -> list[Path]:
        return [path for path in data.cache.iterdir() if path.is_dir()]

    @pytest.mark.parametrize(
        "name", ["images.u8", "bad.json", "tokens.npy", "tokenizer.json", "manifest.json"]
    )
    @pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
    def test_a_damaged_store_is_built_again(self, data, name, damage):
        intact = prepare(data)
        images, tokens = np.array(intact.images), np.array(intact.tokens)
        (file,) = [store / name for store in self.stores(data) if (store / name).exists()][:1]
        content = bytearray(file.read_bytes())
        if damage == "gone":
            file.unlink()
        elif damage == "cut":
            file.write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 0xFF
            file.write_bytes(content)
        again = prepare(data)
        assert (again.images[:] == images).all()
        assert (again.tokens[:] == tokens).all()
        assert prepare(data).decoded == 0

    def test_what_a_killed_builder_left_is_removed(self, data):
        prepare(data)
        (store,) = [s for s in self.stores(data) if s.name.startswith("images-")]
        aside = store.with_name(f"{store.name}.building")
        os.replace(store, aside)
        (aside / "images.u8").write_bytes(b"half")
        assert prepare(data).decoded == 20
        assert not aside.exists()

    def test_a_builder_that_fails_leaves_nothing(self, tmp_path):
        def fail(folder: Path) -> None:
            (folder / "part").write_text("x")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            build_once(tmp_path / "store", fail)
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []

    def test_damage_far_inside_a_large_file_is_seen(self, tmp_path):
        def build(folder: Path) -> None:
            (folder / "large").write_bytes(bytes(range(256)) * (80 << 12))  # 80 MiB

        assert build_once(tmp_path / "store", build)
        assert not build_once(tmp_path / "store", build)
        with (tmp_path / "store/large").open("r+b") as file:
            file.seek(40 << 20)
            file.write(bytes(4 << 20))  # a hole, as a power cut leaves
        assert build_once(tmp_path / "store", build)


def _build_slowly(folder: Path) -> None:
    with (folder.parent / "builds").open("a") as file:
        file.write("built\n")
    time.sleep(0.3)
    (folder / "content").write_text("whole")


def _race(folder: Path, barrier) -> None:
    barrier.wait()
    build_once(folder, _build_slowly)
    assert (folder / "content").read_text() == "whole"


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_processes_at_once_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    racers = [context.Process(target=_race, args=(tmp_path / "store", barrier)) for _ in range(4)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0] * 4
    assert (tmp_path / "builds").read_text() == "built\n"


def _prepare_on(node: Path, data: DataSettings, barrier, told) -> None:
    os.environ["CAPTUNE_CACHE"] = str(node)
    barrier.wait()
    prepared = prepare(data, cores=1)
    told.put((node.name, prepared.decoded, prepared.key))


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_each_node_decodes_once_for_all_its_workers(photos, tmp_path):
    data = photos.model_copy(update={"cache": None})
    context = multiprocessing.get_context("fork")
    barrier, told = context.Barrier(4), context.Queue()
    nodes = [tmp_path / name for name in ("first", "first", "second", "second")]
    workers = [context.Process(target=_prepare_on, args=(node, data, barrier, told)) for node in nodes]
    for worker in workers:
        worker.start()
    found = [told.get(timeout=50) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted((node, decoded) for node, decoded, _ in found) == [
        ("first", 0),
        ("first", 40),
        ("second", 0),
        ("second", 40),
    ]
    assert len({key for _, _, key in found}) == 1


class TestBadImages:
    def spoil(self, data: DataSettings, *names: str) -> None:
        for name in names:
            (data.path / name).write_bytes((data.path / name).read_bytes()[:60])

    def test_over_the_bound_the_data_are_refused_by_name(self, photos):
        self.spoil(photos, "3.png")
        (photos.path / "4.png").write_text("not found")
        with pytest.raises(SettingsError, match="2 of 40 images are bad") as caught:
            prepare(photos)
        assert caught.value.path == ("data", "max_bad_fraction")
        assert "3.png: " in str(caught.value) and "4.png: not an image" in str(caught.value)

    def test_under_the_bound_they_are_skipped_and_named(self, photos):
        self.spoil(photos, "3.png")
        (photos.path / "4.png").unlink()
        tolerant = photos.model_copy(update={"max_bad_fraction": 0.05})
        for prepared in (prepare(tolerant), prepare(tolerant)):
            assert len(prepared.names) == len(prepared.images) == 38
            assert not {"3.png", "4.png"} & set(prepared.names)
            assert {name for name, _ in prepared.bad} == {"3.png", "4.png"}
            for name, image in zip(prepared.names, prepared.images, strict=True):
                assert abs(int(image[8, 8, 0]) - 6 * int(name.removesuffix(".png"))) <= 1

    def test_a_cache_made_under_a_looser_bound_does_not_loosen_it(self, photos):
        self.spoil(photos, "3.png")
        prepare(photos.model_copy(update={"max_bad_fraction": 0.5}))
        with pytest.raises(SettingsError, match="max_bad_fraction"):
            prepare(photos)

    def test_missing_files_are_refused_without_decoding(self, photos):
        (photos.path / "4.png").unlink()
        with pytest.raises(SettingsError, match=r"4\.png"):
            check_items(photos)
        assert not photos.cache.exists()


class TestEmptySplits:
    def test_no_usable_image(self, photos):
        for path in photos.path.glob("*.png"):
            path.unlink()
        with pytest.raises(SettingsError, match="'train' must not be empty") as caught:
            prepare(photos)
        assert caught.value.path == ("data", "path")

    def test_nothing_to_validate_with(self, photos):
        names = [f"{number}.png" for number in range(40) if hashed_split(f"{number}.png") == "train"][:1]
        (photos.path / "captions.txt").write_text("".join(f"{name},x\n" for name in names))
        with pytest.raises(
            SettingsError, match="'val' must not be empty, but the images are train 1, val 0, test 0"
        ):
            check_items(photos)

    def test_the_only_validation_image_is_bad(self, photos):
        for name, listed in {"train": range(1, 40), "dev": [0], "test": []}.items():
            text = "".join(f"{number}.png\n" for number in listed)
            (photos.path / f"Flickr_8k.{name}Images.txt").write_text(text)
        (photos.path / "0.png").write_bytes(b"")
        with pytest.raises(SettingsError, match=r"'val' must not be empty.*0\.png: empty file"):
            prepare(photos.model_copy(update={"max_bad_fraction": 0.5}))


class Encoder(nn.Module):
    """Means of the four quarters of an image, three channels."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.scale, self.fingerprint, self.calls = scale, f"quarters-{scale}", 0
        self.training_seen: set[bool] = set()

    def forward(self, images):
        self.calls += 1
        self.training_seen.add(self.training)
        size = images.shape[1] // 2
        quarters = images.float().unflatten(1, (2, size)).unflatten(3, (2, size)).mean(dim=(2, 4))
        return quarters.flatten(1, 2) * self.scale  # [B, 4, 3]


class TestFeatures:
    def test_they_are_the_encoders_and_computed_once(self, data):
        prepared, encoder = prepare(data), Encoder()
        features = cached_features(prepared, encoder, batch_size=7)
        assert features.shape == (20, 4, 3) and features.dtype == np.float16
        expected = Encoder()(torch.from_numpy(np.array(prepared.images)))
        assert torch.allclose(torch.from_numpy(np.array(features)).float(), expected, rtol=1e-3)
        calls = encoder.calls
        assert (cached_features(prepared, encoder) == features).all()
        assert encoder.calls == calls == 3

    def test_the_encoder_evaluates_and_is_left_as_it_was(self, data):
        encoder = Encoder().train()
        cached_features(prepare(data), encoder)
        assert encoder.training and encoder.training_seen == {False}

    def test_other_weights_are_other_features(self, data):
        prepared = prepare(data)
        once, twice = cached_features(prepared, Encoder()), cached_features(prepared, Encoder(2.0))
        assert np.allclose(twice.astype(float), 2 * once.astype(float), rtol=2e-3)

    def test_another_vocabulary_shares_them(self, data):
        encoder = Encoder()
        cached_features(prepare(data), encoder)
        calls = encoder.calls
        cached_features(prepare(data.model_copy(update={"tokenizer": "bpe"})), encoder)
        assert encoder.calls == calls

    def test_what_float16_cannot_hold_is_refused(self, data):
        with pytest.raises(ValueError, match="finite in float16"):
            cached_features(prepare(data), Encoder(1e6))
        assert not [path for path in data.cache.glob("features-*") if path.is_dir()]


def test_the_manifest_lists_every_file(data):
    prepare(data)
    for store in (path for path in data.cache.iterdir() if path.is_dir()):
        files = json.loads((store / "manifest.json").read_text())["files"]
        assert set(files) == {path.name for path in store.iterdir()} - {"manifest.json"}


def test_progress_goes_to_standard_error(data, capfd):
    prepare(data, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "Preparing images" in err
    prepare(data, progress=True)
    assert capfd.readouterr().err == ""
