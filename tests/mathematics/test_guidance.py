"""Guidance against formulas that know nothing of it, and what it costs with every solver."""

import math

import pytest
import torch
from conftest import MEANS, WEIGHTS, every_path
from torch import nn

from fmdiff import load
from fmdiff.along import Along, Clipped, Straight, in_range
from fmdiff.build import config_folder, named
from fmdiff.custom import Strength
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.field import NetField
from fmdiff.guidance import CFG, Autoguidance, Unguided
from fmdiff.guided import Guided, Rescaled
from fmdiff.integration import plan
from fmdiff.loading import guidance
from fmdiff.path import VP, CondOT, Cosine
from fmdiff.runs import checkpoint
from fmdiff.runs.find import find
from fmdiff.sampling import generate, view

KINDS = ("x", "eps", "v", "score", "v_sh", "straight")
SOLVERS = sorted(file.stem for file in (config_folder() / "solver").glob("*.yaml"))
SOLVERS.remove("jump")  # of maps, in test_jump
SOLVERS.remove("fitted")  # to a model, in test_fitted_solver
STD = 0.6
Y = torch.tensor([0, 1, 2] * 3)


unguided = Unguided()


def cfg(field, y, w, **keys):
    return CFG(w, **keys)(field, y)


def mixture(path):
    covs = STD**2 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    return Mixture(path, WEIGHTS, MEANS, covs, torch.arange(3))


def at(path, t, n=9):
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    t = torch.tensor(t, dtype=torch.float64)
    return path.mix(MEANS.repeat(n // 3, 1) + STD * x, eps, t), t


def scores(path, x, t):
    """Of p_t and of p_t(. | y), by automatic differentiation of log densities written here."""
    a, b = path.alpha(t), path.beta(t)
    x = x.clone().requires_grad_()
    variance = a**2 * STD**2 + b**2
    log_p = -((x[:, None] - a * MEANS) ** 2).sum(-1) / (2 * variance)
    marginal = (log_p + WEIGHTS.log()).logsumexp(1).sum()
    conditional = log_p[torch.arange(len(x)), Y].sum()
    return [torch.autograd.grad(p, x, retain_graph=True)[0] for p in (marginal, conditional)]


class Answers(nn.Module):
    """A network of images with classes; `bias` makes another one of it."""

    def __init__(self, bias=0.0):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias), requires_grad=False)
        self.asked = []

    def forward(self, x_t, t, y):
        self.asked.append(len(x_t))
        label = 0 if y is None else 0.3 * y.view(-1, *[1] * (x_t.ndim - 1))
        return torch.sin(3 * x_t + label + self.bias)


def network(prediction="v", path=None, shape=(1, 4, 4), classes=3, net=None):
    return NetField(net or Answers(), path or CondOT(), prediction, 0.5, 1e-5, shape, classes)


def images(n=6, shape=(1, 4, 4)):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def by_formula(field, y, w, interval=None, phi=0.0):
    """The guided field of points too, which CFG refuses to rescale."""
    if phi:
        return Rescaled(field, y, Strength(w), phi, interval)
    return Guided(field, y, Strength(w), interval)


# --- classifier-free guidance ---------------------------------------------------------------


@every_path
@pytest.mark.parametrize("t", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_the_guided_score_is_that_of_the_tilted_density(path, t, w):
    """score = (1-w) grad log p_t + w grad log p_t(. | y), also in x, eps and v."""
    x_t, t = at(path, t)
    null, conditional = scores(path, x_t, t)
    wanted = (1 - w) * null + w * conditional
    guided = cfg(mixture(path), Y, w)
    torch.testing.assert_close(guided.predict(x_t, t, "score"), wanted, rtol=1e-8, atol=1e-8)
    for kind in KINDS:
        answer = path.convert(wanted, x_t, t, "score", kind)
        torch.testing.assert_close(guided.predict(x_t, t, kind), answer, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", [CondOT(), VP()], ids=["condot", "vp"])
@pytest.mark.parametrize("keys", [{}, {"interval": [0.1, 0.9]}, {"phi": 0.7}], ids=str)
def test_guidance_in_x_eps_v_and_score_gives_the_same_velocity(path, keys):
    """Networks that predict different quantities of one field are guided to one velocity."""

    class Knows(nn.Module):
        def __init__(self, prediction):
            super().__init__()
            self.prediction = prediction

        def forward(self, x_t, t, y):
            t = t / 1000
            field = network(self.prediction, path, (2,))
            x_t = x_t * field.rms("x_t", t[:, None])
            answer = mixture(path).bind(y).predict(x_t, t, self.prediction)
            return answer / field.rms(self.prediction, t[:, None])

    x_t, t = at(path, 0.6)
    wanted = by_formula(mixture(path), Y, 2.5, **keys)(x_t, t)
    for prediction in ("x", "eps", "v", "score"):
        guided = by_formula(network(prediction, path, (2,), net=Knows(prediction)), Y, 2.5, **keys)
        torch.testing.assert_close(guided(x_t, t), wanted, rtol=1e-7, atol=1e-7)


def test_w_1_asks_the_conditional_branch_alone():
    field = network()
    one = cfg(field, Y[:6], 1)
    x_t, t = images(), torch.tensor(0.3, dtype=torch.float64)
    assert torch.equal(one(x_t, t), unguided(field, Y[:6])(x_t, t))
    assert field.net.asked == [6, 6] and one.price(t) == 1


def test_both_branches_are_asked_in_one_batch():
    field = network()
    two = cfg(field, Y[:6], 2)
    two(images(), torch.tensor(0.3))
    assert field.net.asked == [12] and two.evaluations == 12 and field.evaluations == 0


def test_w_is_a_formula_of_t_and_r():
    path = Cosine()
    field = mixture(path)
    for text, number in (
        ("1 + 2*t", lambda t: 1 + 2 * t),
        ("4*(1-r)", lambda t: 4 * (1 - path.r(t))),
        ("3", lambda t: 3.0),
    ):
        guided = cfg(field, Y, text)
        for time in (0.2, 0.7):
            x_t, t = at(path, time)
            wanted = cfg(field, Y, float(number(t)))(x_t, t)
            torch.testing.assert_close(guided(x_t, t), wanted, rtol=1e-10, atol=1e-10)
        t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        rows = [cfg(field, Y, float(number(s)))(x_t, s)[k] for k, s in enumerate(t)]
        torch.testing.assert_close(guided(x_t, t), torch.stack(rows), rtol=1e-10, atol=1e-10)
    x_t = at(path, 0.5)[0].float()
    assert cfg(field, Y, "1+t")(x_t, torch.tensor(0.5).double()).dtype == torch.float32


# --- a limited interval ---------------------------------------------------------------------


def test_outside_the_interval_the_conditional_branch_alone_is_asked():
    """The interval is of r, whatever the path; its ends belong to it."""
    path = Cosine()
    field = mixture(path)
    limited = cfg(field, Y, 3.0, interval=[0.3, 0.6])
    for r, price in ((0.1, 1), (0.29, 1), (0.31, 2), (0.59, 2), (0.61, 1), (1.0, 1)):
        t = path.time_of_r(torch.tensor(r, dtype=torch.float64))
        x_t, _ = at(path, t.item())
        limited.reset()
        truth = cfg(field, Y, 3.0) if price == 2 else field.bind(Y)
        torch.testing.assert_close(limited(x_t, t), truth(x_t, t), rtol=1e-12, atol=1e-12)
        assert limited.evaluations == 9 * price and limited.price(t) == price
        seen = Along(limited, CondOT())
        assert seen.price(torch.tensor(r, dtype=torch.float64)) == price
    everywhere = cfg(field, Y, 3.0, interval=[0, 1])
    assert all(everywhere.price(torch.tensor(t).double()) == 2 for t in (0.0, 0.5, 1.0))


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_rows_at_their_own_times_are_guided_or_not(phi):
    """As an adaptive solver asks: every row equals the same row asked alone, and is paid for."""
    field = mixture(CondOT())
    t = torch.tensor([0.1, 0.35, 0.9, 0.5, 0.2, 0.6, 0.7, 0.4, 0.05], dtype=torch.float64)
    x_t, _ = at(CondOT(), 0.4)
    limited = by_formula(field, Y, 3.0, interval=[0.3, 0.6], phi=phi)
    together = limited(x_t, t)
    assert limited.evaluations == 9 + 4
    for k in range(9):
        alone = by_formula(field, Y[k : k + 1], 3.0, interval=[0.3, 0.6], phi=phi)
        row = alone(x_t[k : k + 1], t[k])
        torch.testing.assert_close(together[k : k + 1], row, rtol=1e-10, atol=1e-10)


# --- rescaling and clipping -----------------------------------------------------------------


def test_rescale_gives_back_the_std_of_the_conditional_estimate():
    """Lin et al. 2023, eq. 15 and 16, written out in NumPy."""
    field, x_t, t = network("v"), images(), torch.tensor(0.4).double()
    y = Y[:6]
    conditional = field.bind(y).predict(x_t, t, "x").numpy()
    plain = cfg(field, y, 5.0).predict(x_t, t, "x").numpy()
    for phi in (0.3, 1.0):
        guided = cfg(field, y, 5.0, phi=phi)
        x = guided.predict(x_t, t, "x").numpy()
        for k in range(6):
            whole = plain[k] * conditional[k].std() / plain[k].std()
            assert x[k] == pytest.approx(phi * whole + (1 - phi) * plain[k], rel=1e-4, abs=1e-5)
            if phi == 1:
                assert x[k].std() == pytest.approx(conditional[k].std(), rel=1e-4)
        # v = (x - x_t) / (1 - t) on the straight path
        assert guided(x_t, t).numpy() == pytest.approx((x - x_t.numpy()) / 0.6, rel=1e-4, abs=1e-5)
    assert guided.interval("v") == pytest.approx((0, 0.99))
    assert guided.interval("x") == (0, 1) == cfg(field, y, 5.0).interval("v")


def test_rescaling_leaves_an_estimate_without_std_as_it_is():
    """At t = 0 the estimate is the mean of the class, here the same number in each entry."""
    even = torch.tensor([[2.0, 2.0], [-2.0, -2.0]], dtype=torch.float64)
    covs = STD**2 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    field = Mixture(CondOT(), torch.ones(2).double() / 2, even, covs, torch.arange(2))
    guided = by_formula(field, torch.tensor([0, 1]), 3.0, phi=0.7)
    x = guided.predict(torch.ones(2, 2).double(), torch.tensor(0.0).double(), "x")
    torch.testing.assert_close(x, 3 * even)


def test_an_image_that_is_constant_up_to_rounding_is_not_blown_up():
    class Flat(nn.Module):
        def forward(self, x_t, t, y):
            pattern = torch.linspace(-1, 1, 16).view(1, 4, 4)
            size = torch.where(y == 3, 0.5, 0.25 + 1e-9).view(-1, 1, 1, 1)
            return 1 + size * pattern

    field = network("x", net=Flat())  # x = 1 + pattern / 4 and, without a label, 1 + pattern / 2
    x_t, t = images(2), torch.tensor(0.4).double()
    x = cfg(field, Y[:2], 2.0, phi=1.0).predict(x_t, t, "x")
    assert x.std() < 1e-6 and 0.3 < x.mean() < 3


def test_clip_data_clamps_the_estimate_of_x():
    field, x_t, t = network("v", classes=0), 3 * images(), torch.tensor(0.4).double()
    x = field.predict(x_t, t, "x")
    assert x.abs().max() > 1.5
    kept = in_range(field, "data")
    torch.testing.assert_close(kept.predict(x_t, t, "x"), torch.clamp(x, -1, 1))
    torch.testing.assert_close(kept(x_t, t), (torch.clamp(x, -1, 1) - x_t) / 0.6)
    assert in_range(field, "none") is field
    assert kept.interval() == pytest.approx((0, 0.99)) and kept.evaluations == field.evaluations


def test_dynamic_thresholding_divides_by_a_percentile_of_each_image():
    """By sorting: s is the entry 99.5 % up the sorted |x|, interpolated; under 1 nothing is."""

    class Fixed(nn.Module):
        def forward(self, x_t, t, y):
            return value

    value = torch.randn(2, 1, 20, 20, generator=torch.Generator().manual_seed(3))
    value[1] *= 0.1
    field = NetField(Fixed(), CondOT(), "x", 1.0, 1e-5, (1, 20, 20))
    x = Clipped(field, "dynamic").predict(images(2, (1, 20, 20)), torch.tensor(0.5), "x")
    ordered = sorted(value[0].abs().flatten().tolist())
    place = 0.995 * 399
    low = math.floor(place)
    s = ordered[low] + (place - low) * (ordered[low + 1] - ordered[low])
    assert s > 2
    wanted = [max(-s, min(s, v)) / s for v in value[0].flatten().tolist()]
    assert x[0].flatten().tolist() == pytest.approx(wanted, abs=1e-6)
    torch.testing.assert_close(x[1], value[1])


# --- autoguidance ---------------------------------------------------------------------------


def test_autoguidance_goes_on_from_another_field():
    """Guided by the same mixture with another std, along another path, in closed form."""
    path = CondOT()
    covs = 0.9 * torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
    for guide_path in (path, VP()):
        worse = Mixture(guide_path, WEIGHTS, MEANS, covs, torch.arange(3))
        truth = Mixture(path, WEIGHTS, MEANS, covs, torch.arange(3)).bind(Y)
        guided = Guided(mixture(path), Y, Strength(2.0), guide=Along(worse, path))
        x_t, t = at(path, 0.5)
        wanted = 2 * mixture(path).bind(Y)(x_t, t) - truth(x_t, t)
        torch.testing.assert_close(guided(x_t, t), wanted, rtol=1e-8, atol=1e-8)
        assert guided.evaluations == 18 and guided.price(t) == 2


def test_autoguidance_with_a_checkpoint(moons_run, digits_run):
    field = load(moons_run)
    t, x_t = torch.tensor(0.4).double(), images(5, (2,))
    guided = Autoguidance(3.0, load(moons_run, "raw"))(field, None)
    guide = load(moons_run, "raw")(x_t, t)
    assert (guide - field(x_t, t)).abs().max() > 1e-4
    torch.testing.assert_close(guided(x_t, t), guide + 3 * (field(x_t, t) - guide))
    keys = {"_target_": "fmdiff.guidance.Autoguidance", "w": 2.0, "ckpt": str(moons_run)}
    made = generate(field, 5, steps=3, guidance=guidance(keys))
    assert made.nfe_counted == made.nfe_planned == 6
    alone = Autoguidance(1.0, load(moons_run, "raw"))(field, None)
    assert torch.equal(alone(x_t, t), field(x_t, t)) and alone.branches == 1
    with pytest.raises(FmdiffError, match=r"guidance.ckpt=.* shape \[1, 8, 8\]"):
        guidance(keys | {"ckpt": str(digits_run)})(field, None)
    with pytest.raises(FmdiffError, match=r"the guide is a model of shape \[1, 8, 8\]"):
        Autoguidance(2.0, load(digits_run))(field, None)
    with pytest.raises(FmdiffError, match=r"guidance\.ckpt=RUN"):
        guidance(keys | {"ckpt": None})


def test_a_newer_checkpoint_of_the_same_name_is_read_anew(moons_run, tmp_path):
    file = tmp_path / "guide.ckpt"
    field, t, x_t = load(moons_run), torch.tensor(0.4).double(), images(5, (2,))
    file.write_bytes(find(moons_run).read_bytes())
    before = Autoguidance(3.0, load(file, "raw"))(field, None)(x_t, t)
    content = checkpoint.read(file)
    content["weights"]["raw"] = {k: 0.5 * v for k, v in content["weights"]["raw"].items()}
    checkpoint.write(file, content)
    after = Autoguidance(3.0, load(file, "raw"))(field, None)(x_t, t)
    assert (after - before).abs().max() > 1e-3


# --- what it costs --------------------------------------------------------------------------


class Worse(Unguided):
    """Another network along another path as the guide."""

    def __call__(self, field, y):
        return Guided(field, y, Strength(0.5), guide=network("x", VP(), net=Answers(0.2)))


KINDS_OF_GUIDANCE = {
    "none": unguided,
    "cfg": CFG(2.0),
    "formula": CFG("1+r"),
    "interval": CFG(2.0, interval=[0.25, 0.7]),
    "rescale": CFG(2.0, phi=0.7),
    "all": CFG("2+t", interval=[0.25, 0.7], phi=0.5),
    "guide": Worse(),
}


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("guidance", KINDS_OF_GUIDANCE.values(), ids=KINDS_OF_GUIDANCE)
@pytest.mark.parametrize("clip", ["none", pytest.param("dynamic", marks=pytest.mark.slow)])
def test_planned_is_counted_for_every_solver(solver, guidance, clip):
    keys = {"rtol": 1e-2, "atol": 1e-2} if solver == "dopri5" else {}
    solver = named("solver", solver, **keys)
    for field in (network("v"), network("eps", VP())):
        for coordinates in ("straight", "native"):
            made = generate(
                field,
                3,
                solver=solver,
                steps=5,
                guidance=guidance,
                clip=clip,
                coordinates=coordinates,
            )
            assert made.x.isfinite().all()
            if solver.adaptive:
                assert made.nfe_planned is None and made.nfe_counted > 5
            else:
                assert made.nfe_counted == made.nfe_planned == made.plan.nfe > 0


def test_an_interval_saves_what_lies_outside():
    """Euler at r = 0, 0.1 ... 0.9: 5 of 10 times in [0.26, 0.76], and 5 midpoints."""
    field = mixture(CondOT())
    limited = cfg(field, Y[:1], 2.0, interval=[0.26, 0.76])
    for solver, nfe in (("euler", 15), ("heun", 30), ("midpoint", 30)):
        assert plan(limited, named("solver", solver), 10).nfe == nfe
    assert plan(cfg(field, Y[:1], 2.0), named("solver", "heun"), 10).nfe == 40


@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_guided_samples_are_the_solution_of_the_guided_ode(coordinates):
    """Against scipy on the ODE of the tilted score, in straight coordinates."""
    scipy = pytest.importorskip("scipy.integrate")
    path, w = VP(), 2.0
    made = generate(
        mixture(path),
        3,
        solver="rk4",
        steps=150,
        guidance=CFG(w),
        coordinates=coordinates,
        dtype=torch.float64,
        trajectory=True,
    )

    def slope(r, x):
        x, t = torch.tensor(x).view(3, 2), torch.tensor(r).double()
        a, b = t, 1 - t
        near = torch.tensor([0, 1, 2])
        v = []
        for density in ("null", "given"):
            p = x.clone().requires_grad_()
            log_p = -((p[:, None] - a * MEANS) ** 2).sum(-1) / (2 * (a**2 * STD**2 + b**2))
            log_p = (
                (log_p + WEIGHTS.log()).logsumexp(1) if density == "null" else log_p[near, near]
            )
            score = torch.autograd.grad(log_p.sum(), p)[0]
            v.append((x + b * score) / a)
        return ((1 - w) * v[0] + w * v[1]).flatten().numpy()

    states, times = made.trajectory
    k = 15  # past r = 0, where v is 0 / 0 as written here
    r = view(mixture(path), coordinates).path.r(times)
    found = scipy.solve_ivp(
        slope, (r[k].item(), r[-1].item()), states[k].flatten().numpy(), rtol=1e-9, atol=1e-9
    )
    assert (states[len(r) - 1].flatten() - torch.tensor(found.y[:, -1])).abs().max() < 1e-4


# --- refusals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"w": math.nan}, "guidance.w=nan"),
        ({"w": "1+q"}, "unknown name 'q'"),
        ({"w": None}, "guidance.w=None"),
        ({"w": 2, "interval": [0.5, 0.2]}, r"guidance.interval=\[0.5, 0.2\]"),
        ({"w": 2, "interval": [0.5]}, "0 <= lo < hi <= 1"),
        ({"w": 2, "interval": [0.5, 1.2]}, "0 <= lo < hi <= 1"),
        ({"w": 2, "phi": 1.5}, "guidance.phi=1.5"),
    ],
)
def test_wrong_keys_are_refused(keys, says):
    with pytest.raises(FmdiffError, match=says):
        cfg(mixture(CondOT()), Y, **keys)


def test_what_cannot_be_guided_or_clipped_is_refused():
    with pytest.raises(FmdiffError, match="conditional=true"):
        cfg(network(classes=0), None, 2, interval=[0.2, 0.8])
    for shape in ((1,), (2,), (3,)):
        with pytest.raises(FmdiffError, match=r"phi=0\.5: .*contrast of an image.* no images"):
            cfg(network(shape=shape), Y, 2, phi=0.5)
    with pytest.raises(FmdiffError, match="clip=data needs images"):
        generate(mixture(CondOT()), 2, clip="data")
    with pytest.raises(FmdiffError, match="did you mean 'dynamic'"):
        in_range(network(), "dynamics")
    assert isinstance(Straight(in_range(network(path=VP()), "data")).field, Clipped)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("guidance=interval", "guidance.interval=[0.8,0.2]"), "guidance.interval=[0.8,"),
        (("guidance=rescale", "guidance.phi=2"), "guidance.phi=2"),
        (("guidance=rescale",), "guidance.phi=0.7: rescaling keeps the contrast of an image"),
        (("guidance=cfg", "clip=data"), "clip=data needs images"),
        (("guidance=autoguidance",), "guidance=autoguidance needs guidance.ckpt=RUN"),
        (("guidance=autoguidance", "guidance.ckpt=nope"), "nope"),
        (("guidance=cgf",), "did you mean 'cfg'"),
        (("guidance=cfg", "guidance.w=1+q"), "unknown name 'q'"),
    ],
)
def test_refusals_of_the_command_line(command, capfd, words, says):
    data = ("data=gmm4", "data.conditional=true")
    assert command("sample", "model=exact", *data, "n=4", "device=cpu", *words) == 2
    assert says in capfd.readouterr().err


def test_the_command_line_takes_a_formula_and_prints_the_price(command, capfd):
    data = ("data=gmm4", "data.conditional=true")
    words = ("guidance=interval", 'guidance.w="1+2*r"', "solver=euler", "steps=9", "device=cpu")
    assert command("sample", "model=exact", *data, "n=4", "out=samples", *words) == 0
    told = capfd.readouterr().out
    # of r = 0, 1/9 ... 8/9 six lie in [0.2, 0.8]
    assert "15 evaluations each (guidance interval included)" in told
    assert "15 evaluations per sample counted" in told
