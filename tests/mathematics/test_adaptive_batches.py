"""Adaptive steps of samples in batches: each as alone, asked as long as it is under way."""

import copy
import math

import pytest
import torch
from test_solvers import eight_gaussians, noise

import fmdiff
from fmdiff.build import build, spec_of
from fmdiff.exact import Mixture
from fmdiff.field import NetField
from fmdiff.guidance import CFG
from fmdiff.inversion import decode, encode
from fmdiff.likelihood import estimates
from fmdiff.path import EDM, VE, VP, CondOT, Cosine, LinearVP, Lipman, Polynomial, Shifted
from fmdiff.sampling import Sampler, generate
from fmdiff.solvers.adaptive import Dopri5

PATHS = {
    "condot": CondOT(),
    "polynomial": Polynomial(2),
    "lipman": Lipman(0.01),
    "cosine": Cosine(),
    "linear_vp": LinearVP(),
    "vp": VP(),
    "vp_shifted": Shifted(VP(), 3.0),
    "ve": VE(),
    "edm": EDM(0.002, 80.0, 7.0),
}


def rough(classes=0):
    """A network whose velocity oscillates in t, as those do whose features of time have 1000 t."""
    torch.manual_seed(0)
    spec = {**spec_of("model", "mlp"), "hidden": 64}
    net = build(spec, shape=(2,), classes=classes).eval().requires_grad_(False)
    for p in net.parameters():
        p.normal_(0, 1.5 / math.sqrt(p.shape[-1]))
    return NetField(net, CondOT(), "v", 1.0, 0.0, (2,), classes)


@pytest.mark.parametrize("tol", [1e-2, 1e-3])
def test_a_sample_of_a_rough_network_does_not_depend_on_its_batch(tol):
    results = {}
    for size in (1, 7, 24):
        made = generate(rough(), 24, 1, solver=Dopri5(tol, tol, 5000), batch_size=size)
        results[size] = made.x
    for size in (1, 7):
        worst = (results[size] - results[24]).abs().max().item()
        print(f"tol {tol:g}: batches of {size} and 24 differ by {worst:.1e}")
        assert worst < 1e-5


@pytest.mark.parametrize("guidance", [CFG(1), CFG(2.0), CFG(2.0, [0.3, 0.7])], ids=str)
def test_labels_follow_their_samples(guidance):
    field, how = rough(3), {"solver": Dopri5(1e-3, 1e-3, 5000), "guidance": guidance}
    together = generate(field, 10, 1, **how)
    assert together.nfe_counted < together.nfe_most  # some arrive before others
    for i in range(10):
        alone = generate(field, 1, 1, first=i, **how, classes=i % 3)
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=0, atol=1e-5)


def test_only_samples_under_way_are_asked():
    asked = []

    def fn(x, t):
        asked.append(len(x))
        return -3 * x * x.abs()  # the farther out, the stiffer

    field = fmdiff.field(fn, "condot", (40,))
    far = torch.cat([noise(5, 1).repeat(1, 20), 9 * noise(3, 2).repeat(1, 20)]).float()
    solver = Dopri5(1e-5, 1e-5, 5000)
    made = generate(field, eps=far, solver=solver)
    each = [generate(field, eps=row[None], solver=solver).nfe_counted for row in far]
    assert made.nfe_counted == sum(each) / 8 and made.nfe_most == max(each) > min(each)
    assert min(asked) < 8 and asked[0] == 8


def test_rows_that_fill_a_tile_are_no_evaluations():
    field = eight_gaussians(CondOT())
    for n in (5, 17):
        made = generate(field, n, solver=Dopri5(1e-4, 1e-4, 5000), trajectory=True)
        counted = made.nfe_counted * n
        assert counted == round(counted) and made.nfe_counted <= made.nfe_most
        alone = [
            generate(field, 1, first=i, solver=Dopri5(1e-4, 1e-4, 5000), trajectory=True)
            for i in range(n)
        ]
        assert counted == sum(one.nfe_counted for one in alone)
        x_hat = torch.cat([one.x_hat[0] for one in alone], 1)
        torch.testing.assert_close(made.x_hat[0], x_hat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("coordinates", ["native", "straight"])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_path_ends(path, coordinates, dtype):
    """Up to an end where d_beta is infinite, forwards, backwards and in several intervals."""
    means = torch.tensor([[1.0, 0.5], [-1.0, -0.5]])
    field = Mixture(path, torch.ones(2), means, torch.eye(2).expand(2, 2, 2) * 0.2)
    sampler = Sampler(solver=Dopri5(1e-4, 1e-4, 2000), coordinates=coordinates, dtype=dtype)
    made = sampler.draw(field, 4)
    fine = Sampler(solver="rk4", steps=60, dtype=torch.float64).draw(field, 4)
    torch.testing.assert_close(made.x.double(), fine.x.double(), rtol=0, atol=0.02)
    watched = sampler.draw(field, 4, trajectory=True)
    torch.testing.assert_close(watched.x, made.x, rtol=0, atol=0.02)
    x = torch.tensor([[0.9, 0.6], [0.1, -0.3]], dtype=dtype)
    got = estimates(field, x, sampler=sampler)
    at = torch.tensor(got.t, dtype=torch.float64)
    truth = field.log_prob(path.alpha(at) * x.double(), at) + 2 * path.alpha(at).log()
    torch.testing.assert_close(got.each[:, 0], truth, rtol=0, atol=0.02)
    view = sampler.seen(field, None)
    code = encode(view, x, sampler.solver, None)
    torch.testing.assert_close(decode(view, code, sampler.solver, None), x, rtol=0, atol=0.02)


def test_a_field_is_the_same_after_a_part_of_it():
    field = rough(3).bind(torch.tensor([0, 1, 2, 3]))
    part = field.select(torch.tensor([2, 0]))
    x, t = noise(4).float(), torch.full((4,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(part(x[[2, 0]], t[[2, 0]]), field(x, t)[[2, 0]])
    assert copy.copy(field).y.tolist() == [0, 1, 2, 3] and part.y.tolist() == [2, 0]
