"""What sample.py may ask of an autoencoder: which pictures it makes again, and from what."""

import dataclasses

from diffjax.systems.images import field


@dataclasses.dataclass(frozen=True)
class Request:
    """What one call is asked for; the defaults come from the run's config."""

    pictures: str = field("", "a folder, zip or .npz of pictures; empty: some that the run keeps")
    posterior: bool = field(False, "decode a sample of the posterior, not its mean")
