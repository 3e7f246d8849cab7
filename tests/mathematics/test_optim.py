"""fmdiff.optim gives torch.optim's numbers, and states go from one to the other."""

import copy

import pytest
import torch
from torch import nn

from fmdiff import optim

OPTIONS = {"lr": 1e-2, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": 0.1, "fused": True}
CLASSES = [("Adam", OPTIONS), ("AdamW", OPTIONS), ("Adam", OPTIONS | {"amsgrad": True})]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 7), nn.SiLU(), nn.Linear(7, 2))


def steps(net, optimizer, ks):
    for k in ks:
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + k)
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(k))
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()


def equal(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(("name", "options"), CLASSES)
def test_weights_are_those_of_torch(name, options):
    nets = network(), network()
    for net, module in zip(nets, (optim, torch.optim), strict=True):
        steps(net, getattr(module, name)(net.parameters(), **options), range(20))
    assert equal(*nets) and not equal(nets[0], network())


def test_the_kernel_is_called_directly(monkeypatch):
    net = network()
    optimizer = optim.Adam(net.parameters(), **OPTIONS)
    steps(net, optimizer, [0])
    monkeypatch.setattr(torch.optim.Adam, "step", lambda *_: pytest.fail("the long way"))
    steps(net, optimizer, [1])


@pytest.mark.parametrize(("first", "then"), [(optim, torch.optim), (torch.optim, optim)])
def test_states_are_exchanged(first, then):
    whole, parted = network(), network()
    steps(whole, torch.optim.Adam(whole.parameters(), **OPTIONS), range(10))
    optimizer = first.Adam(parted.parameters(), **OPTIONS)
    steps(parted, optimizer, range(5))
    other = then.Adam(parted.parameters(), **OPTIONS)
    steps(network(), other, [])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(parted, other, range(5, 10))
    assert equal(whole, parted)


def test_a_state_loaded_later_is_taken():
    net, other = network(), network()
    ours, theirs = (
        optim.Adam(net.parameters(), **OPTIONS),
        torch.optim.Adam(other.parameters(), **OPTIONS),
    )
    for n, o in ((net, ours), (other, theirs)):
        steps(n, o, range(3))
        start = copy.deepcopy(o.state_dict())
        steps(n, o, range(3, 6))
        o.load_state_dict(start)
        steps(n, o, range(3, 6))
    assert equal(net, other)


def test_parameters_without_gradient_are_left_alone():
    nets = network(), network()
    for net, module in zip(nets, (optim, torch.optim), strict=True):
        optimizer = module.Adam(net.parameters(), **OPTIONS)
        steps(net, optimizer, range(2))
        net[2].requires_grad_(False)
        steps(net, optimizer, range(2, 4))
        net[2].requires_grad_(True)
        optimizer.add_param_group({"params": [extra := nn.Parameter(torch.ones(2))]})
        extra.grad = torch.ones(2)
        steps(net, optimizer, range(4, 6))
    assert equal(*nets)
