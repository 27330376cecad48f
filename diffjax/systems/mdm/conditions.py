"""What motions are conditioned on: texts, classes of actions, or nothing.

Texts go to the network as vectors. Those of a released encoder (CLIP, DistilBERT, from a local
folder) are computed once before training; those of the small encoder (`nets.text_small`), which
needs nothing but the captions, are computed in the step, by weights that are trained along.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from diffjax.data.motion.base import MotionSource, caption_table
from diffjax.data.motion.naming import mirror_text
from diffjax.errors import UserError, choose
from diffjax.nets import text_small
from diffjax.nets.text_small import TextSmall
from diffjax.systems import images
from diffjax.systems.mdm import text_folders

KINDS = ("text", "action", "none")
MIRROR = "mirror of "  # how sources call a mirrored clip
SHOWN = 64  # captions of the training set that a run keeps


@dataclasses.dataclass(frozen=True)
class Conditioner:
    """How motions are conditioned, as functions.

    Attributes:
      kind: one of `KINDS`.
      init: key -> {name: parameters} of what is trained beside the network of motions.
      told: (params, given, train, rngs) -> the network's `condition`, where given has "text" and
        "text_mask" [..., T], or "label" [...].
      encode: (texts, folder) -> {"text", "text_mask"}, what `told` takes of texts, one a row; on
        the host. `folder` is the encoder's, "" for the config's.
      pooled: whether a text is one vector.
    """

    kind: str
    init: Callable = lambda key: {}
    told: Callable = lambda params, given, train=False, rngs=None: None
    encode: Callable | None = None
    pooled: bool = True


def make(config, assets: dict) -> Conditioner:
    """Returns the conditioner of a config, with the vocabulary or the sizes that assets hold.

    Raises:
      UserError: an unknown kind or encoder, an encoder that the network cannot be told by.
    """
    kind = config.conditioning
    choose(kind, dict.fromkeys(KINDS), "config.conditioning")
    if kind == "none":
        return Conditioner(kind)
    if kind == "action":
        return Conditioner(kind, told=lambda params, given, train=False, rngs=None: given["label"])
    encoder = choose(
        config.text.encoder, {"words": _words, "folder": _folder}, "config.text.encoder"
    )
    return encoder(config, assets)


def _words(config, assets: dict) -> Conditioner:
    vocabulary = text_small.from_json(assets.get("vocabulary"), "assets/vocabulary.json")
    pooled = config.network.kind != "trans_dec"
    sizes = {name: config.text[name] for name in ("width", "layers", "heads")}
    if min(sizes["width"], sizes["heads"]) < 1 or sizes["layers"] < 0:
        raise UserError(f"config.text {sizes}: width and heads above 0, layers at least 0")
    if sizes["width"] % (2 * sizes["heads"]):
        raise UserError(f"config.text.width {sizes['width']}: a multiple of 2 x config.text.heads")
    net = TextSmall(vocabulary.size, pooled=pooled, dropout=float(config.network.dropout), **sizes)

    def init(key):
        ids = jnp.zeros((1, vocabulary.length), jnp.int32)
        return {"text": net.init(key, ids, ids == 0)["params"]}

    def told(params, given, train=False, rngs=None):
        ids, mask = given["text"], given["text_mask"]
        lead = ids.shape[:-1]
        flat = ids.reshape(-1, ids.shape[-1]), mask.reshape(-1, ids.shape[-1])
        tokens, mask = net.apply({"params": params["text"]}, *flat, train, rngs=rngs)
        return tokens.reshape(*lead, *tokens.shape[1:]), mask.reshape(*lead, mask.shape[-1])

    def encode(texts, folder=""):
        if folder:
            raise UserError("--text_folder: this run's text encoder was trained with it")
        return dict(zip(("text", "text_mask"), vocabulary.ids(texts), strict=True))

    return Conditioner("text", init, told, encode, pooled)


def _folder(config, assets: dict) -> Conditioner:
    about = assets.get("text")
    if not isinstance(about, dict) or type(about.get("width")) is not int:
        raise UserError("the run directory lacks assets/text.json (width, pooled)")
    pooled = about.get("pooled") is True
    if not pooled and config.network.kind != "trans_dec":
        raise UserError(
            f"config.text.folder: a vector a word, and a network of kind {config.network.kind} "
            "takes one a text: config.network.kind trans_dec does"
        )

    def encode(texts, folder=""):
        where = folder or config.text.folder
        if not where:
            raise UserError("this model takes texts by a released encoder: give --text_folder")
        tokens, mask = _encoded(where, tuple(texts))
        if tokens.shape[-1] != about["width"]:
            raise UserError(
                f"{where}: vectors of {tokens.shape[-1]} numbers, the model takes {about['width']}"
            )
        return {"text": tokens, "text_mask": mask}

    given = lambda params, given, train=False, rngs=None: (given["text"], given["text_mask"])
    return Conditioner("text", told=given, encode=encode, pooled=pooled)


@functools.lru_cache(maxsize=2)
def _encoder(folder: str):
    return text_folders.load(Path(folder).expanduser())


@functools.lru_cache(maxsize=8)
def _encoded(folder: str, texts: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    return _encoder(folder).encode(texts)


def text_assets(config, captions: tuple[tuple[str, ...], ...]) -> dict:
    """Returns what a run keeps of its text encoder, made before training.

    Raises:
      UserError: no encoder in config.text.folder.
    """
    if config.text.encoder != "folder":
        every = [text for some in captions for text in some]
        return {"vocabulary": text_small.vocabulary(every, config.text.words).to_json()}
    if not config.text.folder:
        raise UserError("config.text.folder is empty: the folder of CLIP's or DistilBERT's files")
    tokens, _ = _encoded(config.text.folder, ("a person walks.",))
    return {"text": {"width": int(tokens.shape[-1]), "pooled": tokens.shape[1] == 1}}


def captions_of(source: MotionSource) -> tuple[tuple[str, ...], ...]:
    """Returns the captions of each clip; of one that has none its folders or its class.

    walk/proud/001.bvh shows "walk, proud": so folders of a content and a style are captions.

    Raises:
      UserError: no clip has anything to call it by.
    """
    found = []
    for i, some in enumerate(source.captions):
        name = source.names[i] if source.names else ""
        folders = name.removeprefix(MIRROR).split("/")[:-1]
        if name.startswith(MIRROR):
            folders = [mirror_text(folder) for folder in folders]
        if not folders and source.labels is not None:
            folders = [source.class_names[source.labels[i]]]
        words = ", ".join(folder.replace("_", " ") for folder in folders)
        found.append(tuple(some) or ((words,) if words else ()))
    if not any(found):
        raise UserError(
            f"{source.name}: no captions: write captions.csv, or sort the files into folders, or "
            "set config.conditioning=none"
        )
    return tuple(found)


def some_of(captions: tuple[tuple[str, ...], ...]) -> tuple[str, ...]:
    """Returns up to SHOWN different captions, spread over the set: the first of each clip."""
    every = list(dict.fromkeys(some[0] for some in captions if some))
    pick = np.unique(np.linspace(0, len(every) - 1, min(SHOWN, len(every))).astype(int))
    return tuple(every[i] for i in pick)


@dataclasses.dataclass(frozen=True, eq=False)
class Told:
    """A source of motions with what each is conditioned on, for the device's memory.

    A batch is motion float32 [B, N, D], length and index int32 [B], and "label" int32 [B], or
    "text" and "text_mask" of one caption of each clip, drawn anew each time.
    """

    source: MotionSource
    conditioner: Conditioner

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def labels(self):
        return self.source.labels

    def __len__(self) -> int:
        return len(self.source)

    def arrays(self) -> dict[str, np.ndarray]:
        arrays = self.source.arrays()
        if self.conditioner.kind != "text":
            return arrays
        texts, rows, counts = caption_table(captions_of(self.source))
        return arrays | self.conditioner.encode(texts) | {"captions": rows, "captioned": counts}

    @staticmethod
    def gather(arrays: dict, index: jax.Array, keys: jax.Array) -> dict:
        """Returns the examples of these numbers; each takes one of its captions by its key."""
        names = [n for n in ("motion", "length", "index", "label") if n in arrays]
        batch = {name: arrays[name][index] for name in names}
        if "text" in arrays:
            draw = lambda key, count: jax.random.randint(key, (), 0, count)
            which = jax.vmap(draw)(keys, arrays["captioned"][index])
            row = arrays["captions"][index, which]
            batch |= {name: arrays[name][row] for name in ("text", "text_mask")}
        return batch


def labels_of(cond: str, names: tuple[str, ...]) -> np.ndarray:
    """The classes that `--cond` asks for, by name or number; all of them where it is empty."""
    return images.labels_of(cond, names)
