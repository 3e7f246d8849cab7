"""Pictures of samples during training."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
from lightning import pytorch as pl

from fmdiff import files
from fmdiff.data.images import to_uint8
from fmdiff.errors import FmdiffError
from fmdiff.pictures import plots
from fmdiff.pictures.samples import captions
from fmdiff.sampling import generate, preview_steps
from fmdiff.training.module import Training
from fmdiff.training.options import TrainerOptions
from fmdiff.training.trainer import Hooks, board

log = logging.getLogger("fmdiff")


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
            self.picture(trainer, module)
        except (FmdiffError, OSError) as error:  # a failed picture must not end the run
            log.warning("no picture at step %d: %s", module.step, error)

    def picture(self, trainer: pl.Trainer, module: Training) -> None:
        """Draw samples/step_{step:07d}.png, and the same for TensorBoard."""
        images = len(module.data.shape) == 3
        field, n = module.field(), 64 if images else 2000
        samples = generate(field, n, steps=preview_steps(field), device=module.device)
        if images:
            y = captions(samples.y, module.data.names)
            picture: Any = plots.grid(to_uint8(samples.x).numpy(), y)
        else:
            real = module.data.held_out(2000)[0].numpy()
            picture = plots.scatter(samples.x.numpy(), real, title=f"step {module.step}")
        files.make_folder(self.folder)
        plots.save(picture, self.folder / f"step_{module.step:07d}.png")
        writer = board(trainer)
        if writer is not None:
            pixels = np.asarray(picture if images else plots.render(picture))
            writer.add_image("samples", pixels, module.step, dataformats="HWC")
