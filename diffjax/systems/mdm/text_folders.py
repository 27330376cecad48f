"""Released text encoders from a folder: CLIP's text tower or DistilBERT, with their tokeniser.

The folder is one that a hub gives: `model.safetensors` (or `pytorch_model.bin`), `config.json` and
`tokenizer.json`. Of CLIP it may have OpenAI's names instead, and then no `config.json`. Nothing is
downloaded, and nothing in it is executed.
"""

import re
from pathlib import Path

import jax
import numpy as np
from jax import ShapeDtypeStruct

from diffjax.errors import UserError, choose
from diffjax.nets import text, tokenizers
from diffjax.nets.clip_text import ACTIVATIONS, ClipText
from diffjax.nets.distilbert import DistilBert
from diffjax.systems.mdm import published
from diffjax.weights import reading, trees

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
LARGEST_CONFIG, LARGEST_TOKENIZER = 1 << 20, 1 << 26  # bytes
LARGEST = 1 << 16  # of heads

# Parts of a released file that are not of the text's network.
NOT_CLIP = re.compile(
    r"visual\.|vision_model\.|visual_projection\.|logit_scale$|text_model\.embeddings\.position_ids$"
    r"|input_resolution$|context_length$|vocab_size$"
)
NOT_BERT = re.compile(
    r"vocab_(transform|layer_norm|projector)\.|(pre_)?classifier\.|qa_outputs\.|embeddings\.position_ids$"
)
# The hub's names of CLIP -> OpenAI's.
CLIP_NAMES = (
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.encoder\.layers\.(\d+)\.self_attn\.", r"transformer.resblocks.\1.attn."),
    (r"^text_model\.encoder\.layers\.(\d+)\.layer_norm", r"transformer.resblocks.\1.ln_"),
    (r"^text_model\.encoder\.layers\.(\d+)\.mlp\.fc1\.", r"transformer.resblocks.\1.mlp.c_fc."),
    (r"^text_model\.encoder\.layers\.(\d+)\.mlp\.fc2\.", r"transformer.resblocks.\1.mlp.c_proj."),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
)
CLIP_TYPES = ("clip", "clip_text_model")
TYPES = (*CLIP_TYPES, "distilbert")


def load(folder: str | Path, context: int = text.CONTEXT) -> text.TextEncoder:
    """Makes the encoder of a folder.

    Args:
      folder: see above.
      context: tokens of a text that CLIP reads, see `nets.text.clip`.

    Raises:
      UserError: a file is missing or broken, or of another network.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of a text encoder")
    found = [folder / name for name in WEIGHTS if (folder / name).is_file()]
    if not found:
        raise UserError(f"{folder}: no {' and no '.join(WEIGHTS)} in it")
    state, where = reading.read_weights(found[0]), str(found[0])
    config = {"model_type": "clip"}
    if "positional_embedding" not in state or (folder / "config.json").is_file():
        config = published.read_object(folder / "config.json", LARGEST_CONFIG)
    kind = config.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{folder / 'config.json'}: no 'model_type'")
    choose(kind, dict.fromkeys(TYPES), f"model_type in {folder / 'config.json'}:")
    file = folder / "tokenizer.json"
    tokenizer = tokenizers.from_json(published.read_object(file, LARGEST_TOKENIZER), str(file))
    if kind in CLIP_TYPES:
        if tokenizer.end != tokenizer.size - 1:  # the tower finds a text's end by its id
            raise UserError(f"{file}: its end, {tokenizer.end}, is not the last of its tokens")
        net, params = clip_of(state, config.get("text_config", config), where)
        encoder = text.clip(net, params, tokenizer, min(context, net.length))
    else:
        net, params = distilbert_of(state, config, where)
        encoder = text.distilbert(net, params, tokenizer)
    if tokenizer.size > net.vocabulary:
        raise UserError(
            f"{file}: {tokenizer.size} tokens, of which the network knows {net.vocabulary}"
        )
    return encoder


def clip_of(state: dict[str, np.ndarray], config, where: str) -> tuple[ClipText, dict]:
    """Returns CLIP's text tower and its weights.

    Args:
      state: {name: array}, OpenAI's names or the hub's; of the whole of CLIP too.
      config: the hub's, of the text; where it is silent, OpenAI's rules.
      where: the file, for messages.

    Raises:
      UserError: weights that are not those of such a tower.
    """
    params = published.to_params(_openai(state, where), where)
    shape = lambda name, axis: _size(params, name, axis, where)
    width = shape("token_embedding/embedding", 1)
    heads = _heads(config, "num_attention_heads", width // 64 or 1, width, where)
    activation = config.get("hidden_act", "quick_gelu") if isinstance(config, dict) else None
    if not isinstance(activation, str):
        raise UserError(f"{where}: its config.json is not of CLIP's text")
    choose(activation, ACTIVATIONS, f"hidden_act beside {where}:")
    net = ClipText(
        *(shape("token_embedding/embedding", 0), shape("positional_embedding", 0), width),
        *(_layers(params, "transformer/resblocks"), heads),
        *(shape("transformer/resblocks/0/mlp/c_fc/kernel", 1), shape("text_projection", 1)),
        activation,
    )
    return net, _fitted(net, params, where)


def _openai(state: dict[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """A state dict of CLIP's text under OpenAI's names."""
    renamed, split = {}, {}
    for name, array in state.items():
        if NOT_CLIP.match(name):
            continue
        for old, new in CLIP_NAMES:
            name = re.sub(old, new, name)
        if match := re.fullmatch(r"(.*\.attn\.)([qkv])_proj\.(weight|bias)", name):
            split.setdefault(f"{match[1]}in_proj_{match[3]}", {})[match[2]] = array
        elif name == "text_projection.weight":  # a linear layer's, [out, in]
            renamed["text_projection"] = array.T
        else:
            renamed[name] = array
    for name, parts in split.items():
        if {*parts} != {*"qkv"} or len({a.shape for a in parts.values()}) > 1:
            raise UserError(f"{where}: no q, k and v of one shape for {name!r}")
        renamed[name] = np.concatenate([parts[part] for part in "qkv"])
    return renamed


def distilbert_of(state: dict[str, np.ndarray], config: dict, where: str):
    """Returns (`DistilBert`, its weights) of the hub's weights and config.json.

    Raises:
      UserError: weights that are not those of such a network.
    """
    names = {name.removeprefix("distilbert."): a for name, a in state.items()}
    params = published.to_params({n: a for n, a in names.items() if not NOT_BERT.match(n)}, where)
    shape = lambda name, axis: _size(params, name, axis, where)
    if config.get("activation", "gelu") != "gelu":
        raise UserError(f"{where}: its hidden layers are not GELU's, by its config.json")
    words = "embeddings/word_embeddings/embedding"
    width = shape(words, 1)
    net = DistilBert(
        *(shape(words, 0), shape("embeddings/position_embeddings/embedding", 0), width),
        _layers(params, "transformer/layer"),
        _heads(config, "n_heads", 12, width, where),
        shape("transformer/layer/0/ffn/lin1/kernel", 1),
    )
    return net, _fitted(net, params, where, ShapeDtypeStruct((1, 1), bool))


def _fitted(net, params: dict[str, np.ndarray], where: str, *more) -> dict:
    ids = ShapeDtypeStruct((1, 1), np.int32)
    like = jax.eval_shape(net.init, jax.random.key(0), ids, *more)["params"]
    return trees.fit(params, like, where)


def _layers(params: dict[str, np.ndarray], prefix: str) -> int:
    return len({path.split("/")[2] for path in params if path.startswith(prefix + "/")})


def _size(params: dict[str, np.ndarray], name: str, axis: int, where: str) -> int:
    if name not in params or params[name].ndim != 2:
        raise UserError(f"{where}: no weights named {name!r}")
    return params[name].shape[axis]


def _heads(config, name: str, default: int, width: int, where: str) -> int:
    heads = config.get(name, default) if isinstance(config, dict) else None
    if type(heads) is not int or not 0 < heads <= LARGEST or width % heads:
        raise UserError(f"{where}: its config.json says {name} {ascii(heads)[:60]}, width {width}")
    return heads
