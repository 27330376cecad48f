"""DIAMOND's actor-critic: a policy and a value that share a convolutional and recurrent trunk.

Alonso et al. 2024, appendix, and the released code.
"""

import flax.linen as nn
import jax.numpy as jnp

from diffjax.nets.diamond_blocks import LSTM, SmallResBlock, State, conv, flatten, no_state, zeros

ATARI = {"lstm_dim": 512, "channels": (32, 32, 64, 64), "down": (True, True, True, True)}


class ActorCritic(nn.Module):
    """A frame and what was seen before it -> logits of the actions and a value.

    Attributes:
      num_actions: how many there are.
      lstm_dim: size of the recurrent state.
      channels: of the blocks.
      down: whether each block's output is halved in height and width, by maxima.
      dtype: compute type.
    """

    num_actions: int
    lstm_dim: int
    channels: tuple[int, ...]
    down: tuple[bool, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, obs, state: State | None = None):
        """Takes one step.

        Args:
          obs: frames in [-1, 1], [B, H, W, C].
          state: (h, c), float32 [B, lstm_dim] each, or None for the beginning.

        Returns:
          (logits float32 [B, num_actions], value float32 [B], state). All 0 at initialisation but
          the state: the first policy is uniform.
        """
        x = PolicyEncoder(self.channels, self.down, self.dtype, name="encoder")(obs)
        state = no_state(obs.shape[0], self.lstm_dim) if state is None else state
        h, state = LSTM(self.lstm_dim, self.dtype, name="lstm")(flatten(x)[:, None], state)
        head = lambda features, name: nn.Dense(features, kernel_init=zeros, name=name)(h[:, 0])
        return head(self.num_actions, "actor_linear"), head(1, "critic_linear")[:, 0], state


class PolicyEncoder(nn.Module):
    """obs [B, H, W, C] -> [B, H', W', channels[-1]]."""

    channels: tuple[int, ...]
    down: tuple[bool, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, obs):
        x = conv(obs.astype(self.dtype), self.channels[0], "encoder_0", self.dtype)
        at = 1  # the released code counts the poolings among its layers
        for channels, down in zip(self.channels, self.down):
            x = SmallResBlock(channels, self.dtype, name=f"encoder_{at}")(x)
            x = nn.max_pool(x, (2, 2), (2, 2)) if down else x
            at += 1 + down
        return x
