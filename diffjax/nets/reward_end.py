"""DIAMOND's reward and end model: what a step paid, and whether it was the last one.

Alonso et al. 2024, section 3.2, and the released code.
"""

import flax.linen as nn
import jax.numpy as jnp

from diffjax.nets.diamond_blocks import (
    LSTM,
    Downsample,
    ResBlocks,
    State,
    conv,
    flatten,
    linear,
    no_state,
)

ATARI = {
    "lstm_dim": 512,
    "cond_channels": 128,
    "depths": (2, 2, 2, 2),
    "channels": (32, 32, 32, 32),
    "attention": (False, False, False, False),
}
REWARDS, ENDS = 3, 2  # classes: -1, 0, +1; alive, dead


class RewardEnd(nn.Module):
    """(frame, action, next frame) -> logits of the reward's sign and of the end.

    Attributes:
      num_actions: how many there are.
      lstm_dim: size of the recurrent state.
      cond_channels: numbers that an action is embedded in.
      depths, channels, attention: of the levels; a pair of blocks with attention comes after them.
      dtype: compute type.
    """

    num_actions: int
    lstm_dim: int
    cond_channels: int
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, obs, act, next_obs, state: State | None = None):
        """Runs T transitions.

        Args:
          obs, next_obs: frames in [-1, 1], [B, T, H, W, C].
          act: int [B, T].
          state: of the LSTM, or None for the beginning.

        Returns:
          (reward logits float32 [B, T, 3], end logits float32 [B, T, 2], state).
        """
        batch, steps = act.shape
        init = nn.initializers.normal(1.0)
        told = nn.Embed(self.num_actions, self.cond_channels, embedding_init=init, name="act_emb")(
            act.reshape(-1)
        )
        x = jnp.concatenate([obs, next_obs], -1)
        x = x.reshape(-1, *x.shape[2:]).astype(self.dtype)
        levels = (self.depths, self.channels, self.attention)
        x = Encoder(*levels, self.dtype, name="encoder")(x, told)
        x = flatten(x).reshape(batch, steps, -1)
        state = no_state(batch, self.lstm_dim) if state is None else state
        x, state = LSTM(self.lstm_dim, self.dtype, name="lstm")(x, state)
        x = nn.silu(linear(self.lstm_dim, self.lstm_dim, "head_0")(x))
        x = linear(REWARDS + ENDS, self.lstm_dim, "head_2", bias=False)(x)
        return x[..., :REWARDS], x[..., REWARDS:], state


class Encoder(nn.Module):
    """x [N, H, W, C], told float32 [N, E] -> [N, H', W', channels[-1]]."""

    depths: tuple[int, ...]
    channels: tuple[int, ...]
    attention: tuple[bool, ...]
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x, told):
        x = conv(x, self.channels[0], "conv_in", self.dtype)
        last = len(self.channels)
        for i, (depth, channels) in enumerate(zip(self.depths, self.channels)):
            if i:
                x = Downsample(self.dtype, name=f"downsamples_{i}")(x)
            blocks = ((channels,) * depth, self.attention[i], self.dtype)
            x = ResBlocks(*blocks, name=f"blocks_{i}")(x, told)[-1]
        blocks = ((self.channels[-1],) * 2, True, self.dtype)
        return ResBlocks(*blocks, name=f"blocks_{last}")(x, told)[-1]
