"""The commands: the name, the help and the function of each.

A command is a function here and a YAML of its name. Its docstring is its help: the first line,
and the examples below it. Everything slow is imported where it is used.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMANDS: dict[str, Callable[..., None]] = {}
# commands after which report.html is written
REPORTED = ("train", "sample", "evaluate", "likelihood", "invert", "simulate")


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function of (cfg) or, if it writes, of (cfg, folder) a command of its name."""
    COMMANDS[function.__name__] = function
    return function


@command
def train(cfg: Any, folder: Path | None) -> None:
    """Fit a network to a data set along a path; resumable.

    fmdiff train
    fmdiff train model=unet data=mnist trainer.max_time=01:00:00 out=outputs/mnist
    fmdiff train resume=outputs/mnist trainer.max_steps=20000
    fmdiff train experiment=cifar10_cfm plan=true
    fmdiff train -m data=moons,rings optim.lr=1e-3,3e-4
    """
    if folder is None or cfg.plan:  # a further process of a plan has a folder
        from fmdiff.commands.plan import plan

        plan(cfg)
    else:
        from fmdiff.commands.train import train

        train(cfg, folder)


@command
def sample(cfg: Any, folder: Path | None) -> None:
    """Points or images from a checkpoint or from an exact field.

    fmdiff sample ckpt=last
    fmdiff sample ckpt=zoo:mnist
    fmdiff sample ckpt=outputs/mnist classes=[3,7] guidance=cfg guidance.w=2 n=100
    fmdiff sample model=exact data=gmm4 solver=euler steps=10
    fmdiff sample ckpt=last n=50000 plan=true
    """
    if folder is None or cfg.plan:  # a further process of a plan has a folder
        from fmdiff.commands.plan_sampling import plan

        plan(cfg)
    else:
        from fmdiff.commands.sample import sample

        sample(cfg, folder)


@command
def evaluate(cfg: Any, folder: Path) -> None:
    """Samples against real data by metrics, or a field against the exact one.

    fmdiff evaluate ckpt=last metrics=[fid] n=2000
    fmdiff evaluate samples=images.npz against=cifar10 metrics=[fid]
    fmdiff evaluate ckpt=last against=exact
    fmdiff evaluate model=empirical data=gmm4 against=exact
    """
    from fmdiff.commands.evaluate import evaluate

    evaluate(cfg, folder)


@command
def likelihood(cfg: Any, folder: Path) -> None:
    """log p(x) of real data, in nats and bits per dimension, by the ODE run backwards.

    fmdiff likelihood ckpt=last
    fmdiff likelihood ckpt=outputs/mnist n=256 probes=4 label=none
    fmdiff likelihood model=exact data=gmm4 solver=rk4 steps=50
    """
    from fmdiff.commands.likelihood import likelihood

    likelihood(cfg, folder)


@command
def invert(cfg: Any, folder: Path) -> None:
    """Real data to noise and back: round-trip errors, interpolation, inpainting, straightness.

    fmdiff invert ckpt=last
    fmdiff invert ckpt=outputs/mnist interpolate=8 'inpaint=[7,7,21,21]'
    fmdiff invert model=exact data=gmm4 'steps=[10,20,40]' 'solvers=[euler,rk4]' dtype=float64
    """
    from fmdiff.commands.invert import invert

    invert(cfg, folder)


@command
def simulate(cfg: Any, folder: Path) -> None:
    """Textbook systems step by step: errors, orders, random paths against theory.

    fmdiff simulate system=linear system.theta=2 system.x0=4 solver=euler steps=4
    fmdiff simulate system=linear steps=[4,10,50,100] solvers=[euler,heun]
    fmdiff simulate system=two_modes solver=euler_maruyama solver.diffusion=1 steps=100
    """
    from fmdiff.commands.simulate import simulate

    simulate(cfg, folder)


@command
def info(cfg: Any) -> None:
    """What a checkpoint holds; its weights for other programs.

    fmdiff info ckpt=last
    fmdiff info ckpt=last export=model.safetensors
    """
    from fmdiff.commands.info import info

    info(cfg)


@command
def zoo(cfg: Any) -> None:
    """The trained models that come with fmdiff: figures, recipes, checksums.

    fmdiff zoo
    fmdiff zoo name=mnist
    fmdiff sample ckpt=zoo:mnist guidance=cfg guidance.w=2
    """
    from fmdiff.commands.zoo import zoo_list

    zoo_list(cfg)


@command
def report(cfg: Any) -> None:
    """One page to look at, report.html: about a run, a sweep, or runs side by side.

    fmdiff report
    fmdiff report runs=outputs/mnist/2026-01-31_12-00-00
    fmdiff report runs=[outputs/a,outputs/b] out=compared.html
    """
    from fmdiff.report import report

    report(cfg)


@command
def page(cfg: Any) -> None:
    """One page to play with, page.html: a checkpoint, an exact field or a system, moving.

    fmdiff page
    fmdiff page ckpt=last
    fmdiff page model=exact data=8gaussians
    fmdiff page system=saddle scenes=[field] out=saddle.html
    """
    from fmdiff.commands.page import page

    page(cfg)
