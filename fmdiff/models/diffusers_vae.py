"""The AutoencoderKL of the diffusers library as a codec; the library is an optional extra."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from fmdiff.errors import FmdiffError
from fmdiff.models.autoencoder import Latent
from fmdiff.models.network import integers

# the blocks that an AutoencoderKL is made of; other names could stand for any block of the library
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
SIZES = ("in_channels", "out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
WIDTHS = "block_out_channels"
MOST_LEVELS = 16
VAE = "fmdiff.models.diffusers_vae.DiffusersVAE"  # the _target_ of the class
# weights that were written before the library renamed them, and their names today
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def library() -> Any:
    """The class AutoencoderKL. Raises FmdiffError if diffusers is not installed."""
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise FmdiffError(
            "data.autoencoder=diffusers:FOLDER needs diffusers: pip install 'fmdiff[diffusers]'"
        ) from error
    return AutoencoderKL


def checked(config: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    """The keywords of a config.json that the class knows, each of the right kind.

    Raises FmdiffError for a kind that an AutoencoderKL does not have.
    """
    keys = {name: config[name] for name in known if name in config}
    for name, value in keys.items():
        right = isinstance(value, bool | int | float | str | None)
        if name in BLOCKS:
            right = isinstance(value, list) and {*map(str, value)} == {BLOCKS[name]}
        elif name in SIZES:
            right = type(value) is int and value >= 1
        elif name == WIDTHS:
            right = integers(value) and 1 <= len(value) <= MOST_LEVELS
        elif isinstance(value, list):
            right = all(isinstance(part, int | float) for part in value)
        if not right:
            raise FmdiffError(f"the config of an AutoencoderKL has {name}={value!r:.80}")
    return keys


class DiffusersVAE(Latent):
    """An AutoencoderKL for images of a shape (C, H, W), built of its config.json.

    Before `standardise` the latent is the library's: the mean of its posterior, without its
    scaling_factor. Raises FmdiffError for a config of another kind, for images of other channels
    or of sides that it cannot halve, and without the library.
    """

    def __init__(self, *, shape: Sequence[int], config: Mapping[str, Any]) -> None:
        kind = library()
        known = [name for name in inspect.signature(kind.__init__).parameters if name != "self"]
        keys = checked(config, known)
        widths, channels = keys.get(WIDTHS, [64]), keys.get("in_channels", 3)
        factor = 2 ** (len(widths) - 1)
        if len(shape) != 3 or shape[0] != channels or shape[1] % factor or shape[2] % factor:
            raise FmdiffError(
                f"data.autoencoder=diffusers:FOLDER takes images of {channels} channels with "
                f"sides divisible by {factor}, and those of data.of have shape {list(shape)}"
            )
        places = (shape[1] // factor, shape[2] // factor)
        super().__init__(shape, (keys.get("latent_channels", 4), *places))
        self.config = keys
        self.vae = kind(**keys)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        law = self.vae.encode(x).latent_dist
        return law.mean, law.logvar

    def reconstruct(self, z: Tensor) -> Tensor:
        x: Tensor = self.vae.decode(z).sample
        return x

    def spec(self) -> dict[str, Any]:
        return {"_target_": VAE, "shape": list(self.outer), "config": self.config}


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a file under the names that the module `vae` has today."""
    weights = {}
    for name, value in state.items():
        parts = name.split(".")
        if "attentions" in parts:
            parts = [RENAMED.get(part, part) for part in parts]
        weights[".".join(["vae", *parts])] = value
    return weights
