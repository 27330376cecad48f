"""A published motion model becomes a run that samples; and what is refused on the way."""

import json

import mdm_runs
import numpy as np
import pytest
from mdm_original import manifest, state_of
from relay_checkpoint import Tensor, write

import sample
from diffjax import convert, systems
from diffjax.systems.mdm import importing, published

ARGS = {
    "dataset": "humanml",
    "arch": "trans_enc",
    "latent_dim": 32,
    "layers": 1,
    "diffusion_steps": 4,
    "mask_frames": True,
    "use_ema": False,
    "cond_mask_prob": 0.1,
}
SHAPES = {
    "input_process.poseEmbedding.weight": (32, 263),
    "input_process.poseEmbedding.bias": (32,),
    "embed_timestep.time_embed.0.weight": (32, 32),
    "embed_timestep.time_embed.0.bias": (32,),
    "embed_timestep.time_embed.2.weight": (32, 32),
    "embed_timestep.time_embed.2.bias": (32,),
    "embed_text.weight": (32, 512),
    "embed_text.bias": (32,),
    "output_process.poseFinal.weight": (263, 32),
    "output_process.poseFinal.bias": (263,),
}
LAYER = {
    "self_attn.in_proj_weight": (96, 32),
    "self_attn.in_proj_bias": (96,),
    "self_attn.out_proj.weight": (32, 32),
    "self_attn.out_proj.bias": (32,),
    "linear1.weight": (1024, 32),
    "linear1.bias": (1024,),
    "linear2.weight": (32, 1024),
    "linear2.bias": (32,),
    **{f"norm{i}.{kind}": (32,) for i in (1, 2) for kind in ("weight", "bias")},
}


def state():
    """A state dict with the published names of a very small network."""
    shapes = SHAPES | {f"seqTransEncoder.layers.0.{n}": s for n, s in LAYER.items()}
    return state_of({n: [list(s), "float32"] for n, s in shapes.items()})


def put(folder, **more):
    """model000000004.pt with its args.json."""
    folder.mkdir(exist_ok=True)
    write(folder / "model000000004.pt", {n: Tensor(a) for n, a in state().items()})
    (folder / "args.json").write_text(json.dumps({**ARGS, **more}))
    return folder / "model000000004.pt"


@pytest.fixture
def stats(tmp_path):
    folder = tmp_path / "stats"
    folder.mkdir()
    np.save(folder / "Mean.npy", np.zeros(263, np.float32))
    np.save(folder / "Std.npy", np.ones(263, np.float32))
    return folder


def test_a_published_model_becomes_a_run(tmp_path, stats, capsys, monkeypatch):
    from diffjax.systems.mdm import conditions

    run = tmp_path / "run"
    words = [put(tmp_path / "model"), "--out", run, "--stats", stats, "--text", "clip"]
    assert convert.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "trans_enc" in said and "up to 196 frames of 263 numbers" in said
    system, config = systems.load(run)
    assert (config.text.folder, config.diffusion.steps) == ("clip", 4)
    assert (system.request.guidance, system.request.seconds) == (2.5, 6.0)
    # A frozen encoder's vectors, without its 150 MB.
    encoded = lambda folder, texts: (np.ones((len(texts), 1, 512)), np.ones((len(texts), 1), bool))
    monkeypatch.setattr(conditions, "_encoded", encoded)
    out = tmp_path / "out"
    flags = ["--workdir", run, "--cond", "a person walks", "--seconds", 0.5, "--out", out]
    assert sample.main([str(word) for word in flags]) == 0
    assert sorted(p.name for p in out.iterdir()) == ["000000.bvh", "000000.npz", "samples.gif"]


def test_without_an_encoder_there_is_a_line(tmp_path, stats, capsys):
    run = tmp_path / "run"
    words = [put(tmp_path / "model"), "--out", run, "--stats", stats]
    assert convert.main([str(word) for word in words]) == 0
    assert "give --text_folder" in mdm_runs.refused(
        capsys, sample.main, "--workdir", run, "--cond", "walk"
    )


def test_what_is_refused(tmp_path, stats, capsys):
    file = put(tmp_path / "model")
    said = lambda *words: mdm_runs.refused(capsys, convert.main, *words, "--out", tmp_path / "run")
    assert "give --stats FOLDER" in said(file)
    assert "leave out --config" in said(file, "--stats", stats, "--prefix", "x", "--system", "mdm")
    assert "Mean.npy" in said(file, "--stats", tmp_path)
    np.save(stats / "Mean.npy", np.zeros(251, np.float32))
    np.save(stats / "Std.npy", np.ones(251, np.float32))
    assert "of 251 features, the model of 263" in said(file, "--stats", stats)
    other = tmp_path / "weights.safetensors"
    other.write_bytes(b"\0" * 64)
    assert "--stats and --text are of MDM" in said(other, "--stats", stats)
    assert not (tmp_path / "run").exists()


def test_a_planner_needs_motions_to_go_on_from(tmp_path, stats, capsys):
    file = put(tmp_path / "model", context_len=20, pred_len=40)
    words = [file, "--stats", stats, "--out", tmp_path / "run"]
    assert "a planner goes on from frames" in mdm_runs.refused(capsys, convert.main, *words)


@pytest.mark.parametrize("tag", ["humanact12", "humanact12_unconstrained"])
def test_configs_of_the_published_actions(tag):
    free = tag.endswith("unconstrained")
    args = {**published.DEFAULTS, "dataset": "humanact12", "cond_mask_prob": 0.0}
    model = published.model_of(
        state_of(manifest("published")[tag]), {**args, "unconstrained": free}, tag
    )
    config = importing.config_of(model)
    assert config.conditioning == model.condition == ("none" if free else "action")
    assert config.sampling.guidance == 1.0 and not config.condition_dropout
    assert not config.network.mask_frames and config.diffusion.steps == 1000
