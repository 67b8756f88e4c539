"""Everything a captioning trial can be told: the `data` section and the settings of one trial.

Both are frozen pydantic models that refuse unknown keys. A setting has the same name in the experiment
file's `model` section (fixed), in a search space (searched), and as the table column `config/NAME`.
Dotted names (`compression.ratio`) are nested models here and flat everywhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from trainables.refusal import nearest

Format = Literal["shapes", "flickr8k", "coco", "karpathy", "imagefolder", "webdataset"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class DataSettings(_Strict):
    """The experiment file's `data` section."""

    format: Format
    """Layout of the folder; `shapes` draws its own images and needs no path."""
    path: Path | None = None
    """Folder with the images and the caption file (webdataset: the shards)."""
    captions_file: Path | None = None
    """Caption file relative to `path`, where the format's usual names do not fit."""
    caption_column: str = "text"
    """Column of the caption in `imagefolder` metadata; a list there means several captions."""
    size: Annotated[int, Field(ge=10)] = 600
    """Number of images that `shapes` draws."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the `shapes` generator."""
    image_size: Annotated[int, Field(ge=16, le=1024)] = 224
    """Side of the square that images are resized and centre-cropped to, in pixels."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of unreadable images that is tolerated; above it the run is refused."""
    tokenizer: Literal["word", "bpe"] = "word"
    """Whole lower-cased words, or byte-pair pieces."""
    vocabulary_size: Annotated[int, Field(ge=16)] = 10_000
    """Upper bound on the vocabulary, the four special tokens included."""
    min_frequency: Annotated[int, Field(ge=1)] = 2
    """Words and merges seen less often in the training captions are left out."""
    max_caption_tokens: Annotated[int, Field(ge=4, le=512)] = 30
    """Longer captions are cut for training; generation stops here. Counts the end token, not the start."""
    cache: Path | None = None
    """Folder of the prepared data; default `$CAPTUNE_CACHE`, else `~/.cache/captune`."""


#: Ways to make a model smaller, in the order in which they are applied; see `compress/__init__.py`.
METHODS = (
    "distil",
    "share",
    "prune_units",
    "low_rank",
    "prune",
    "fp16",
    "bf16",
    "int8",
    "int8_per_tensor",
    "int4",
)
_NUMBER_FORMATS = METHODS[-5:]


def _in_order(method: object) -> object:
    """`prune+int8` of `[int8, prune]` or `int8+prune`.

    Raises:
        ValueError: an unknown method, one twice, or two number formats.
    """
    names = method.split("+") if isinstance(method, str) else method
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("should be a method, methods joined by '+', or a list of methods")
    names = [name.strip() for name in names]
    if names == ["none"]:
        return "none"
    for name in names:
        if name not in METHODS:
            hint = nearest(name, METHODS) or f"; there are {', '.join(METHODS)}"
            raise ValueError(f"no method {name!r}{hint}")
        if names.count(name) > 1:
            raise ValueError(f"{name!r} is there twice; keep one")
    formats = [name for name in names if name in _NUMBER_FORMATS]
    if len(formats) > 1:
        raise ValueError(f"{' and '.join(formats)} are number formats; keep one")
    return "+".join(sorted(names, key=METHODS.index)) or "none"


class Compression(_Strict):
    """How the trained model is made smaller before it ships."""

    method: Annotated[str, BeforeValidator(_in_order)] = "none"
    """One method, or several as in `prune+int8`, applied in the order of the table of methods."""
    ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the whole model's bytes that is removed. Number formats and `share` alone remove what they
    remove."""
    warmup_epochs: Annotated[int, Field(ge=0)] = 1
    """Epochs before the model is compressed; those that follow fine-tune it as it will ship (low rank:
    Pufferfish, Wang et al. 2021; number formats: quantisation-aware)."""
    parent: Path | None = None
    """Checkpoint of a trained, uncompressed captioner: it is compressed and fine-tuned instead of training
    anew. `captune run` sets it where `compression.search` is `children`."""
    distil_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """`distil`: share of the objective that is the divergence from the teacher; the captions have the
    rest."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """`distil`: divides the logits of teacher and student; above 1 the less probable words tell more. On
    `shapes`, 1.5 and 2 made students of a third of the width worse."""
    attention_weight: Annotated[float, Field(ge=0)] = 0.0
    """`distil`, where the encoder is trained: weight per token of the squared distance between where the
    student's encoder looks and where the teacher's does (feature distillation, Zagoruyko & Komodakis
    2017). On `shapes`, 1 made most students better."""
    teacher_captions: Annotated[float, Field(ge=0, le=1)] = 0.0
    """`distil`: share of the training captions that the teacher writes, in place of the data's
    (sequence-level distillation, Kim & Rush 2016). On `shapes` it gained nothing."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The names that `method` joins."""
        return () if self.method == "none" else tuple(self.method.split("+"))


class Settings(_Strict):
    """One trial: model, optimisation, compression. Every field may be fixed or searched."""

    encoder: Literal["cnn", "efficientnet_lite0"] = "cnn"
    encoder_trainable: bool = True
    """False freezes the encoder; a frozen pretrained encoder's features are computed once and cached."""
    encoder_width: Annotated[int, Field(ge=4)] = 32
    """`cnn`: channels of the first stage; they double at each of the following stages."""
    decoder: Literal["gru", "gru_attention", "transformer"] = "gru_attention"
    decoder_width: Annotated[int, Field(ge=8)] = 256
    """Hidden units of the recurrent cell, or the transformer's model width."""
    embedding_width: Annotated[int, Field(ge=8)] | None = None
    """Width of the word vectors; default: the decoder's width."""
    decoder_layers: Annotated[int, Field(ge=1, le=24)] = 1
    decoder_heads: Annotated[int, Field(ge=1)] = 4
    """`transformer`: attention heads; must divide the width."""
    tie_embeddings: bool = False
    """The word vectors' matrix is the output layer's too, behind a projection where widths differ (Press &
    Wolf 2017)."""
    share_layers: bool = False
    """All layers of the decoder have one set of weights (ALBERT, Lan et al. 2020); no effect on one layer."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.3

    # With .001 and batches of 64, some hundreds of images give too few steps: after nine epochs CIDEr was .21
    # on drawn scenes and .08 on photographs, now .76 and .22. Batches of 16 are better still, and slow.
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Captions per optimisation step over the whole gang, whatever its size."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Most captions a worker takes at once; a larger share is accumulated over several passes."""
    optimizer: Literal["adamw", "adam", "sgd", "adabelief"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 2e-3
    encoder_learning_rate_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Multiplies the learning rate of a trainable encoder."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """`sgd` only."""
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of all steps in which the learning rate rises linearly before it decays by a cosine."""
    gradient_clip: Annotated[float, Field(gt=0)] | None = 5.0
    """Largest global norm of the gradient; null switches clipping off."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    augment: bool = False
    """Flip, crop and colour, per batch. Refused where features are cached."""
    beam_width: Annotated[int, Field(ge=1, le=32)] = 3
    """Beams in evaluation at rungs and in generation; 1 is greedy."""
    length_penalty: Annotated[float, Field(ge=0, le=2)] = 0.7
    """Beam scores are log-probabilities over length to this power (Wu et al. 2016)."""
    compression: Compression = Compression()

    @classmethod
    def from_flat(cls, config: dict[str, object]) -> Settings:
        """Settings from flat dotted names, as tables and search spaces spell them.

        Raises:
            pydantic.ValidationError: unknown name or value out of range.
        """
        nested: dict[str, object] = {}
        for name, value in config.items():
            section, dot, key = name.partition(".")
            if dot:
                nested.setdefault(section, {})[key] = value  # type: ignore[index]
            else:
                nested[section] = value
        return cls.model_validate(nested)
