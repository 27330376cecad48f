"""The recurrent network of MDM, and the evaluators, against the released code's arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mdm_original import TINY, drawn, load, manifest, ours, params_of, theirs

from diffjax.nets.motion_evaluators import ActionClassifier, MovementEncoder, SequenceEncoder
from diffjax.nets.motion_gru import GRU, MotionGRU
from diffjax.systems.mdm import published
from diffjax.weights import trees

SETTINGS = {k: TINY[k] for k in ("width", "layers", "dropout")}


def test_over_frames(near):
    g = load("nets")
    net = MotionGRU(13, **SETTINGS)
    tokens = g["text_embed"].swapaxes(0, 1)
    args = (ours(g["x"]), g["t"], (tokens, np.ones(tokens.shape[:2], bool)))
    params = params_of(manifest("tiny")["gru_text"])
    apply = jax.jit(net.apply, static_argnames="capture_intermediates")
    out, state = apply({"params": params}, *args, capture_intermediates=True)
    near(theirs(out, g["x"]), g["gru_text_overtime_cond"], 2e-5)
    inside = state["intermediates"]["Dropout_0"]["__call__"][0]
    near(np.swapaxes(inside, 0, 1), g["gru_text_int_seq"], 2e-5)
    # The first frames of a longer motion, and after a prefix, are the same.
    got = apply({"params": params}, args[0][:, 5:], *args[1:], prefix=args[0][:, :5])
    near(got, out[:, 5:], 2e-6)


def test_states_stop_at_lengths():
    net = GRU(4, 2, bidirectional=True)
    x = jax.random.normal(jax.random.key(0), (2, 6, 3))
    lengths = jnp.asarray([4, 6])
    params = {"params": trees.unflatten(drawn(net, x, lengths))}
    _, last = jax.jit(net.apply)(params, x, lengths)
    out, alone = jax.jit(net.apply)(params, x[:1, :4])
    np.testing.assert_allclose(last[:, :1], alone, atol=1e-6)
    np.testing.assert_allclose(out[:, -1, :4], alone[2], atol=1e-6)
    np.testing.assert_allclose(out[:, 0, 4:], alone[3], atol=1e-6)


def run(net, tag, *args):
    params = params_of(manifest("tiny_evaluators")[tag])
    return jax.jit(net.apply)({"params": params}, *args)


def test_evaluators(near):
    g = load("evaluators")
    movements = run(MovementEncoder(16, 12), "movement_encoder", g["motions"])
    near(movements, g["movement_out"], 1e-5)
    got = run(SequenceEncoder(16, 10), "motion_encoder", movements, g["m_lens"] // 4)
    near(got, g["motion_emb"], 1e-5)
    words = (g["word_embs"], g["cap_lens"], g["pos_onehot"])
    near(run(SequenceEncoder(14, 10), "text_encoder", *words), g["text_emb"], 1e-5)


def test_action_classifier(near):
    g = load("evaluators")
    net = ActionClassifier(hidden=16)
    args = (ours(g["a2m_motion"]), g["a2m_lengths"], g["a2m_h0"])
    features, logits = run(net, "a2m_classifier", *args)
    near(features, g["a2m_feats"], 1e-5)
    near(logits, g["a2m_logits"], 1e-5)


EVALUATORS = {
    "movement_encoder": (MovementEncoder(), lambda n: (jnp.zeros((1, 8, n)),)),
    "motion_encoder": (SequenceEncoder(), lambda n: (jnp.zeros((1, 2, 512)), ONE)),
    "text_encoder": (
        SequenceEncoder(512),
        lambda n: (jnp.zeros((1, 2, 300)), ONE, jnp.zeros((1, 2, 15))),
    ),
}
ONE = jnp.ones(1, int)


def check_names(net, shapes, *args):
    like = jax.eval_shape(net.init, jax.random.key(0), *args)["params"]
    state = {name: np.broadcast_to(np.float32(0), shape) for name, (shape, _) in shapes.items()}
    trees.check(published.to_params(state, "golden"), like, "golden")


@pytest.mark.parametrize(("data", "features"), [("t2m", 263), ("kit", 251)])
def test_published_sizes(data, features):
    for name, (net, args) in EVALUATORS.items():
        check_names(net, manifest("evaluators")[data][name], *args(features))


def test_published_size_of_the_action_classifier():
    args = (jnp.zeros((1, 4, 72)), ONE, jnp.zeros((2, 1, 128)))
    check_names(ActionClassifier(), manifest("evaluators")["humanact12_gru_classifier"], *args)
