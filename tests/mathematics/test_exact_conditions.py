"""Exact fields given conditions, against Bayes' rule on the joint law of state and condition."""

import math

import numpy as np
import pytest
import torch
from conftest import every_path, some_paths
from scipy.integrate import solve_ivp
from scipy.special import logsumexp
from scipy.stats import kstest, multivariate_normal, norm
from torch.distributions import MultivariateNormal

from fmdiff.classifier import Tilted
from fmdiff.condition import Condition, Form
from fmdiff.custom import Strength
from fmdiff.errors import FmdiffError
from fmdiff.exact import ByRows, Mixture
from fmdiff.guidance import CFG, Autoguidance
from fmdiff.likelihood import log_prob
from fmdiff.path import EDM, VP, CondOT
from fmdiff.sampling import Sampler, generate
from fmdiff.solvers.adaptive import Dopri5

NAN = math.nan
# three components in four dimensions: two of x, two of c, all of which depend on each other
WEIGHTS = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
MEANS = torch.tensor(
    [[1.0, 2.0, -1.0, 0.5], [-2.0, 0.5, 0.7, -0.6], [0.5, -1.5, 0.2, 1.0]], dtype=torch.float64
)
_half = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
COVS = 0.3 * _half @ _half.mT + 0.1 * torch.eye(4, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 0])
BOTH = {"c": Form((2,)), "known": Form((2,))}
# what is known of (x_1, x_2, c_1, c_2) in each row: every case at once
VALUES = torch.tensor(
    [
        [NAN, NAN, 0.3, -0.2],
        [NAN, NAN, 0.3, -0.2],
        [NAN, NAN, NAN, 0.9],
        [NAN, NAN, -1.1, NAN],
        [NAN, NAN, NAN, NAN],
        [0.4, NAN, NAN, NAN],
        [NAN, -0.7, NAN, NAN],
        [0.4, NAN, 0.3, -0.2],
        [0.1, -0.7, NAN, 0.5],
        [NAN, 1.3, NAN, 0.1],
    ],
    dtype=torch.float64,
)
Y = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def condition(values=VALUES, y=None):
    parts = {"known": values[:, :2], "c": values[:, 2:]}
    return Condition(parts if y is None else {"label": y} | parts)


def mixture(path, labels=None, conditions=BOTH):
    return Mixture(path, WEIGHTS, MEANS, COVS, labels, conditions=conditions)


def states(path, t, n=10, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = MEANS[torch.randint(3, (n,), generator=generator), :2]
    noise = torch.randn(2, n, 2, generator=generator, dtype=torch.float64)
    return path.mix(x + 0.7 * noise[0], noise[1], t)


def noised(path, t, values, y=None):
    """Means and covariances of (x_t, o), o the known values, and whether a component may be."""
    a, b = path.alpha(t).item(), path.beta(t).item()
    seen = (~values.isnan()).numpy()
    lift = np.zeros((2 + seen.sum(), 4))  # x_t = a x + b eps, then the known coordinates
    lift[:2, :2] = a * np.eye(2)
    lift[2:] = np.eye(4)[seen]
    noise = np.zeros((len(lift), len(lift)))
    noise[:2, :2] = b * b * np.eye(2)
    allowed = [y in (None, 2) or label == y for label in LABELS.tolist()]
    parts = []
    for w, m, c, may in zip(WEIGHTS, MEANS, COVS, allowed, strict=True):
        if may:
            parts.append((w.item(), lift @ m.numpy(), lift @ c.numpy() @ lift.T + noise))
    return parts, values[torch.from_numpy(seen)]


def bayes(path, t, x_t, values, y=None):
    """log p_t(x_t | o) = log p(x_t, o) - log p(o), by scipy."""
    parts, o = noised(path, t, values, y)
    both = np.concatenate([x_t.numpy(), o.numpy()])
    joint = logsumexp([np.log(w) + multivariate_normal(m, c).logpdf(both) for w, m, c in parts])
    if not len(o):
        return joint - np.log(sum(w for w, _, _ in parts))
    alone = [
        np.log(w) + multivariate_normal(m[2:], c[2:, 2:]).logpdf(o.numpy()) for w, m, c in parts
    ]
    return joint - logsumexp(alone)


def autograd_score(path, t, x_t, values, y=None):
    """The gradient in x_t of log p(x_t, o)."""
    parts, o = noised(path, t, values, y)
    x = x_t.clone().requires_grad_()
    both = torch.cat([x, o])
    terms = [
        math.log(w) + MultivariateNormal(torch.from_numpy(m), torch.from_numpy(c)).log_prob(both)
        for w, m, c in parts
    ]
    return torch.autograd.grad(torch.stack(terms).logsumexp(0), x)[0]


@every_path
@pytest.mark.parametrize("y", [None, Y], ids=["alone", "labels"])
@pytest.mark.parametrize("t", [0.0, 0.3, 0.9])
def test_density_and_score_are_those_of_bayes(path, y, t):
    t = torch.tensor(t, dtype=torch.float64)
    x = states(path, t)
    field = mixture(path, LABELS if y is not None else None).bind(condition(y=y))
    log_p, score = field.log_prob(x, t), field.predict(x, t, "score")
    for i in range(len(x)):
        label = None if y is None else y[i].item()
        case = path, t, x[i], VALUES[i], label
        assert log_p[i].item() == pytest.approx(bayes(*case), rel=1e-9, abs=1e-9)
        torch.testing.assert_close(score[i], autograd_score(*case), rtol=1e-8, atol=1e-9)


def line(path, labels=None):
    """x and c on a line each: three components that overlap in c."""
    rows = [0, 2]
    return Mixture(
        path,
        WEIGHTS,
        MEANS[:, rows],
        COVS[:, rows][:, :, rows],
        labels,
        conditions={"c": Form((1,))},
    )


def given_c(*values):
    return Condition({"c": torch.tensor(values, dtype=torch.float64)[:, None]})


def cdf(c):
    """The distribution function of x on the line given c, by the textbook formula of a pair."""
    parts = []
    for w, m, s in zip(WEIGHTS, MEANS[:, [0, 2]], COVS[:, [0, 2]][:, :, [0, 2]], strict=True):
        mean = (m[0] + s[0, 1] / s[1, 1] * (c - m[1])).item()
        variance = (s[0, 0] - s[0, 1] ** 2 / s[1, 1]).item()
        weight = w.item() * norm(m[1].item(), s[1, 1].sqrt().item()).pdf(c)
        parts.append((weight, norm(mean, variance**0.5)))
    whole = sum(weight for weight, _ in parts)
    return lambda x: sum(weight / whole * law.cdf(x) for weight, law in parts)


@some_paths
def test_means_are_integrals_over_the_joint_density(path):
    x = torch.linspace(-9, 9, 40_001, dtype=torch.float64)
    t = torch.tensor(0.6, dtype=torch.float64)
    a, b = path.alpha(t), path.beta(t)
    for c, x_t in ((0.3, -0.9), (-1.2, 0.4)):
        both = np.stack([x.numpy(), np.full(len(x), c)], 1)
        prior = sum(
            w.item() * multivariate_normal(m[[0, 2]], s[[0, 2]][:, [0, 2]]).pdf(both)
            for w, m, s in zip(WEIGHTS, MEANS.numpy(), COVS.numpy(), strict=True)
        )
        weight = torch.from_numpy(prior) * torch.exp(-0.5 * ((x_t - a * x) / b) ** 2)
        mean_x = (x * weight).sum() / weight.sum()
        mean_eps = ((x_t - a * x) / b * weight).sum() / weight.sum()
        field, at = line(path).bind(given_c(c)), torch.tensor([[x_t]], dtype=torch.float64)
        assert field.predict(at, t, "x").item() == pytest.approx(mean_x.item(), abs=1e-9)
        assert field.predict(at, t, "eps").item() == pytest.approx(mean_eps.item(), abs=1e-9)
        v = path.row("v", t)
        wanted = v[0] * mean_x + v[1] * mean_eps
        assert field(at, t).item() == pytest.approx(wanted.item(), abs=1e-8)


def test_rows_do_not_depend_on_their_batch():
    path = VP()
    field = mixture(path, LABELS).bind(condition(y=Y))
    assert isinstance(field, ByRows)
    t = torch.linspace(0.1, 0.9, len(VALUES), dtype=torch.float64)
    x = states(path, t)
    whole, density = field.predict(x, t, "v"), field.log_prob(x, t)
    for i in range(len(x)):
        row = slice(i, i + 1)
        single = mixture(path, LABELS).bind(condition(VALUES[row], Y[row]))
        torch.testing.assert_close(single.predict(x[row], t[i], "v"), whole[row])
        torch.testing.assert_close(single.log_prob(x[row], t[i]), density[row])
    mask = torch.tensor([True, False] * 5)
    for rows in (mask, torch.tensor([7, 0, 4]), torch.tensor([4])):
        part = field.select(rows)
        torch.testing.assert_close(part.predict(x[rows], t[rows], "v"), whole[rows])
        again = part.select(torch.tensor([0]))
        torch.testing.assert_close(again.predict(x[rows][:1], t[rows][:1], "v"), whole[rows][:1])
    single = field.predict(x.float(), t, "v")  # what a solver asks
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), whole, rtol=1e-3, atol=1e-3)
    assert field.bind(condition(VALUES[:4])).predict(x[:4], t[:4], "v").shape == (4, 2)


def test_nothing_known_is_the_marginal():
    path, t = CondOT(), torch.tensor(0.4, dtype=torch.float64)
    x = states(path, t)
    alone = Mixture(path, WEIGHTS, MEANS[:, :2], COVS[:, :2, :2])
    blank = torch.full_like(VALUES, NAN)
    for field in (mixture(path), mixture(path).bind(condition(blank))):
        torch.testing.assert_close(field(x, t), alone(x, t), rtol=1e-12, atol=1e-12)


@some_paths
def test_continuity_equation_given_c(path):
    field = mixture(path).bind(condition(VALUES[:1]))

    def density(x, t):
        return field.log_prob(x[None], t).exp()[0]

    def flux(x, t):
        return density(x, t) * field(x[None], t)[0]

    rate = torch.func.vmap(torch.func.jacrev(density, argnums=1))
    divergence = torch.func.vmap(torch.func.jacrev(flux, argnums=0))
    t = torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=torch.float64).repeat_interleave(10)
    x = states(path, t, n=40)
    d_p = rate(x, t)
    div = divergence(x, t).diagonal(dim1=1, dim2=2).sum(-1)
    assert (d_p + div).abs().max() < 1e-6 * d_p.abs().max()


@some_paths
def test_the_flow_given_conditions_is_that_of_another_integrator(path):
    rows = slice(0, 5)  # c alone, in every combination
    field = mixture(path, conditions={"c": BOTH["c"]})
    field = field.bind(Condition({"c": VALUES[rows, 2:]}))
    t, s = (torch.tensor(time, dtype=torch.float64) for time in (0.15, 0.9))
    x = states(path, t, n=5)

    def velocity(time, flat):
        at = torch.from_numpy(flat).view_as(x)
        return field(at, torch.tensor(time, dtype=torch.float64)).flatten().numpy()

    ends = t.item(), s.item()
    line = solve_ivp(velocity, ends, x.flatten().numpy(), "LSODA", rtol=1e-10, atol=1e-11)
    wanted, scale = torch.from_numpy(line.y[:, -1]).view_as(x), path.alpha(s) + path.beta(s)
    flow = field.flow(x, t, s)
    assert ((flow - wanted) / scale).abs().max() < 1e-7
    assert (field.flow(flow, s, t) - x).abs().max() < 1e-8 * (path.alpha(t) + path.beta(t))


def test_the_flow_of_one_component_given_c_is_a_formula():
    path = CondOT()
    field = Mixture(path, WEIGHTS[:1], MEANS[:1], COVS[:1], conditions={"c": Form((2,))})
    t, s = (torch.tensor(time, dtype=torch.float64) for time in (0.1, 1.0))
    x, c = states(path, t, n=3), VALUES[:3, 2:]
    gain = COVS[0, :2, 2:] @ torch.linalg.inv(COVS[0, 2:, 2:])
    for i, known in ((0, [0, 1]), (2, [1])):
        gain = COVS[0, :2, 2:][:, known] @ torch.linalg.inv(COVS[0, 2:, 2:][known][:, known])
        mean = MEANS[0, :2] + gain @ (c[i] - MEANS[0, 2:])[known]
        spread, axes = torch.linalg.eigh(COVS[0, :2, :2] - gain @ COVS[0, 2:, :2][known])
        ratio = (spread / (0.01 * spread + 0.81)).sqrt()
        wanted = mean + (ratio * ((x[i] - 0.1 * mean) @ axes)) @ axes.T
        got = field.bind(Condition({"c": c})).flow(x, t, s)[i]
        torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)


def test_samples_given_c_have_its_law():
    field, n = line(CondOT()), 2000
    cs = [-1.2, 0.3, NAN, 1.1]
    exact = field.bind(given_c(*cs * n)).sample(0, 4 * n, seed=3)
    solved = generate(field.given(c=cs), 4 * n, steps=40)
    assert solved.given["c"][:3, 0].tolist() == pytest.approx([*cs[:2], NAN], nan_ok=True)
    for i, c in enumerate(cs):
        if c == c:
            for x in (exact, solved.x):
                assert kstest(x[i::4, 0].numpy(), cdf(c)).pvalue > 1e-3
    assert torch.equal(exact[5:9], field.bind(given_c(*cs[1:], cs[0])).sample(5, 9, 3))


@pytest.mark.parametrize("path", [CondOT(), VP(), EDM(0.002, 80.0, 7.0)], ids=["ot", "vp", "edm"])
def test_likelihoods_go_through_rows_of_all_kinds(path):
    field, y = line(path), given_c(-1.2, 0.3, NAN, 1.1, NAN)
    x, one = field.bind(y).sample(0, 5, 0).double(), torch.ones((), dtype=torch.float64)
    wanted = field.bind(y).log_prob(x, one)
    torch.testing.assert_close(log_prob(field, x, y, steps=60), wanted, rtol=3e-3, atol=3e-3)


def test_adaptive_solvers_go_through_rows_of_all_kinds():
    """Each row takes its own steps, so that its end is that of the row alone."""
    field, c = line(CondOT()), torch.tensor([[-1.2], [NAN], [1.1]], dtype=torch.float64)
    sampler = Sampler(solver=Dopri5(1e-6, 1e-6, 10_000), dtype=torch.float64)
    eps = torch.tensor([[0.3], [-1.0], [1.7]], dtype=torch.float64)
    together = sampler.draw(field.given(c=c), eps=eps).x
    lone = [
        sampler.draw(field.given(c=c[i : i + 1]), eps=eps[i : i + 1], first=i).x for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(lone), rtol=1e-12, atol=1e-12)
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    exact = field.bind(Condition({"c": c})).flow(eps, zero, one)
    torch.testing.assert_close(together, exact, rtol=1e-5, atol=1e-5)


# --- observed coordinates ------------------------------------------------------------------------


def plane(path):
    """The same law as that of `line`, as x alone: its second coordinate takes the place of c."""
    means, covs = line(path).joint_means, line(path).joint_covs
    return Mixture(path, WEIGHTS, means, covs, conditions={"known": Form((2,))})


def test_known_coordinates_are_exact_and_the_other_has_its_law():
    field, n = plane(CondOT()), 2000
    known = [[NAN, -1.2], [NAN, 0.3], [0.25, NAN], [0.7, -0.4]]
    given = torch.tensor(known)
    x = generate(field.given(known=known), 4 * n, steps=40).x.view(n, 4, 2)
    shown = ~given.isnan()
    assert torch.equal(x[:, shown], given[shown].expand(n, -1))
    for i, value in ((0, -1.2), (1, 0.3)):
        assert kstest(x[:, i, 0].numpy(), cdf(value)).pvalue > 1e-3
    y = Condition({"known": given.repeat(n, 1)})
    exact = field.bind(y).sample(0, 4 * n, 0).view(n, 4, 2)
    assert torch.equal(exact[:, shown], given[shown].expand(n, -1))
    assert kstest(exact[:, 1, 0].numpy(), cdf(0.3)).pvalue > 1e-3


@pytest.mark.parametrize("path", [CondOT(), VP()], ids=["condot", "vp"])
def test_known_coordinates_end_the_flow_in_points(path):
    known = torch.tensor([[NAN, 0.3], [0.2, NAN]], dtype=torch.float64)
    field = plane(path).bind(Condition({"known": known}))
    t, one = torch.tensor(0.3, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    last = torch.tensor(field.interval()[1], dtype=torch.float64)
    assert path.r(last).item() == pytest.approx(0.999)
    x = states(path, t, n=2)
    clean = field.predict(x, t, "x")
    assert clean[0, 1] == 0.3 and clean[1, 0] == 0.2
    end = field.flow(x, t, one) / path.alpha(one)
    assert end[0, 1].item() == pytest.approx(0.3, abs=1e-9)
    assert end[1, 0].item() == pytest.approx(0.2, abs=1e-9)
    # along the free coordinate the flow is that of c on the line
    alone = line(path).bind(given_c(0.3)).flow(x[:1, :1], t, one) / path.alpha(one)
    assert end[0, 0].item() == pytest.approx(alone.item(), abs=2e-3)


# --- guidance ------------------------------------------------------------------------------------


@every_path
@pytest.mark.parametrize("on", [None, ["c"]], ids=["all", "c"])
@pytest.mark.parametrize("w", [0.0, 2.0, -0.5])
def test_the_guided_score_is_that_of_the_tilted_density_at_every_time(path, on, w):
    """grad log p_t(x) (p_t(x | c) / p_t(x))^w; with on=[c] the label stays in both."""
    values, y = VALUES[:4], Y[:4]
    c = values[:, 2:]
    field = mixture(path, LABELS, conditions={"c": BOTH["c"]})
    full = Condition({"label": y, "c": c})
    label = y if on else torch.full_like(y, 2)
    blank = Condition({"label": label, "c": torch.full_like(c, NAN)})
    guided = CFG(w, on=on)(field, full)
    for time in (0.1, 0.5, 0.95):
        t = torch.tensor(time, dtype=torch.float64)
        x = states(path, t, n=4).requires_grad_()
        conditional, alone = (field.bind(part).log_prob(x, t) for part in (full, blank))
        (tilted,) = torch.autograd.grad(((1 - w) * alone + w * conditional).sum(), x)
        x = x.detach()
        scale = tilted.abs().max().item()
        torch.testing.assert_close(
            guided.predict(x, t, "score"), tilted, rtol=1e-8, atol=1e-10 * scale
        )
        v = path.convert(tilted, x, t, "score", "v")
        torch.testing.assert_close(guided(x, t), v, rtol=1e-7, atol=1e-9 * v.abs().max().item())


def test_guidance_on_some_conditions_drops_only_these():
    path, t = CondOT(), torch.tensor(0.5, dtype=torch.float64)
    field = mixture(path, LABELS)
    y, x = condition(y=Y), states(path, torch.tensor(0.5).double())
    for on, kept in ((["label"], ("known", "c")), (["c", "label"], ("known",))):
        parts = {
            name: part if name in kept else torch.full_like(part, 2 if name == "label" else NAN)
            for name, part in y.parts.items()
        }
        one, other = field.bind(y)(x, t), field.bind(Condition(parts))(x, t)
        torch.testing.assert_close(CFG(3.0, on=on)(field, y)(x, t), 3 * one - 2 * other)
    guided = CFG(3.0, on=["c"])(field, y)
    part = guided.select(torch.tensor([8, 2]))
    torch.testing.assert_close(part(x[[8, 2]], t), guided(x, t)[[8, 2]])
    for on, word in ((["d"], "label, known, c"), ([], "null"), ("c", "null"), ([1], "null")):
        with pytest.raises(FmdiffError, match=rf"guidance\.on=.*{word}"):
            CFG(3.0, on=on)(field, y)
    with pytest.raises(FmdiffError, match=r"guidance\.on=\[c\]"):  # labels alone
        CFG(3.0, on=["c"])(Mixture(path, WEIGHTS, MEANS, COVS, LABELS), Y)


class Slope:
    """A classifier with log p(y | x_t) = x_t . slopes[y], in closed form."""

    path, shape, classes, names = CondOT(), (1,), 2, ()
    slopes = torch.tensor([[2.0], [-3.0]], dtype=torch.float64)

    def log_prob(self, x_t, t, y):
        return (x_t * self.slopes[y]).sum(1)


def test_a_classifier_guides_a_field_given_c():
    field, t = line(CondOT()), torch.tensor(0.5, dtype=torch.float64)
    c, labels = given_c(0.3, NAN, -1.2), torch.tensor([0, 1, 1])
    x = torch.tensor([[0.2], [-0.4], [1.0]], dtype=torch.float64)
    y = Condition({"label": labels} | c.parts)
    guided = Tilted(field, y, Strength(1.5), Slope())
    wanted = field.bind(c).predict(x, t, "score") + 1.5 * Slope.slopes[labels]
    torch.testing.assert_close(guided.predict(x, t, "score"), wanted)
    rows = torch.tensor([2, 0])
    part = guided.select(rows)
    torch.testing.assert_close(part.predict(x[rows], t, "score"), wanted[rows])


def test_a_guide_takes_the_conditions_that_it_has():
    path, t = CondOT(), torch.tensor(0.5, dtype=torch.float64)
    field, y, x = line(path), given_c(0.3, -1.2), torch.tensor([[0.2], [1.0]]).double()
    one = field.bind(y)(x, t)
    for conditions in ({}, {"c": Form((1,))}):
        means, covs = line(path).joint_means + 0.3, line(path).joint_covs
        if not conditions:
            means, covs = means[:, :1], covs[:, :1, :1]
        guide = Mixture(path, WEIGHTS, means, covs, conditions=conditions)
        other = (guide.bind(y) if conditions else guide)(x, t)
        guided = Autoguidance(2.0, guide)(field, y)
        torch.testing.assert_close(guided(x, t), 2 * one - other)
    plain = Mixture(path, WEIGHTS, MEANS[:, :1], COVS[:, :1, :1])
    with pytest.raises(FmdiffError, match=r"the guide has the conditions c .* no conditions"):
        Autoguidance(2.0, field)(plain, None)


def test_a_guided_flow_does_not_end_in_the_tilted_density():
    """What a guided flow draws is not p(x) (p(x | c) / p(x))^w, although every score is right.

    For one Gaussian both are known: x, c of variance 1 and covariance 1/2, so p(x) = N(0, 1) and
    p(x | c) = N(c / 2, 3/4). At w = 2 the tilted precision is 2 / (3/4) - 1 = 5/3, the variance
    3/5 and the mean 4/5 c. The flow of dx/dr = v, solved by scipy, has another variance.
    """
    cov = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    field = Mixture(CondOT(), one, zero, cov, conditions={"c": Form((1,))})

    def slope(r, m, spread, shift):  # of the variance and mean of a Gaussian along CondOT
        s = r * r * spread + (1 - r) ** 2
        return shift + (r * spread - (1 - r)) / s * (m - r * shift)

    def rate(r, state):
        mean, std = state
        conditional, alone = (slope(r, mean, *law) for law in ((0.75, 0.5), (1.0, 0.0)))
        factor = 2 * (slope(r, 1, 0.75, 0)) - slope(r, 1, 1.0, 0)
        return 2 * conditional - alone, factor * std

    mean, std = solve_ivp(rate, (0, 1), (0.0, 1.0), rtol=1e-10, atol=1e-12).y[:, -1]
    solver = Dopri5(1e-9, 1e-9, 10_000)
    eps = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    twin = Sampler(solver=solver, dtype=torch.float64, guidance=CFG(2.0))
    ends = twin.draw(field.given(c=1.0), eps=eps).x.flatten()
    assert ends.tolist() == pytest.approx([mean + std, mean - std], abs=1e-6)
    assert abs(mean - 0.8) > 0.02 or abs(std**2 - 0.6) > 0.02


def test_a_bound_field_can_be_bound_again():
    path, t = VP(), torch.tensor(0.5, dtype=torch.float64)
    x, first, second = states(path, t), condition(VALUES.flip(0)), condition()
    for field in (mixture(path), mixture(path).straight()):
        wanted = field.bind(second).predict(x, t, "v")
        torch.testing.assert_close(field.bind(first).bind(second).predict(x, t, "v"), wanted)
        single = field.bind(condition(VALUES[:1].expand(10, -1)))
        torch.testing.assert_close(single.bind(second).predict(x, t, "v"), wanted)
    straight = mixture(path).bind(first).straight().bind(second)
    torch.testing.assert_close(straight.predict(x, t, "v"), wanted)


# --- what is refused -----------------------------------------------------------------------------


def test_what_a_mixture_cannot_be_given():
    points = Mixture(CondOT(), WEIGHTS, MEANS, 0 * COVS, conditions={"c": Form((2,))})
    with pytest.raises(FmdiffError, match="no density"):
        points.bind(given_c(0.0).__class__({"c": torch.zeros(1, 2)}))
    with pytest.raises(FmdiffError, match=r"cond\.d is unknown"):
        line(CondOT()).given(d=1.0)
    with pytest.raises(FmdiffError, match=r"cond\.c .*a number"):
        line(CondOT()).given(c=[[1.0, 2.0]])
    with pytest.raises(FmdiffError, match=r"cond\.c holds an infinite number"):
        line(CondOT()).given(c=math.inf)
    with pytest.raises(FmdiffError, match=r"cond\.c: .*without conditions"):
        Mixture(CondOT(), WEIGHTS, MEANS, COVS).given(c=1.0)
