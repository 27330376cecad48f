"""The rival of a relay's second stage: a cascade, which starts from pure noise and is told.

The same network as the relay's but for its input channels, which also hold the small picture,
enlarged and with Gaussian noise of a level that is a channel too (Ho et al. 2022, "Cascaded
diffusion models": conditioning augmentation). EDM's objective and Heun's method.
"""

import dataclasses

import jax
import jax.numpy as jnp

from diffjax import nets
from diffjax.core import denoisers, grids, objectives, patches, processes, samplers
from diffjax.systems import images, relay

SIGMA_MAX_TOLD = 0.5  # of the noise on the small picture in training


@dataclasses.dataclass(frozen=True)
class Request:
    """What a call of the sampler is asked for."""

    steps: int = 18
    told_sigma: float = 0.1  # noise on the small picture
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    cond: str = ""


def make(config, assets: dict | None = None):
    """Returns the cascade on the data, network, classes and size of a relay stage's config.

    Its noise levels are `config.diffusion.cascade_mean` and `cascade_std`, EDM's p_mean and p_std.
    """
    stage = relay.make(config, assets)
    settings, shape = config.diffusion, tuple(stage.assets["data"]["image_shape"])
    null = len(stage.assets["data"]["class_names"])
    wide = (*shape[:2], 2 * shape[2] + 1)
    net = nets.make(config.network, channels=shape[-1], num_classes=null, shape=shape)
    objective = objectives.edm(settings.cascade_mean, settings.cascade_std, settings.sigma_data)
    coefficients = denoisers.edm_coefficients(settings.sigma_data)
    process = processes.edm()

    def told(small, sigma, noise):
        """The channels beside x: the small picture, enlarged and noised, and the noise's level."""
        large = jax.image.resize(small, (len(small), *shape), "cubic") + sigma * noise
        return jnp.concatenate([large, jnp.broadcast_to(sigma, (*large.shape[:3], 1))], -1)

    def denoiser(params, x, t, label, beside):
        def network(x, c_noise, label):
            c_noise = jnp.broadcast_to(c_noise.reshape(-1), x.shape[:1])
            x = jnp.concatenate([x, beside], -1)
            return net.apply({"params": params}, x, c_noise, label)

        return denoisers.preconditioned(network, coefficients)(x, t, label)

    def loss(params, batch, key):
        rows = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        keys = jax.vmap(lambda k: jax.random.split(k, 5))(rows)
        each = lambda draw, i: jax.vmap(draw)(keys[:, i])
        normal = lambda k: jax.random.normal(k, shape)
        t = objective.time(each(lambda k: jax.random.normal(k, (1, 1, 1)), 0))
        sigma = SIGMA_MAX_TOLD * each(lambda k: jax.random.uniform(k, (1, 1, 1)), 3)
        label = batch["label"]
        label = jnp.where(each(jax.random.uniform, 4) < settings.label_dropout, null, label)
        x0 = images.to_float(batch["image"])
        small = patches.means(x0, settings.patch)
        beside = told(small, sigma, each(normal, 2))
        denoise = lambda x, t: denoiser(params, x, t, label, beside)
        return jnp.mean(objectives.loss(objective, process, denoise, x0, t, each(normal, 1))), {}

    def pixels(params, keys, given, request: Request):
        label, small = given
        params = nets.rounded(config.network, params)
        grid = grids.karras(request.steps, request.sigma_min, request.sigma_max, request.rho)
        normal = samplers.draws(keys, shape, process)
        beside = told(small, jnp.float32(request.told_sigma), normal(1))
        denoise = lambda x, t: denoiser(params, x, t, label, beside)
        return samplers.ode(denoise, process, grid, normal(0) * grid[0].astype("float32"))

    def sample(params, keys, given, request: Request):
        image = images.to_uint8(pixels(params, keys, given, request))
        return {"image": image, "label": given[0]}

    def condition(request, index):
        return stage.condition(stage.request, index)

    start = dataclasses.replace(
        stage.start, pictures=lambda request: stage.start.pictures(stage.request)
    )
    return dataclasses.replace(
        stage, init=images.initialiser(net, wide), loss=loss, request=Request(),
        condition=condition, sample=sample, pixels=pixels, start=start, process=process,
        denoiser=None,
    )  # fmt: skip
