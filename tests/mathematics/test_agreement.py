"""Agreement with independent packages: flow_matching, torchcfm, diffusers and POT."""

import math

import pytest
import torch

from fmdiff.path import VP, CondOT, Cosine, LinearVP, Polynomial


def pairs(n, *shape):
    """Data and noise, float64."""
    generator = torch.Generator().manual_seed(0)
    x, eps = torch.randn(2, n, *shape, generator=generator, dtype=torch.float64)
    return 2 + 0.5 * x, eps


def close(a, b, tolerance=1e-10):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# --- flow_matching: its X_0 is the noise and its X_1 the data, so t, alpha and sigma are ours ----


@pytest.mark.parametrize(
    ("path", "name", "keys"),
    [
        (CondOT(), "CondOTScheduler", {}),
        (Polynomial(2), "PolynomialConvexScheduler", {"n": 2}),
        (Polynomial(3.5), "PolynomialConvexScheduler", {"n": 3.5}),
        (VP(), "VPScheduler", {}),
        (VP(0.5, 12.0), "VPScheduler", {"beta_min": 0.5, "beta_max": 12.0}),
        (LinearVP(), "LinearVPScheduler", {}),
        (Cosine(), "CosineScheduler", {}),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_paths_are_the_schedulers_of_flow_matching(path, name, keys):
    schedulers = pytest.importorskip("flow_matching.path.scheduler")
    scheduler = getattr(schedulers, name)(**keys)
    t = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)
    theirs = scheduler(t)
    close(path.alpha(t), theirs.alpha_t)
    close(path.beta(t), theirs.sigma_t)
    close(path.d_alpha(t), theirs.d_alpha_t)
    close(path.d_beta(t), theirs.d_sigma_t)
    # their inverse is of alpha / sigma; sigma = sqrt(1 - exp(-T)) costs it digits near t = 1
    logsnr = path.logsnr(t)
    close(path.time_of_logsnr(logsnr), scheduler.snr_inverse((logsnr / 2).exp()), 1e-8)


@pytest.mark.parametrize("kind", ["x", "eps"])
def test_velocities_are_those_of_flow_matching(kind):
    flow_matching = pytest.importorskip("flow_matching.path")
    schedulers = pytest.importorskip("flow_matching.path.scheduler")
    path, theirs = VP(), flow_matching.AffineProbPath(schedulers.VPScheduler())
    x, eps = pairs(50, 3)
    t = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    sample = theirs.sample(x_0=eps, x_1=x, t=t)
    x_t = path.mix(x, eps, t)
    close(x_t, sample.x_t)
    close(path.mix(x, eps, t, "v"), sample.dx_t)
    convert = theirs.target_to_velocity if kind == "x" else theirs.epsilon_to_velocity
    value = x if kind == "x" else eps
    close(path.convert(value, x_t, t, kind, "v"), convert(value, x_t, t[:, None]), 1e-9)


# --- torchcfm: x0 is the noise, x1 the data ------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        ("ConditionalFlowMatcher", 0.0),
        ("TargetConditionalFlowMatcher", 0.05),
        ("VariancePreservingConditionalFlowMatcher", 0.0),
    ],
)
def test_pairs_and_targets_are_those_of_torchcfm(name, sigma):
    torchcfm = pytest.importorskip("torchcfm.conditional_flow_matching")
    from fmdiff.path import Lipman

    path = {"C": CondOT(), "T": Lipman(noise_min=0.05), "V": Cosine()}[name[0]]
    matcher = getattr(torchcfm, name)(sigma=sigma)
    x, eps = pairs(200, 3, 2, 2)
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    x_t = path.mix(x, eps, t)
    if sigma:  # this path's eps is not x0 but the noise its own sampling adds
        theirs = matcher.sample_xt(torch.full_like(eps, math.nan), x, t, eps)
    else:
        _, theirs, _ = matcher.sample_location_and_conditional_flow(eps, x, t)
    close(x_t, theirs)
    t_of_x = t[:, None, None, None]  # their formula for this path does not expand t itself
    u = matcher.compute_conditional_flow(eps, x, t_of_x, x_t)
    close(path.mix(x, eps, t, "v"), u)


# --- diffusers: discrete steps k of noise levels alphas_cumprod, alpha = sqrt of it --------------


@pytest.fixture(scope="module")
def ddpm():
    module = pytest.importorskip("diffusers.schedulers.scheduling_ddpm")
    scheduler = module.DDPMScheduler(num_train_timesteps=1000, clip_sample=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    return scheduler


# the last four levels, from k = 996, have more noise than VP at t = 0
STEPS = torch.tensor([0, 1, 10, 99, 250, 500, 900, 995])


def times(scheduler):
    """The times on VP of the same signal-to-noise ratio as STEPS."""
    return VP().time_of_logsnr(torch.logit(scheduler.alphas_cumprod[STEPS]))


def test_noising_and_velocity_are_those_of_diffusers(ddpm):
    path, t = VP(), times(ddpm)
    assert ((t > 0) & (t < 1)).all()
    x, eps = pairs(len(STEPS), 3, 4, 4)
    close(path.mix(x, eps, t), ddpm.add_noise(x, eps, STEPS))
    close(path.mix(x, eps, t, "v_sh"), ddpm.get_velocity(x, eps, STEPS))  # alpha eps - beta x


@pytest.mark.parametrize(
    ("kind", "name"), [("eps", "epsilon"), ("x", "sample"), ("v_sh", "v_prediction")]
)
def test_predictions_convert_as_in_diffusers(ddpm, kind, name):
    path = VP()
    x, eps = pairs(len(STEPS), 3, 4, 4)
    output = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).double()
    ddpm.register_to_config(prediction_type=name)
    for i, (k, t) in enumerate(zip(STEPS, times(ddpm), strict=True)):
        x_t = path.mix(x[i : i + 1], eps[i : i + 1], t)
        given = output[i : i + 1]
        theirs = ddpm.step(given, k, x_t).pred_original_sample
        close(path.convert(given, x_t, t, kind, "x"), theirs, 1e-9)


def test_vp_is_the_limit_of_the_discrete_diffusion(ddpm):
    """alpha^2 = prod(1 - rate_i), and the 1,000 rates sum up to VP's integral at t = 0.

    So log alpha^2 differs there by sum rate_i^2 / 2 = 0.067, and alpha^2 by 0.0008 at most.
    """
    t = 1 - torch.arange(1, 1001).double() / 1000
    ours, theirs = VP().alpha(t) ** 2, ddpm.alphas_cumprod
    assert (ours - theirs).abs().max() < 1e-3
    gap = ours.log() - theirs.log()
    assert gap[-1] == pytest.approx((ddpm.betas.double() ** 2).sum().item() / 2, rel=0.02)
    assert gap.abs().max() < 0.07
    assert (VP().logsnr(t) - torch.logit(theirs)).abs().max() < 0.1  # at k = 0: half a step


# --- POT: exact optimal transport ----------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (1, 4, 4)])
def test_ot_pairs_have_the_cost_of_pot(shape):
    ot = pytest.importorskip("ot")
    from fmdiff.coupling import OT, transport_cost

    x, eps = pairs(128, *shape)
    index = OT()(x, eps, None, 0, 0)
    assert sorted(index.tolist()) == list(range(128))
    weights = torch.full((128,), 1 / 128, dtype=torch.float64)
    cost = ot.emd2(weights, weights, ot.dist(x.flatten(1), eps.flatten(1)))
    close(transport_cost(x, eps[index]), cost)
    assert cost < 0.95 * transport_cost(x, eps)
