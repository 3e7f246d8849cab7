"""data=gmm with a condition c: the mixture of (x, c) in batches, moments and exact fields."""

import math

import pytest
import scipy.stats
import torch
from test_data import make

from fmdiff.condition import Condition
from fmdiff.data.base import Data
from fmdiff.errors import FmdiffError
from fmdiff.exact import exact
from fmdiff.path import CondOT

N = 40_000
MEANS = [[-2.0, 0.5, -1.0, 0.0], [2.0, 0.0, -1.0, 3.0]]
COVS = [
    [[0.5, 0.1, 0.3, 0.0], [0.1, 0.4, 0.0, -0.2], [0.3, 0.0, 0.6, 0.1], [0.0, -0.2, 0.1, 0.9]],
    [[0.3, 0.0, -0.2, 0.1], [0.0, 0.2, 0.1, 0.0], [-0.2, 0.1, 0.7, 0.0], [0.1, 0.0, 0.0, 0.4]],
]


def pairs(**keys):
    """x in the plane and c of two numbers, from two components of unequal weight."""
    return make("gmm", means=MEANS, cov=COVS, weights=[0.3, 0.7], given=2, **keys)


def test_the_joint_draws_are_those_of_the_mixture():
    data = pairs(conditional=True)
    assert data.shape == (2,) and data.labels == data.classes == 2
    x, y = data.sample(0, N, seed=1)
    assert isinstance(y, Condition) and set(y.parts) == {"label", "c"}
    assert x.shape == (N, 2) and y.parts["c"].shape == (N, 2)
    both, label = torch.cat([x, y.parts["c"]], 1).double(), y.parts["label"]
    assert scipy.stats.binomtest(int((label == 0).sum()), N, 0.3).pvalue > 1e-4
    for k, (mean, cov) in enumerate(zip(MEANS, torch.tensor(COVS).double(), strict=True)):
        own = both[label == k]
        error = (cov.diagonal() / len(own)).sqrt()
        assert ((own.mean(0) - torch.tensor(mean)).abs() < 4 * error).all()
        # a covariance C_ij of n draws has the variance (C_ii C_jj + C_ij^2) / n
        wide = cov.diagonal()[:, None] * cov.diagonal() + cov**2
        assert ((own.T.cov() - cov).abs() < 4 * (wide / len(own)).sqrt()).all()


def test_batches_are_functions_of_seed_and_step():
    data = pairs(batch_size=10)
    x, y = data.batch(1, 7)
    assert set(y.parts) == {"c"}
    again, condition = pairs(batch_size=10).batch(1, 7, slice(4, 10))
    assert torch.equal(again, x[4:]) and torch.equal(condition.parts["c"], y.parts["c"][4:])
    xs, ys, _ = data.batches(1, range(6, 8))
    assert torch.equal(xs[10:], x) and torch.equal(ys.parts["c"][10:], y.parts["c"])
    first, other = (part(20)[1].parts["c"] for part in (data.held_out, data.examples))
    assert not torch.equal(first, other)
    whole, part = data.sample(0, 200, 3)[1], data.sample(70, 150, 3)[1]
    assert torch.equal(part.parts["c"], whole.parts["c"][70:150])


def test_forms_and_moments_are_of_their_own_coordinates():
    data = pairs()
    form = data.conditions["c"]
    assert form.shape == (2,)
    x, y = data.sample(0, N, seed=2)
    c = y.parts["c"].double()
    error = c.std(0) / math.sqrt(N)
    assert ((c.mean(0) - torch.tensor(form.mean)).abs() < 4 * error).all()
    assert c.std(0).tolist() == pytest.approx(form.std, rel=0.02)
    assert data.std == pytest.approx(
        (x - x.mean(0)).double().square().mean().sqrt().item(), rel=0.02
    )
    _, means, covs = data.mixture()
    assert means.tolist() == [m[:2] for m in MEANS] and covs.shape == (2, 2, 2)
    assert [part.shape for part in data.joint()] == [(2,), (2, 4), (2, 4, 4)]
    share = scipy.stats.chi2.sf(16, 2)  # of x beyond four standard deviations of its component
    assert data.off_support(x[:2000]).double().mean() < 20 * share
    assert data.off_support(torch.tensor([[9.0, 9.0]])).all()


def test_the_exact_field_is_of_x_given_c():
    """p(x | c) of c within narrow bounds, by sample moments."""
    data = make("gmm_cond")
    field = exact(data, CondOT())
    assert set(field.conditions) == {"c"} and field.shape == (2,)
    x, y = data.sample(0, 400_000, seed=5)
    near = (y.parts["c"][:, 0] - 0.4).abs() < 0.02
    real = x[near].double()
    drawn = field.bind(Condition({"c": torch.full((len(real), 1), 0.4)}))
    drawn = drawn.sample(0, len(real), 0).double()
    for i in range(2):
        assert scipy.stats.ks_2samp(real[:, i], drawn[:, i]).pvalue > 1e-3
    part = exact(make("gmm_cond", only=[2], conditional=True), CondOT())
    alone = part.bind(Condition({"c": torch.full((4, 1), 0.4)})).sample(0, 4, 0)
    mean = torch.tensor([0.0, -1.2]) + 0.2 / 0.6 * (0.4 - 1)
    assert ((alone - mean).abs() < 4 * math.sqrt(0.4 - 0.04 / 0.6)).all()


def test_a_mixture_without_conditions_is_as_it_was():
    data = make("gmm")
    assert data.given == 0 and data.conditions == {} and data.sample(0, 3, 0)[1] is None
    assert isinstance(make("gmm", conditional=True).sample(0, 3, 0)[1], torch.Tensor)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (-1, "must be an integer >= 0"),
        (1.5, "must be an integer >= 0"),
        (True, "must be an integer >= 0"),
        (4, "must be below 4, the number of coordinates in data.means"),
    ],
)
def test_what_cannot_be_given(given, says):
    with pytest.raises(FmdiffError, match=rf"data\.given={given} {says}"):
        make("gmm", means=MEANS, cov=COVS, given=given)


def test_a_mixture_with_conditions_cannot_be_embedded():
    with pytest.raises(FmdiffError, match=r"data\.of=GMM must be .* points in the plane alone"):
        make("embedded", of=make("gmm_cond"))


def test_a_data_set_without_a_condition_has_its_mixture_as_joint():
    assert Data.joint(make("gmm4"))[1].shape == (4, 2) and make("moons").joint() is None
