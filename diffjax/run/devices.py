"""Starting JAX: several processes, and a cache that makes the second run compile nothing."""

import functools
import os
import re
from pathlib import Path

import jax
import jax.numpy as jnp

from diffjax.errors import UserError

# What XLA records into CUDA graphs: what it would by itself, and convolutions, even one.
CAPTURED = {
    "xla_gpu_enable_command_buffer": "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONVOLUTION",
    "xla_gpu_graph_min_graph_size": 1,
}


def captured() -> dict | None:
    """The `compiler_options` of `jax.jit` for programs of many small kernels.

    On a GPU it takes longer to launch a small convolution than to compute it, and XLA does not
    record them into graphs by itself; elsewhere None, and where XLA_FLAGS already says what is
    recorded.
    """
    told = "xla_gpu_enable_command_buffer" in os.environ.get("XLA_FLAGS", "")
    if told or jax.default_backend() != "gpu":
        return None
    _open_cudnn()
    return CAPTURED


@functools.cache
def _open_cudnn() -> None:
    """One convolution on each device, not recorded.

    cuDNN cannot be opened while its calls are recorded, and nothing else has opened it where a
    program comes out of the compilation cache: the first call would fail with "No DNN support".
    """
    convolve = jax.jit(
        lambda x, kernel: jax.lax.conv(x, kernel, (1, 1), "SAME"),
        compiler_options={"xla_gpu_enable_command_buffer": "FUSION"},
    )
    for device in jax.local_devices():
        x = jax.device_put(jnp.ones((1, 8, 8, 8)), device)
        jax.block_until_ready(convolve(x, jax.device_put(jnp.ones((8, 8, 3, 3)), device)))


def cache_folder() -> Path:
    """Returns where things are kept that can be made again: XDG_CACHE_HOME/diffjax."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffjax"


def start(distributed: str = "") -> None:
    """Sets the compilation cache and joins the other processes. Call before any computation.

    Args:
      distributed: "" one process; "auto" what the cluster says (TPU pods, Slurm); or
        "HOST:PORT,PROCESSES,INDEX" by hand.

    Raises:
      UserError: for a malformed value, or where the platform asked for is not there.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    if distributed == "auto":
        try:
            jax.distributed.initialize()
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"--distributed auto: no cluster found ({str(error).splitlines()[0]}); on one "
                "machine leave the flag away, elsewhere give HOST:PORT,PROCESSES,INDEX"
            ) from error
    elif distributed:
        match = re.fullmatch(r"([^,]+:[0-9]{1,5}),([0-9]{1,6}),([0-9]{1,6})", distributed)
        if not match:
            raise UserError(f"--distributed {distributed}: 'auto' or HOST:PORT,PROCESSES,INDEX")
        address, count, index = match[1], int(match[2]), int(match[3])
        if index >= count:
            raise UserError(f"--distributed {distributed}: INDEX is from 0 to PROCESSES - 1")
        # The backend of collectives between CPU processes; other platforms bring their own.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(address, count, index)
    try:
        jax.devices()
    except RuntimeError as error:
        raise UserError(
            f"JAX finds no device: {str(error).splitlines()[0]} "
            "(set JAX_PLATFORMS=cpu, or install the cuda or tpu extra)"
        ) from error
