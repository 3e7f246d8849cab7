"""Muon against torch.optim's, singular values and AdamW; the schedule-free average by its sum."""

import copy

import pytest
import torch
from torch import nn

from fmdiff import optim
from fmdiff.build import spec_of
from fmdiff.errors import FmdiffError


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        nn.Conv2d(16, 24, 3),
        nn.Flatten(),
        nn.Linear(24 * 16, 16),
        nn.Embedding(32, 16),
        nn.Linear(16, 2),
    )


def gradients(net, k):
    draws = torch.Generator().manual_seed(k)
    for p in net.parameters():
        drawn = torch.randn(p.shape, generator=draws, dtype=p.dtype)
        p.grad = torch.empty_like(p).copy_(drawn)  # in the layout of the weight, as backward does


def run(net, optimizer, steps):
    for k in steps:
        gradients(net, k)
        optimizer.step()


def muon(net, **keys):
    return optim.built(spec_of("optim", "muon") | keys, net)


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_hidden_weights_are_those_of_inner_layers():
    net = network()
    hidden, others = optim.parted(net)
    assert [id(p) for p in hidden["params"]] == [id(net[1].weight), id(net[3].weight)]
    assert len(others["params"]) == len(list(net.parameters())) - 2


@pytest.mark.parametrize("shape", [(3, 24, 40), (2, 40, 24), (1, 16, 16)])
def test_an_update_is_nearly_orthogonal(shape):
    torch.manual_seed(1)
    x = torch.randn(shape)
    u, _, vt = torch.linalg.svd(x, full_matrices=False)
    got = optim.orthogonal(x).float()
    inner = u.mT @ got @ vt.mT  # diagonal in the singular vectors of x
    s = inner.diagonal(dim1=1, dim2=2)
    small = torch.linalg.svdvals(x) < 0.02 * torch.linalg.matrix_norm(x)[:, None]
    assert ((s > 0.65) | small).all() and (s < 1.25).all()
    off = inner - torch.diag_embed(s)
    assert off.abs().max() < 0.05


def test_hidden_weights_move_as_torchs_muon_says():
    """torch.optim.Muon takes matrices alone, so convolutions are given to it as such."""
    keys = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1}
    net = network()
    matrices = [nn.Parameter(net[i].weight.detach().flatten(1).clone()) for i in (1, 3)]
    theirs = torch.optim.Muon(matrices, **keys, adjust_lr_fn="match_rms_adamw")
    ours, start = muon(net, **keys), copy.deepcopy(net)
    for k in range(5):
        gradients(net, k)
        for own, i in zip(matrices, (1, 3), strict=True):
            own.grad = net[i].weight.grad.flatten(1).clone()
        ours.step()
        theirs.step()
    for own, i in zip(matrices, (1, 3), strict=True):
        moved = (net[i].weight - start[i].weight).flatten(1)
        off = (net[i].weight.flatten(1) - own).norm() / moved.norm()
        assert off < 0.02  # products in bfloat16 of another order


def test_other_weights_are_adamws():
    net = network()
    other = copy.deepcopy(net)
    run(net, muon(net, lr=0.01, others=0.5, weight_decay=0.1), range(5))
    rest = [p for n, p in other.named_parameters() if n not in ("1.weight", "3.weight")]
    run(other, torch.optim.AdamW(rest, lr=0.005, weight_decay=0.1, fused=True), range(5))
    for (name, p), q in zip(net.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q) == (name not in ("1.weight", "3.weight")), name


@pytest.mark.parametrize("choice", ["muon", "schedule_free"])
def test_a_state_goes_on_bit_by_bit(choice):
    if choice == "schedule_free":
        pytest.importorskip("schedulefree")
    whole, parted = network(), network()
    run(whole, first := optim.built(spec_of("optim", choice), whole), range(6))
    run(parted, before := optim.built(spec_of("optim", choice), parted), range(3))
    again = network()
    again.load_state_dict(parted.state_dict())
    then = optim.built(spec_of("optim", choice), again)
    then.load_state_dict(copy.deepcopy(before.state_dict()))
    run(again, then, range(3, 6))
    assert equal(whole, again) and not equal(whole, parted)
    if choice == "schedule_free":
        pairs = zip(first.average(), then.average(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_muon_trains_channels_last_and_leaves_what_has_no_gradient():
    nets = [network(), network().to(memory_format=torch.channels_last)]
    for net in nets:
        net[3].requires_grad_(False)
        optimizer = muon(net)
        for k in range(2):
            gradients(net, k)
            net[3].weight.grad = net[3].bias.grad = None
            optimizer.step()
    assert torch.equal(nets[0][3].weight, network()[3].weight)
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "keys", [{"momentum": 1}, {"iterations": 0}, {"weight_decay": -1}, {"others": 0}]
)
def test_muon_refuses(keys):
    [key] = keys
    with pytest.raises(FmdiffError, match=rf"optim\.{key}=.* must be"):
        muon(network(), **keys)


def test_an_optimiser_that_needs_a_closure_is_refused():
    with pytest.raises(FmdiffError, match="LBFGS asks for the loss several times"):
        optim.built({"_target_": "torch.optim.LBFGS", "lr": 1.0}, network())


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (spec_of("optim", "adam"), 2),
        (spec_of("optim", "muon"), 1),
        ({"_target_": "torch.optim.SGD", "lr": 0.1}, 0),
        ({"_target_": "torch.optim.SGD", "lr": 0.1, "momentum": 0.9}, 1),
    ],
)
def test_moments_are_counted(spec, wanted):
    assert optim.moments(spec) == wanted


# --- schedule-free -------------------------------------------------------------------------------


def test_the_average_is_the_weighted_mean_of_z():
    """x after t steps is sum_k c_k z_k / sum_k c_k with c_k = (largest rate so far)^2."""
    pytest.importorskip("schedulefree")
    net = nn.Linear(3, 2).double()
    optimizer = optim.built(spec_of("optim", "schedule_free"), net)
    start = [p.detach().clone() for p in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(optimizer.average(), start, strict=True))
    rates, seen = [0.01, 0.02, 0.03, 0.03, 0.03, 0.02], []
    for k, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        gradients(net, k)
        optimizer.step()
        seen.append(optimizer.state[net.weight]["z"].clone())
    weights = torch.tensor([max(rates[: k + 1]) ** 2 for k in range(6)], dtype=torch.float64)
    wanted = torch.einsum("k,kij->ij", weights / weights.sum(), torch.stack(seen))
    torch.testing.assert_close(optimizer.average()[0], wanted, rtol=1e-10, atol=1e-12)


def test_the_average_is_what_the_package_evaluates():
    schedulefree = pytest.importorskip("schedulefree")
    ours, theirs = network(), network()
    run(ours, optimizer := optim.built(spec_of("optim", "schedule_free"), ours), range(4))
    other = schedulefree.AdamWScheduleFree(theirs.parameters(), lr=1e-3)
    other.train()
    run(theirs, other, range(4))
    assert equal(ours, theirs)
    other.eval()
    assert all(
        torch.equal(a, b) for a, b in zip(optimizer.average(), theirs.parameters(), strict=True)
    )
