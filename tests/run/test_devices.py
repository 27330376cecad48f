"""How programs of many small kernels are compiled."""

import jax
import jax.numpy as jnp
import pytest

from diffjax.run import devices


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)


def test_calls_are_recorded_on_a_gpu_alone(on_a_gpu, monkeypatch):
    assert devices.captured() == devices.CAPTURED
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    assert devices.captured() is None


def test_what_xla_flags_say_goes_first(on_a_gpu, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_autotune_level=0")
    assert devices.captured() == devices.CAPTURED
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=FUSION")
    assert devices.captured() is None


def test_cudnn_is_opened_before_anything_is_recorded(on_a_gpu, monkeypatch):
    """By a convolution that is itself not recorded."""
    seen, jit = [], jax.jit

    def watched(function, **options):
        seen.append(options["compiler_options"])
        return jit(function, **options)

    monkeypatch.setattr(jax, "jit", watched)
    devices._open_cudnn.__wrapped__()
    (options,) = seen
    kinds = options["xla_gpu_enable_command_buffer"].split(",")
    assert not {"CUDNN", "CONVOLUTION", "CUSTOM_CALL"} & set(kinds)


def test_xla_knows_the_options():
    """Any platform's compiler refuses names and values that it does not know."""
    doubled = jax.jit(lambda x: 2 * x, compiler_options=devices.CAPTURED)
    assert doubled(jnp.float32(2)) == 4
    for wrong in ({"xla_gpu_no_such_option": 1}, {"xla_gpu_enable_command_buffer": "NOTHING"}):
        with pytest.raises(Exception, match="No such|not a valid"):
            jax.jit(lambda x: 3 * x, compiler_options=wrong)(jnp.float32(2))
