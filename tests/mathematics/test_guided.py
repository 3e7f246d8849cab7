"""Adaptive projected guidance and CFG-Zero*, against the papers' formulas in NumPy."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import MEANS, WEIGHTS, every_path
from torch import nn

from fmdiff import log_prob
from fmdiff.build import config_folder, named
from fmdiff.condition import Condition
from fmdiff.custom import Strength
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture, exact
from fmdiff.field import NetField
from fmdiff.guidance import APG, CFG, CFGZero
from fmdiff.guided import Scaled
from fmdiff.integration import plan
from fmdiff.path import VP, CondOT
from fmdiff.sampling import generate, view
from fmdiff.solvers.jump import Jump
from fmdiff.solvers.runge_kutta import RK4

STD = 0.6
Y = torch.tensor([0, 1, 2] * 3)
KINDS = ("x", "eps", "v", "score", "straight")
F64 = {"dtype": torch.float64}
# without those of maps, and of a fit
SOLVERS = sorted({p.stem for p in (config_folder() / "solver").glob("*")} - {"jump", "fitted"})
# solvers that never ask at a time again
FORWARD = ("adams", "deis", "dpm_2", "dpmpp_2m", "dpmpp_3m", "euler", "midpoint", "unipc")


def mixture(path):
    covs = STD**2 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    return Mixture(path, WEIGHTS, MEANS, covs, torch.arange(3))


def at(path, t, n=9):
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor(t, dtype=torch.float64)
    return path.mix(MEANS.repeat(n // 3, 1) + STD * x, eps, t), t


def branches(field, x_t, t, kind):
    """The two branches in NumPy, asked one by one."""
    null = torch.full_like(Y, field.classes)
    return [field.bind(y).predict(x_t, t, kind).numpy() for y in (null, Y)]


def projected(guide, conditional, w, eta, threshold):
    """Algorithm 1 of the paper for one sample, in any shape."""
    d = conditional - guide
    if threshold is not None:
        d = d * min(1.0, threshold / np.linalg.norm(d.ravel()))
    along = np.vdot(d, conditional) / np.vdot(conditional, conditional) * conditional
    return conditional + (w - 1) * ((d - along) + eta * along)


class Answers(nn.Module):
    """A network of images with classes."""

    def forward(self, x_t, t, y):
        label = 0 if y is None else 0.3 * y.view(-1, *[1] * (x_t.ndim - 1))
        return torch.sin(3 * x_t + label)


def network(prediction="v", path=None):
    return NetField(Answers(), path or CondOT(), prediction, 0.5, 1e-5, (1, 4, 4), 3)


# --- adaptive projected guidance ------------------------------------------------------------


@every_path
@pytest.mark.parametrize(("eta", "threshold"), [(0.0, None), (0.4, 0.3), (-1.0, 1e-3), (1.0, 9.0)])
def test_the_estimate_of_x_is_that_of_the_algorithm(path, eta, threshold):
    field = mixture(path)
    for time in (0.15, 0.6, 0.9):
        x_t, t = at(path, time)
        guided = APG(3.0, eta, threshold)(field, Y)
        rows = zip(*branches(field, x_t, t, "x"), strict=True)
        wanted = torch.tensor(np.stack([projected(*row, 3.0, eta, threshold) for row in rows]))
        for kind in KINDS:
            answer = path.convert(wanted, x_t, t, "x", kind)
            torch.testing.assert_close(guided.predict(x_t, t, kind), answer, rtol=1e-6, atol=1e-6)


def test_projection_by_hand():
    """D = (3, 4), d = (2, 1): parallel (6/5, 8/5), orthogonal (4/5, -3/5), |d| = sqrt 5."""

    class Field(Mixture):
        def predict(self, x_t, t, kind, s=None):
            x = torch.tensor([[1.0, 3.0], [3.0, 4.0]]).double()
            return self.path.convert(x, x_t, t, "x", kind)

    field = mixture(CondOT())
    field.__class__ = Field
    x_t, t = torch.zeros(1, 2).double(), torch.tensor(0.5).double()

    def x(**keys):
        return APG(3.0, **keys)(field, Y[:1]).predict(x_t, t, "x")[0].tolist()

    assert x() == pytest.approx([4.6, 2.8])
    assert x(eta=0.5) == pytest.approx([5.8, 4.4])
    assert x(eta=1) == pytest.approx([7, 6])
    root = math.sqrt(5)
    assert x(threshold=1.0) == pytest.approx([3 + 1.6 / root, 4 - 1.2 / root])
    assert x(eta=1, threshold=1.0) == pytest.approx([3 + 4 / root, 4 + 2 / root])


def test_orthogonal_changes_leave_the_length_along_the_estimate():
    """<x, D> = |D|^2 for eta = 0, in images as well; with eta it changes by that share."""
    field, t = network(), torch.tensor(0.4).double()
    x_t = torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    guide, conditional = (torch.tensor(part) for part in branches(field, x_t, t, "x"))

    def along(x):
        return (x * conditional).flatten(1).sum(1)

    for eta in (0.0, 0.25):
        x = APG(5.0, eta)(field, Y).predict(x_t, t, "x")
        wanted = along(conditional + 4 * eta * (conditional - guide))
        torch.testing.assert_close(along(x), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("keys", [{}, {"interval": [0.1, 0.7]}], ids=str)
def test_apg_without_its_parts_is_cfg(keys):
    for field in (network(), network("x"), network("eps", VP())):
        apg, cfg = (
            generate(field, 6, solver="heun", steps=7, guidance=rule, **F64)
            for rule in (APG("1+3*r", eta=1, **keys), CFG("1+3*r", **keys))
        )
        torch.testing.assert_close(apg.x, cfg.x, rtol=1e-4, atol=1e-5)
        assert apg.nfe_counted == cfg.nfe_counted and torch.equal(apg.plan.times, cfg.plan.times)


def test_an_estimate_of_0_has_no_direction():
    """Two classes at +-m without a label have the mean 0; the class 1 is at 0 here."""
    means = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).double()
    covs = STD**2 * torch.eye(2).double().expand(2, 2, 2)
    field = Mixture(CondOT(), torch.ones(2).double() / 2, means, covs, torch.arange(2))
    x_t, t = torch.ones(1, 2).double(), torch.tensor(0.0).double()
    x = APG(3.0)(field, torch.tensor([1])).predict(x_t, t, "x")
    torch.testing.assert_close(x, torch.tensor([[-2.0, 0.0]]).double())  # 0 + 2 (0 - (1, 0))


def test_one_jump_of_a_flow_map_joins_the_ends():
    """The estimates of x of a jump from noise to data are the ends of the two exact flows."""
    field, eps = mixture(CondOT()), torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.5, 2.0]]).double()
    how = {"solver": Jump(noise=0.0), "steps": 1, "guidance": APG(3.0, 0.2, 0.5), **F64}
    x = generate(field, eps=eps, **how).x
    zero, one = torch.tensor(0.0).double(), torch.tensor(1.0).double()
    y = torch.arange(3)
    ends = [field.bind(each).flow(eps, zero, one).numpy() for each in (torch.full_like(y, 3), y)]
    wanted = np.stack([projected(*row, 3.0, 0.2, 0.5) for row in zip(*ends, strict=True)])
    assert x.numpy() == pytest.approx(wanted, abs=1e-5)
    with pytest.raises(FmdiffError, match="guidance=cfg_zero scales a velocity at one time"):
        generate(field, eps=eps, **how | {"guidance": CFGZero(3.0)})


# --- momentum -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CondOT(), VP()], ids=["condot", "vp"])
def test_momentum_is_that_of_the_algorithm(path):
    """An Euler loop in straight coordinates with the paper's buffer, in NumPy."""
    field, steps, w, eta, threshold, beta = mixture(path), 9, 4.0, 0.3, 0.8, -0.6
    rule = APG(w, eta, threshold, beta)
    made = generate(field, 6, solver="euler", steps=steps, guidance=rule, trajectory=True, **F64)
    states, times = made.trajectory
    straight = mixture(CondOT())
    z, total, y = states[0].double(), 0.0, torch.arange(6) % 3
    for r, q in pairwise(times):
        null = straight.bind(torch.full_like(y, 3)).predict(z, r, "x").numpy()
        x = straight.bind(y).predict(z, r, "x").numpy()
        total = (x - null) + beta * total
        rows = zip(x - total, x, strict=True)
        x = torch.tensor(np.stack([projected(*row, w, eta, threshold) for row in rows]))
        z = z + (q - r) * (x - z) / (1 - r) if q < 1 else x
    torch.testing.assert_close(made.x.double(), z, rtol=1e-5, atol=1e-5)
    plain = generate(field, 6, solver="euler", steps=steps, guidance=APG(w, eta, threshold), **F64)
    assert (plain.x - made.x).abs().max() > 0.01


def test_momentum_is_in_many_steps_a_smaller_w():
    field, beta = mixture(CondOT()), -0.5
    far, near = (
        generate(
            field, 6, solver="euler", steps=steps, guidance=APG(3.0, 1.0, None, beta), **F64
        ).x
        for steps in (20, 300)
    )
    limit = generate(field, 6, solver="euler", steps=300, guidance=CFG(1 + 2 / 1.5), **F64).x
    assert (near - limit).abs().max() < 0.2 * (far - limit).abs().max()


def test_batches_do_not_share_their_momentum():
    rule, how = APG(3.0, momentum=-0.5), {"solver": "adams", "steps": 6}
    whole, parts = (generate(network(), 6, guidance=rule, **how, batch_size=b).x for b in (6, 2))
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-5)
    field = rule(mixture(CondOT()), Y)
    x_t, t = at(CondOT(), 0.3)
    first = field(x_t, t)
    field.reset()
    assert torch.equal(field(x_t, t), first)


@pytest.mark.parametrize("solver", SOLVERS)
def test_momentum_needs_a_solver_that_asks_at_growing_times(solver):
    keys = {"rtol": 1e-2, "atol": 1e-2} if solver == "dopri5" else {}
    how = {"solver": named("solver", solver, **keys), "steps": 5}
    stochastic = how["solver"].stochastic
    try:
        made = generate(mixture(CondOT()), 3, guidance=APG(2.0, momentum=-0.5), **how)
    except FmdiffError as error:
        assert "asks at growing times: choose euler, adams" in str(error)
        assert solver not in FORWARD
    else:
        assert made.x.isfinite().all() and (solver in FORWARD or stochastic)


def test_momentum_has_no_way_back():
    field = mixture(CondOT())
    with pytest.raises(FmdiffError, match=r"momentum=-0\.5 adds up .* or guidance\.momentum=0"):
        log_prob(field, MEANS, Y[:3], guidance=APG(2.0, momentum=-0.5), solver="euler", steps=5)


# --- CFG-Zero* ------------------------------------------------------------------------------


@every_path
def test_the_guide_is_scaled_to_least_squares(path):
    field = mixture(path)
    for time in (0.15, 0.6, 0.9):
        x_t, t = at(path, time)
        guide, conditional = branches(field, x_t, t, "straight")
        wanted = []
        for u, v in zip(guide, conditional, strict=True):
            (s,), *_ = np.linalg.lstsq(u[:, None], v, rcond=None)
            wanted.append((1 - 2.5) * s * u + 2.5 * v)
        guided = CFGZero(2.5)(field, Y)
        for kind in KINDS:
            answer = path.convert(torch.tensor(np.stack(wanted)), x_t, t, "straight", kind)
            torch.testing.assert_close(guided.predict(x_t, t, kind), answer, rtol=1e-6, atol=1e-6)


def test_scale_by_hand():
    """v = (3, 4), u = (1, 3): s = 15/10, s u = (1.5, 4.5), v + 2 (v - s u) = (6, 3)."""
    guided = Scaled(mixture(CondOT()), Y[:1], Strength(3.0))
    u, v = torch.tensor([[1.0, 3.0]]).double(), torch.tensor([[3.0, 4.0]]).double()
    x_t, t = torch.zeros(1, 2).double(), torch.tensor(0.5).double()
    torch.testing.assert_close(guided.joined(u, v, x_t, t), torch.tensor([[6.0, 3.0]]).double())
    torch.testing.assert_close(guided.joined(0 * u, v, x_t, t), 3 * v)


@pytest.mark.parametrize("path", [CondOT(), VP()], ids=["condot", "vp"])
@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_zero_init_stands_still_for_the_first_steps(path, coordinates):
    """The paper's loop: N Euler steps of r, of which the velocity is 0 in the first K."""
    n, k, w = 20, 3, 2.0
    field, straight, y = mixture(path), mixture(CondOT()), torch.arange(4) % 3
    rule = CFGZero(w, zero=k / n)
    first = view(field.bind(y), "straight")
    lo = torch.tensor(first.interval()[0]).double()
    eps = torch.randn(4, 2, generator=torch.Generator().manual_seed(5)).double()
    z = first.start(eps, lo, 0, 0)
    for i in range(n):
        r = torch.tensor(i / n).double()
        u, v = (
            straight.bind(label).predict(z, r, "straight") for label in (torch.full_like(y, 3), y)
        )
        s = (u * v).sum(1, keepdim=True) / (u * u).sum(1, keepdim=True)
        z = z + ((1 - w) * s * u + w * v) / n * (i >= k)
    how = {"solver": "euler", "steps": n - k, "guidance": rule, "final": "solver", **F64}
    made = generate(field, eps=eps, **how, coordinates=coordinates)
    assert made.nfe_counted == 2 * (n - k)
    if coordinates == "straight" or isinstance(path, CondOT):
        torch.testing.assert_close(made.x.double(), z, rtol=1e-5, atol=1e-5)
    else:  # other Euler steps of the same ODE from the same start
        fine = how | {"solver": "rk4", "steps": 60}
        ends = [
            generate(field, eps=eps, **fine, coordinates=c).x for c in (coordinates, "straight")
        ]
        assert (ends[0] - ends[1]).abs().max() < 0.01


def test_a_law_that_begins_later_begins_there():
    guided = CFGZero(2.0, zero=0.1)(mixture(CondOT()), Y)
    eps, t = torch.ones(9, 2).double(), torch.tensor(0.5).double()
    truth = CFG(2.0)(mixture(CondOT()), Y).start(eps, t, 0, 0)
    assert torch.equal(guided.start(eps, t, 0, 0), truth)
    assert guided.interval("v") == pytest.approx((0.1, 1)) and guided.price(t) == 2


def test_the_prior_is_the_density_of_the_held_states():
    """A network on VP starts at rms(x_t) eps, here carried on to r = 0.2 in straight units."""
    path, field = VP(), network("v", VP())
    lo = torch.tensor(field.interval("straight")[0]).double()
    t = path.time_of_r(torch.tensor(0.2).double())
    size = (path.alpha(t) + path.beta(t)) / (path.alpha(lo) + path.beta(lo)) * field.rms("x_t", lo)
    guided = CFGZero(2.0, zero=0.2)(field, Y)
    z = torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(3)).double()
    wanted = torch.distributions.Normal(0.0, size).log_prob(z).flatten(1).sum(1)
    torch.testing.assert_close(guided.prior(z, t), wanted)
    torch.testing.assert_close(guided.start(z, t, 0, 0), size * z)


# --- both -----------------------------------------------------------------------------------

RULES = {
    "apg": APG(2.0, 0.2, 0.7),
    "cfg_zero": CFGZero("1+r", zero=0.1),
    "both": CFGZero(2.0, interval=[0.3, 0.6], on=["label"]),
    "part": APG(3.0, interval=[0.3, 0.6], on=["label"]),
}
RULED = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


@pytest.mark.parametrize("name", ["apg", "cfg_zero"])
def test_likelihood_is_that_of_the_guided_flow(name):
    """The density integrates to 1 on a grid of the plane, and samples have it as theirs."""
    field, rule = mixture(VP() if name == "cfg_zero" else CondOT()), RULES[name]
    side = torch.linspace(-7, 7, 36, dtype=torch.float64)
    x = torch.cartesian_prod(side, side)
    y = torch.zeros(len(x), dtype=torch.int64)
    density = log_prob(field, x, y, guidance=rule, solver="rk4", steps=24, **F64).exp()
    assert density.sum().item() * (side[1] - side[0]).item() ** 2 == pytest.approx(
        1, abs=0.02 if name == "apg" else 0.08
    )
    mean = (density[:, None] * x).sum(0) / density.sum()
    drawn = generate(field, 4000, classes=[0], guidance=rule, solver="adams", steps=20).x
    assert (drawn.mean(0) - mean).norm() < 0.1


@RULED
def test_rows_with_their_own_times_are_guided_alike(rule):
    field = rule(mixture(CondOT()), Y)
    t = torch.tensor([0.15, 0.35, 0.9, 0.5, 0.2, 0.6, 0.7, 0.4, 0.12], dtype=torch.float64)
    x_t, _ = at(CondOT(), 0.4)
    together = field(x_t, t)
    for k in range(9):
        alone = rule(mixture(CondOT()), Y[k : k + 1])(x_t[k : k + 1], t[k])
        torch.testing.assert_close(together[k : k + 1], alone, rtol=1e-10, atol=1e-10)


@RULED
def test_adaptive_and_fixed_steps_solve_the_same(rule):
    coarse = generate(mixture(CondOT()), 6, guidance=rule, solver="rk4", steps=60, **F64).x
    solver = named("solver", "dopri5", rtol=1e-4, atol=1e-4)
    fine = generate(mixture(CondOT()), 6, guidance=rule, solver=solver, **F64).x
    assert (coarse - fine).abs().max() < 0.03  # the ends of an interval are no smooth places


def test_conditions_that_are_no_classes():
    field = exact(named("data", "gmm_cond"), CondOT())
    y = Condition({"c": torch.full((4, 1), 0.7)})
    x_t, t = (
        torch.randn(4, 2, generator=torch.Generator().manual_seed(2)).double(),
        torch.tensor(0.5),
    )
    null = Condition({"c": torch.full((4, 1), torch.nan)})
    u, v = (field.bind(part).predict(x_t, t, "x").numpy() for part in (null, y))
    x = APG(2.0, on=["c"])(field, y).predict(x_t, t, "x").numpy()
    rows = zip(u, v, strict=True)
    assert x == pytest.approx(np.stack([projected(*row, 2.0, 0, None) for row in rows]))
    assert generate(field.given(c=0.7), 5, guidance=CFGZero(2.0), steps=4).x.isfinite().all()


def test_w_1_is_no_guidance():
    for rule in (APG(1.0, momentum=0.5), CFGZero(1, zero=0.2)):
        field = rule(mixture(CondOT()), Y)
        assert isinstance(field, Mixture) and field.interval()[0] == 0


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("rule", [RULES["part"], RULES["cfg_zero"]], ids=["apg", "cfg_zero"])
def test_plans_are_kept_by_every_solver(solver, rule):
    if solver == "dopri5":
        return
    for field in (network(), network("eps", VP())):
        made = generate(field, 3, solver=solver, steps=5, guidance=rule)
        assert made.x.isfinite().all() and made.nfe_counted == made.nfe_planned > 0


def test_a_budget_of_evaluations_buys_the_same_steps_as_with_cfg():
    for rule in (APG(2.0), CFGZero(2.0, zero=0.04)):
        assert plan(rule(network(), Y), RK4(), nfe=16).steps == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: APG(2.0, eta=math.inf), "guidance.eta=inf"),
        (lambda: APG(2.0, threshold=0), "guidance.threshold=0: a number > 0 or null"),
        (lambda: APG(2.0, momentum=1), "guidance.momentum=1: a number between -1 and 1"),
        (lambda: CFGZero(2.0, zero=1), "guidance.zero=1: a number from 0 to below 1"),
        (lambda: APG(2.0)(network(), None), "guidance=apg needs a model trained with classes"),
        (lambda: APG(2.0, on=["c"])(network(), Y), r"guidance.on=\[c\]: the conditions"),
    ],
)
def test_wrong_options_are_refused(make, says):
    with pytest.raises(FmdiffError, match=says):
        make()


@pytest.mark.parametrize("name", ["apg", "cfg_zero"])
def test_the_command_line_knows_them(command, capfd, name):
    data = ("model=exact", "data=gmm4", "data.conditional=true", "n=4", "device=cpu")
    words = (f"guidance={name}", "guidance.w=3", "solver=adams", "steps=4")
    assert command("sample", *data, *words, "out=samples") == 0
    assert f"8 evaluations each (guidance {name} included)" in capfd.readouterr().out
    wrong = "guidance.momentum=1" if name == "apg" else "guidance.zero=1"
    assert command("sample", *data, f"guidance={name}", wrong, "out=none") == 2
    assert f"{wrong}: must be a number" in capfd.readouterr().err
