"""Pictures of samples during training."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import pytorch as pl
from PIL import Image

from fmdiff import files
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.pictures import plots
from fmdiff.pictures.samples import captions, figure, in_pairs
from fmdiff.sampling import generate, preview_steps
from fmdiff.training.given import asked_of_data
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions
from fmdiff.training.trainer import Hooks, board

SHOWN = {"points": 2000, "series": 500}  # samples, and 64 images or arrays

log = logging.getLogger("fmdiff")


def draw(module: Training) -> Any:
    """A picture of samples of the averaged weights; of an autoencoder, of what it does."""
    if module.autoencodes:
        return reconstructions(module)
    field, user = module.field(), module.data.user
    n = SHOWN.get(field.kind, 64)
    field, classes = asked_of_data(field, module.data, n)
    steps = preview_steps(field)
    samples = generate(field, n, classes=classes, steps=steps, device=module.device)
    if field.kind == "images":
        y = captions(samples.y, module.data.names)
        return plots.grid(to_uint8(samples.x).numpy(), y)
    real = user.held_out(n)[0]
    real = real if user.codec is None else user.codec.decode(real)
    title = f"step {module.step}"
    return figure(field.kind, samples.x.numpy(), real.numpy(), title, user.codec)


@torch.no_grad()
def reconstructions(module: Training) -> Any:
    """Rows of held-out images, each above its reconstruction; or a scatter of both."""
    images = len(module.data.shape) == 3
    x = module.data.held_out(64 if images else 2000, module.device)[0]
    x_hat = module.field()(x)
    if not images:
        return plots.scatter(x_hat.cpu().numpy(), x.cpu().numpy(), title=f"step {module.step}")
    return in_pairs(x, x_hat)


class Pictures(Hooks):
    """Draws samples of the averaged weights from the same noise at intervals."""

    def __init__(self, folder: Path, options: TrainerOptions) -> None:
        self.folder, self.every = folder / "samples", options.picture_every
        self.last = options.max_steps

    def after_batch(self, trainer: pl.Trainer, module: Training) -> None:
        due = module.step % self.every == 0 or module.step == self.last
        if not (due and trainer.is_global_zero) or module.classifies:
            return
        try:
            self.show(trainer, module, draw(module))
        except (FmdiffError, OSError) as error:  # a failed picture must not end the run
            log.warning("no picture at step %d: %s", module.step, error)

    def show(self, trainer: pl.Trainer, module: Training, picture: Any) -> None:
        """Write a picture to samples/step_{step:07d}.png, and the same for TensorBoard."""
        files.make_folder(self.folder)
        plots.save(picture, self.folder / f"step_{module.step:07d}.png")
        writer = board(trainer)
        if writer is not None:
            drawn = picture if isinstance(picture, Image.Image) else plots.render(picture)
            pixels = np.asarray(drawn)
            writer.add_image("samples", pixels, module.step, dataformats="HWC")
