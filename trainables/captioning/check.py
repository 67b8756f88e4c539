"""What a captioning experiment may say, checked before anything runs.

Types and ranges are the business of `settings.py`; here are the rules between values, and the translation
of a refusal into one that names the place in the experiment file. Data is looked at (layout, captions,
splits) but no image is decoded.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from trainables.captioning.data.cache import check_items
from trainables.captioning.model.decoders import check_heads
from trainables.captioning.model.encoders import check_packages
from trainables.captioning.settings import Compression, DataSettings, Settings
from trainables.refusal import nearest, refusal
from trainables.trial import SettingsError

_FROZEN_CNN = "a frozen cnn would keep its random weights: choose efficientnet_lite0, or true here"


def check_experiment(
    data: Mapping[str, Any], settings: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]
) -> None:
    """Refuse what cannot work.

    Args:
        data: the experiment's `data` section.
        settings: fixed settings by dotted name.
        searched: by dotted name some values that a trial may get, all of a choice, the ends of a range and
            the second of whole numbers.

    Raises:
        SettingsError: with the path in the experiment file, the value, the rule, the nearest valid choice.
    """
    read_settings(settings)
    for name, examples in searched.items():
        for example in examples:
            read_settings({name: example}, section=("search_space",))
    _refuse_same(searched.get("compression.method", ()), ("search_space", "compression.method"))
    _check_combinations(settings, searched)
    for encoder in searched.get("encoder", [read_settings(settings).encoder]):
        try:
            check_packages(encoder)
        except SettingsError as error:
            raise SettingsError(_place("encoder", searched), error.message) from None
    parsed = read_data_settings(data)
    if parsed.format == "shapes" and parsed.path is not None:
        raise SettingsError(("data", "path"), "format 'shapes' draws its own images: leave the path out")
    check_items(parsed)


def read_data_settings(data: Mapping[str, Any]) -> DataSettings:
    """The experiment's `data` section.

    Raises:
        SettingsError: unknown key or value out of range.
    """
    try:
        return DataSettings.model_validate(dict(data))
    except ValidationError as error:
        raise _refusal(error, DataSettings, ("data",)) from error


def read_settings(config: Mapping[str, Any], section: tuple[str, ...] = ("model",)) -> Settings:
    """Settings from dotted names.

    Raises:
        SettingsError: unknown name or value out of range, or a `cnn` that `config` itself freezes; its path
            begins with `section`.
    """
    try:
        settings = Settings.from_flat(dict(config))
    except ValidationError as error:
        raise _refusal(error, Settings, section) from error
    if "distil" in settings.compression.methods and settings.compression.parent is None:
        remedy = "ask for it under the experiment's `compression: {search: children}`"
        raise SettingsError(
            (*section, "compression", "method"), f"distil needs a trained parent to learn from: {remedy}"
        )
    if {"encoder", "encoder_trainable"} <= config.keys() and _freezes_cnn(settings):
        remedy = "; where both are searched, give encoder_trainable `when: {encoder: [efficientnet_lite0]}`"
        raise SettingsError((*section, "encoder_trainable"), _FROZEN_CNN + remedy)
    return settings


def check_variants(methods: Sequence[str], ratios: Sequence[float]) -> None:
    """Refuse `methods` to compress that do not exist, or are one and the same; any of `ratios` may be.

    Raises:
        SettingsError: names `compression.methods`, the method, the nearest valid one or the one it equals.
    """
    for method in methods:
        try:
            Compression.model_validate({"method": method})
        except ValidationError as error:
            rule = error.errors()[0]["ctx"]["error"]
            raise SettingsError(("compression", "methods"), f"got {method!r}: {rule}") from error
    _refuse_same(methods, ("compression", "methods"))


def caches_features(settings: Settings) -> bool:
    """Whether the encoder's features are computed once, for all trials: nothing in a trial changes them."""
    return settings.encoder != "cnn" and not settings.encoder_trainable


def _refuse_same(methods: Sequence[str], path: tuple[str, ...]) -> None:
    """Two spellings of one sequence would be one trial, or variant, run twice."""
    known: dict[str, str] = {}
    for method in methods:
        sequence = Compression(method=method).method
        if sequence in known:
            raise SettingsError(
                path,
                f"{method!r} is the same as {known[sequence]!r}: methods are applied in one order, as in "
                f"{sequence!r}, however they are written; keep one of them",
            )
        known[sequence] = method


def _freezes_cnn(settings: Settings) -> bool:
    return settings.encoder == "cnn" and not settings.encoder_trainable


def _check_combinations(settings: Mapping[str, Any], searched: Mapping[str, Sequence[Any]]) -> None:
    """Every combination of what is fixed and searched, conditions aside: they are not told here.

    So a frozen `cnn` of which both halves are searched is left to the trial (`read_settings`): a condition
    may well keep them apart, and no other choice of domains could.
    """
    together = ("encoder", "encoder_trainable", "augment", "decoder", "decoder_width", "decoder_heads")
    fixed = {name: value for name, value in settings.items() if name in together}
    names = [name for name in together if name in searched]
    for values in itertools.product(*(searched[name] for name in names)):
        trial = Settings.from_flat(fixed | dict(zip(names, values, strict=True)))
        if _freezes_cnn(trial) and not {"encoder", "encoder_trainable"} <= searched.keys():
            raise SettingsError(_place("encoder_trainable", searched), _FROZEN_CNN)
        if trial.augment and caches_features(trial):
            raise SettingsError(
                _place("augment", searched),
                "a frozen encoder's features are computed once, from unchanged images: "
                "leave augment out, or set encoder_trainable: true",
            )
        if trial.decoder == "transformer":
            try:
                check_heads(trial.decoder_width, trial.decoder_heads)
            except SettingsError as error:
                name = "decoder_width" if "decoder_width" in searched else "decoder_heads"
                raise SettingsError(_place(name, searched), error.message) from None


def _place(name: str, searched: Mapping[str, Any]) -> tuple[str, ...]:
    return ("search_space" if name in searched else "model", name)


def _refusal(error: ValidationError, model: type[BaseModel], section: tuple[str, ...]) -> SettingsError:
    details = error.errors()[0]
    path = [str(part) for part in details["loc"] if not str(part).startswith(("function-", "constrained-"))]
    if details["type"] == "extra_forbidden":
        known = list(model.model_fields) if len(path) == 1 else list(Compression.model_fields)
        rule = f"there is no such key{nearest(path[-1], known)}"
    else:
        rule = refusal(details)
    # A space names a nested setting with dots, where the sections of the file nest.
    where = (".".join(path),) if section == ("search_space",) else tuple(path)
    return SettingsError((*section, *where), rule)
