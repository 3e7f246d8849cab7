"""Laws of Gaussian paths: conversions, derivatives, inverses, ends; float64 throughout."""

import math

import pytest
import torch
from conftest import PATHS as EVERY

from fmdiff.custom import Custom, checked, from_spec
from fmdiff.errors import FmdiffError
from fmdiff.path import (
    EDM,
    VE,
    VP,
    CondOT,
    Cosine,
    LinearVP,
    Lipman,
    Path,
    Polynomial,
    Shifted,
)

KINDS = ("x", "eps", "v", "score", "v_sh", "straight")
PATHS = {**EVERY, "polynomial3": Polynomial(3)}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
T = torch.linspace(0.02, 0.98, 49, dtype=torch.float64)


def pairs(n, shape=(3,)):
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(n, *shape, generator=generator, dtype=torch.float64) for _ in range(2))


def close(a, b, rtol):
    """Relative to the size of each row: an entry of a row may happen to be near 0."""
    size = b.flatten(1).norm(dim=1).clamp(min=1e-300)
    error = ((a - b).flatten(1).norm(dim=1) / size).max().item()
    assert error < rtol, error


class OnlyFormulas(Path):
    """A user's path: two formulas, everything else inherited."""

    def alpha(self, t):
        return torch.exp(t) * t / math.e

    def beta(self, t):
        return (1 - t) ** 2


class Stripped(Path):
    """The formulas of another path with every default of the base class."""

    def __init__(self, path):
        self.alpha, self.beta = path.alpha, path.beta


@pytest.mark.parametrize("path", [*PATHS.values(), OnlyFormulas()], ids=[*PATHS, "user"])
@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("source", KINDS)
def test_conversions_are_those_of_the_pair_and_invert_each_other(path, source, target):
    x, eps = pairs(len(T))
    x_t = path.mix(x, eps, T)
    given, wanted = path.mix(x, eps, T, source), path.mix(x, eps, T, target)
    there = path.convert(given, x_t, T, source, target)
    # near a blind end a conversion amplifies the rounding of x_t: alpha(0.02) = 8e-6 for n = 3
    tolerance = 1e-9 if getattr(path, "n", 0) == 3 else 1e-10
    close(there, wanted, tolerance)
    close(path.convert(there, x_t, T, target, source), given, tolerance)
    close(path.convert(given, x_t, T, source, "x_t"), x_t, 1e-10)


@every_path
def test_mix_is_alpha_x_plus_beta_eps(path):
    x, eps = pairs(len(T))
    by_hand = torch.stack(
        [path.alpha(t) * a + path.beta(t) * b for t, a, b in zip(T, x, eps, strict=True)]
    )
    torch.testing.assert_close(path.mix(x, eps, T), by_hand, rtol=1e-14, atol=1e-14)


@every_path
def test_v_is_the_time_derivative_of_x_t_and_score_that_of_its_log_density(path):
    x, eps = pairs(len(T))
    h = 1e-6
    slope = (path.mix(x, eps, T + h) - path.mix(x, eps, T - h)) / (2 * h)
    torch.testing.assert_close(path.mix(x, eps, T, "v"), slope, rtol=1e-6, atol=1e-6)
    x_t = path.mix(x, eps, T).requires_grad_()
    a, b = path.alpha(T)[:, None], path.beta(T)[:, None]
    log_p = torch.distributions.Normal(a * x, b.expand_as(x)).log_prob(x_t).sum()
    (score,) = torch.autograd.grad(log_p, x_t)
    close(path.mix(x, eps, T, "score"), score, 1e-9)


# which conversions stay finite at the ends of the straight path
AT_0 = [("x", k) for k in ("eps", "v", "score", "v_sh", "straight")]
AT_0 += [(k, t) for k in ("v", "v_sh", "straight") for t in KINDS if t != k]
AT_1 = [("eps", k) for k in ("x", "v", "v_sh", "straight")]
AT_1 += [(k, t) for k in ("v", "v_sh", "straight") for t in KINDS if t not in (k, "score")]
AT_1 += [("score", "x")]


@pytest.mark.parametrize(
    ("end", "source", "target"), [(0.0, *c) for c in AT_0] + [(1.0, *c) for c in AT_1]
)
def test_finite_conversions_are_exact_at_the_ends_of_condot(end, source, target):
    path, t = CondOT(), torch.tensor(end, dtype=torch.float64)
    x, eps = pairs(5)
    # score is infinite at t = 1: what a network would give is immaterial, beta removes it
    given = torch.ones_like(x) if (source, end) == ("score", 1) else path.mix(x, eps, t, source)
    got = path.convert(given, path.mix(x, eps, t), t, source, target)
    torch.testing.assert_close(got, path.mix(x, eps, t, target), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("end", "source"), [(0.0, "eps"), (0.0, "score"), (1.0, "x")])
def test_a_blind_source_gives_no_finite_value(end, source):
    t = torch.tensor(end, dtype=torch.float64)
    x, eps = pairs(5)
    got = CondOT().convert(torch.ones_like(x), CondOT().mix(x, eps, t), t, source, "v")
    assert not got.isfinite().any()


@every_path
def test_floor_bounds_the_determinant_and_nothing_else(path):
    x, eps = pairs(len(T))
    x_t, floor = path.mix(x, eps, T), 0.3
    a, b = path.alpha(T)[:, None], path.beta(T)[:, None]
    got = path.convert(x, x_t, T, "x", "eps", floor)
    torch.testing.assert_close(got, (x_t - a * x) / b.clamp(min=floor))
    got = path.convert(eps, x_t, T, "eps", "x", floor)
    torch.testing.assert_close(got, (x_t - b * eps) / a.clamp(min=floor))
    got = path.convert(eps, x_t, T, "eps", "score", floor)
    torch.testing.assert_close(got, -eps / b.clamp(min=floor))


@every_path
def test_closed_derivatives_equal_automatic_ones(path):
    plain = Stripped(path)
    torch.testing.assert_close(path.d_alpha(T), plain.d_alpha(T), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(path.d_beta(T), plain.d_beta(T), rtol=1e-12, atol=1e-14)
    for t in T[::16]:  # () as well as (B,)
        torch.testing.assert_close(path.d_alpha(t), plain.d_alpha(t), rtol=1e-12, atol=1e-14)


def published(name, t):
    """alpha and beta from the papers, term by term."""

    def shifted(a, b, shift=3):
        size = math.hypot(a, shift * b)  # it stays variance preserving
        return a / size, shift * b / size

    integral = 0.5 * (1 - t) ** 2 * (20.0 - 0.1) + (1 - t) * 0.1
    return {
        "condot": (t, 1 - t),
        "polynomial": (t * t, 1 - t * t),
        "polynomial3": (t * t * t, 1 - t * t * t),
        "cosine": (math.sin(math.pi * t / 2), math.cos(math.pi * t / 2)),
        "linear_vp": (t, math.sqrt(1 - t * t)),
        "vp": (math.exp(-integral / 2), math.sqrt(1 - math.exp(-integral))),
        "ve": (1.0, 0.01 * (50.0 / 0.01) ** (1 - t)),
        "edm": (1.0, (80 ** (1 / 7) + t * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7),
        "lipman": (t, 1 - 0.99 * t),
        "custom": (t**1.5, math.cos(math.pi * t / 2)),
        "vp_shifted": shifted(math.exp(-integral / 2), math.sqrt(1 - math.exp(-integral))),
    }[name]


@pytest.mark.parametrize("name", PATHS)
def test_alpha_and_beta_are_the_published_formulas(name):
    for t in T:
        got = PATHS[name].alpha(t).item(), PATHS[name].beta(t).item()
        assert got == pytest.approx(published(name, t.item()), rel=1e-12)


@every_path
def test_times_of_logsnr_and_of_r_are_inverses_and_bisection_agrees(path):
    logsnr, r = path.logsnr(T), path.r(T)
    assert (logsnr.diff() > 0).all() and (r.diff() > 0).all()
    torch.testing.assert_close(logsnr, (path.alpha(T) ** 2 / path.beta(T) ** 2).log())
    torch.testing.assert_close(r, path.alpha(T) / (path.alpha(T) + path.beta(T)))
    for inverse, value in ((path.time_of_logsnr, logsnr), (path.time_of_r, r)):
        torch.testing.assert_close(inverse(value), T, rtol=1e-10, atol=1e-10)
    plain = Stripped(path)
    torch.testing.assert_close(plain.time_of_logsnr(logsnr), T, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(plain.time_of_r(r), T, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", [*PATHS.values(), OnlyFormulas()], ids=[*PATHS, "user"])
def test_every_r_has_a_time_even_beyond_the_range_of_the_path(path):
    ends = path.time_of_r(torch.tensor([0.0, 1e-9, 1 - 1e-9, 1.0], dtype=torch.float64))
    assert ((ends >= 0) & (ends <= 1)).all()
    assert ends[0].item() == pytest.approx(0, abs=1e-12)
    assert ends[-1].item() == pytest.approx(1, abs=1e-12)
    far = torch.tensor([-1e3, 1e3], dtype=torch.float64)
    assert path.time_of_logsnr(far).tolist() == pytest.approx([0, 1], abs=1e-12)


def test_ends_of_the_paths():
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    for path in (CondOT(), Polynomial(2), Polynomial(3), Cosine(), LinearVP()):
        assert (path.alpha(zero), path.beta(zero)) == (0, 1)
        assert (path.alpha(one), path.beta(one)) == (1, 0)  # beta exactly 0 in float32
    assert VP().alpha(zero).item() == pytest.approx(math.exp(-5.025), rel=1e-5)  # not 0
    assert (VP().alpha(one), VP().beta(one)) == (1, 0)
    assert [VE().beta(zero).item(), VE().beta(one).item()] == pytest.approx([50, 0.01])
    assert VP(1.0, 5.0).alpha(zero).item() == pytest.approx(math.exp(-1.5), rel=1e-5)
    assert VE(0.1, 3.0).beta(zero).item() == pytest.approx(3)


@every_path
@pytest.mark.parametrize("shape", [(2,), (3, 4, 4)])
def test_one_time_for_all_equals_a_time_for_each(path, shape):
    x, eps = pairs(4, shape)
    t = torch.tensor(0.3, dtype=torch.float64)
    every = t.expand(4)
    x_t = path.mix(x, eps, t)
    assert x_t.shape == x.shape
    torch.testing.assert_close(path.mix(x, eps, every), x_t, rtol=1e-14, atol=0)
    for source in KINDS:
        value = path.mix(x, eps, t, source)
        for target in KINDS:
            one, each = (path.convert(value, x_t, s, source, target) for s in (t, every))
            assert one.shape == x.shape
            torch.testing.assert_close(one, each, rtol=1e-12, atol=1e-12)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="noise"):
        CondOT().row("noise", T)


@pytest.mark.parametrize("shift", [0.3, 3.0])
@every_path
def test_a_shift_multiplies_the_noise_level_and_keeps_the_scale(path, shift):
    moved = Shifted(path, shift)
    level, old = moved.beta(T) / moved.alpha(T), path.beta(T) / path.alpha(T)
    torch.testing.assert_close(level, shift * old, rtol=1e-12, atol=0)
    scale, old = (p.alpha(T) ** path.norm + p.beta(T) ** path.norm for p in (moved, path))
    torch.testing.assert_close(scale, old, rtol=1e-12, atol=0)


def test_a_shift_of_condot_is_that_of_stable_diffusion_3():
    """Its noise level at sigma, with data at 0: shift sigma / (1 + (shift - 1) sigma)."""
    sigma = 1 - T
    wanted = 3 * sigma / (1 + 2 * sigma)
    torch.testing.assert_close(from_spec(SHIFTED).beta(T), wanted, rtol=1e-13, atol=0)


SHIFTED = {"_target_": "fmdiff.path.CondOT", "shift": 3.0}


def test_without_a_shift_the_path_is_itself():
    assert type(from_spec({"_target_": "fmdiff.path.CondOT", "shift": 1.0})) is CondOT
    assert type(from_spec({"_target_": "fmdiff.path.CondOT"})) is CondOT


def test_edm_times_are_the_noise_levels_of_karras():
    """Karras et al. 2022, eq. 5, for 18 steps; their figures to the printed digit."""
    levels = EDM(0.002, 80.0, 7.0).beta(torch.linspace(0, 1, 18, dtype=torch.float64))
    wanted = [80.0, 57.586, 40.786, 28.375]
    assert levels[:4].tolist() == pytest.approx(wanted, abs=1e-3)
    assert levels[-1].item() == pytest.approx(0.002)


@pytest.mark.parametrize(
    ("alpha", "beta", "same"),
    [
        ("sin(pi*t/2)", "cos(pi*t/2)", Cosine()),
        ("t", "1 - t", CondOT()),
        ("t**3", "1 - t^3", Polynomial(3)),
        ("t", "sqrt(1 - t^2)", LinearVP()),
        ("1", "50^(1-t) * 0.01^t", VE()),
        ("t", "1 - 0.99*t", Lipman(0.01)),
    ],
)
def test_a_users_formulas_are_the_built_in_path(alpha, beta, same):
    path = Custom(alpha, beta)
    for name in ("alpha", "beta", "d_alpha", "d_beta", "r"):
        wanted = getattr(same, name)(T)
        torch.testing.assert_close(getattr(path, name)(T), wanted, rtol=1e-10, atol=1e-12)
    one = torch.tensor(1.0)
    assert (path.beta(one) == 0) == (same.beta(one) == 0)  # exactly, also in float32
    assert path.d_beta(0.999 * one).item() == pytest.approx(
        same.d_beta(0.999 * one).item(), rel=1e-3
    )


@pytest.mark.parametrize(
    ("alpha", "beta", "says"),
    [
        ("1 - t", "t", "goes from noise"),
        ("2*t", "1 - t", "alpha = 1"),
        ("t", "1", "beta near 0"),
        ("t", "1 - 2*t", "finite and >= 0"),
        ("t", "1/t - 1", "finite and >= 0"),
        ("t^2 + sin(6*pi*t)/4*(1-t)", "1.2*(1-t)", ">= 0"),
        ("t + 0.9*abs(sin(2*pi*t))", "1 - t", "increase"),
        ("t", "os.system(1)", "alone"),
    ],
)
def test_formulas_that_make_no_path_are_refused(alpha, beta, says):
    with pytest.raises(FmdiffError, match=r"path\.(alpha|beta)=") as error:
        Custom(alpha, beta)
    assert says in str(error.value), error.value


# The check that every path passes


@every_path
def test_built_in_paths_pass_the_check(path):
    state = torch.get_rng_state()
    assert checked(path) is path
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "path",
    [
        OnlyFormulas(),
        Polynomial(0.05),
        Polynomial(500),  # t^500 is 0 in floating point up to t = 0.22
        VP(1.0, 5.0),  # alpha(0) = 0.22
        VP(20.0, 0.1),
        VE(0.5, 0.9),
        VE(1e-20, 50.0),  # r is 1 in floating point from t = 0.8 on
        EDM(0.1, 1.0, 3.0),
        Lipman(0.3),
        Shifted(Lipman(0.3), 20.0),
    ],
    ids=repr,
)
def test_the_users_rates_are_not_the_checks_concern(path):
    assert checked(path) is path


def own(alpha=None, beta=None, base=Path):
    formulas = {"alpha": alpha, "beta": beta}
    return type("Own", (base,), {name: f for name, f in formulas.items() if f is not None})()


def rising(self, t):
    return t


def falling(self, t):
    return 1 - t


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (own(falling, rising), r"^Own\(\): a path goes from noise .*alpha = 1 and beta = 0 at 0"),
        (own(falling, rising, CondOT), "goes from noise"),
        (own(lambda self, t: t - t * t, falling, VP), "alpha = 1"),
        (own(rising, lambda self, t: 1 / t), r"beta\(0\) = inf"),
        (own(lambda self, t: t + (6 * t).sin().abs() * (1 - t), falling), "must increase"),
        (own(None, falling), r"Own\.alpha\(t\) is missing"),
        (own(rising), r"Own\.beta\(t\) is missing"),
        (own(rising, lambda self, t: 1.0), r"Own\.beta\(t\) must return a tensor, not 1\.0"),
        (own(lambda self, t: t.mean(), falling), r"alpha\(t\) must have the shape and dtype of t"),
        (own(lambda self, t: t.float(), falling), r"float64, not \[1001\] and torch\.float32"),
        (own(lambda self, t: t + self.rate, falling), r"alpha\(t\) fails: AttributeError.*rate"),
        (
            type("Own", (), {"alpha": rising, "beta": falling})(),
            "must derive from fmdiff.path.Path",
        ),
    ],
)
def test_a_class_that_makes_no_path_is_told_in_one_sentence(path, says):
    with pytest.raises(FmdiffError, match=says) as error:
        checked(path)
    assert "\n" not in str(error.value)


def test_a_specified_path_is_checked():
    with pytest.raises(FmdiffError, match=r"Path\.alpha\(t\) is missing"):
        from_spec({"_target_": "fmdiff.path.Path", "shift": 2.0})
    with pytest.raises(FmdiffError, match=r"Normal must derive from fmdiff\.path\.Path"):
        from_spec({"_target_": "fmdiff.source.Normal", "shift": 2.0})


@pytest.mark.parametrize("name", ["ve", "edm"])
def test_a_reversed_noise_range_is_refused(name):
    kind = {"ve": VE, "edm": lambda low, high: EDM(low, high, 7.0)}[name]
    with pytest.raises(FmdiffError, match=r"path\.noise_min=3.0"):
        kind(3.0, 1.0)
