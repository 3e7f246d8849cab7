"""fmdiff from Python: names for objects, one's own field, start and solver, and refusals."""

import math
import subprocess
import sys

import pytest
import torch

import fmdiff
from fmdiff.build import config_folder
from fmdiff.errors import FmdiffError
from fmdiff.exact import Mixture
from fmdiff.field import FunctionField
from fmdiff.guidance import CFG
from fmdiff.path import VP, CondOT, Cosine
from fmdiff.randomness import noise
from fmdiff.sampling import Sampler
from fmdiff.schedules import Ratio
from fmdiff.solvers.runge_kutta import Euler, Heun
from fmdiff.solvers.solver import Solver

MEANS = torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=torch.float64)
F64 = {"dtype": torch.float64}


def mixture(path):
    covs = 0.2 * torch.eye(2, dtype=torch.float64).expand(2, 2, 2)
    return Mixture(path, torch.full((2,), 0.5).double(), MEANS, covs, torch.arange(2))


def names(group):
    return sorted(file.stem for file in (config_folder() / group).glob("*.yaml"))


def refusal(*args, field=None, **options):
    with pytest.raises(FmdiffError) as caught:
        fmdiff.generate(field or mixture(CondOT()), *args, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- the public face ------------------------------------------------------------------------


def test_dir_lists_the_public_names_and_each_is_there():
    public = dir(fmdiff)
    functions = {"load", "generate", "log_prob", "field", "train"}
    assert functions | {"Sampler", "FmdiffError"} <= {*public}
    assert all(getattr(fmdiff, name) is not None for name in public if name != "train")
    assert {*fmdiff.__all__} <= {*public}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fmdiff.nothing  # noqa: B018


def test_sampling_from_python_needs_neither_hydra_nor_lightning():
    code = (
        "import sys, torch, fmdiff\n"
        "field = fmdiff.field(lambda x, t: -x, 'cosine', (2,))\n"
        "words = dict(solver='adams', schedule='ratio', guidance='none', path='vp', steps=3)\n"
        "made = fmdiff.Sampler(**words).draw(field, eps=torch.zeros(3, 2))\n"
        "fmdiff.log_prob(field, made.x, steps=2)\n"
        "sys.exit(bool({'hydra', 'lightning', 'matplotlib', 'torchvision'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- names in place of objects --------------------------------------------------------------


@pytest.mark.parametrize("solver", sorted({*names("solver")} - {"jump", "fitted"}))
def test_solvers_by_name(solver):
    one = fmdiff.generate(mixture(CondOT()), 3, solver=solver, steps=4)
    spec = vars(Sampler(solver=solver))["solver"]
    assert torch.equal(one.x, fmdiff.generate(mixture(CondOT()), 3, solver=spec, steps=4).x)


@pytest.mark.parametrize(
    "schedule", [n for n in names("schedule") if n not in ("fitted", "trained")]
)
def test_schedules_by_name(schedule):
    assert fmdiff.generate(mixture(CondOT()), 3, schedule=schedule).x.isfinite().all()


@pytest.mark.parametrize("path", [n for n in names("path") if n != "custom"])
def test_paths_by_name(path):
    assert fmdiff.generate(mixture(CondOT()), 3, path=path, steps=4).x.isfinite().all()


def test_names_stand_for_the_objects():
    field = mixture(CondOT())
    by_name = {"solver": "euler", "schedule": "ratio", "guidance": "cfg", "path": "cosine"}
    objects = [Euler(), Ratio(1.1, 1.4), CFG(2.0), Cosine()]
    made = [
        fmdiff.generate(field, 8, steps=5, **dict(zip(by_name, words, strict=True)))
        for words in (by_name.values(), objects)
    ]
    assert torch.equal(made[0].x, made[1].x)
    spec = {"_target_": "fmdiff.schedules.Ratio", "p": 1.1, "q": 1.4}
    by_spec = fmdiff.generate(field, 8, steps=5, **by_name | {"schedule": spec})
    assert torch.equal(by_spec.x, made[0].x)
    assert fmdiff.log_prob(field, made[0].x, solver="heun", steps=5).shape == (8,)


def test_wrong_names_are_told():
    assert "unknown solver 'huen'" in refusal(solver="huen")
    assert "unknown guidance 'cgf'" in refusal(guidance="cgf")
    for name in ("autoguidance", "classifier"):
        message = refusal(guidance=name)
        assert message.startswith(f"guidance={name}") and "give an object" in message
    assert "coordinates=curved" in refusal(coordinates="curved")
    assert "final=never" in refusal(final="never")
    assert "Heun must derive from fmdiff.guidance.Unguided" in refusal(guidance=Heun())
    assert "int must derive from fmdiff.path.Path" in refusal(path=3)
    assert "schedule=3: a law" in refusal(schedule=3)
    assert "has no times before they are fitted" in refusal(schedule="fitted")


def test_what_things_are_can_be_read():
    assert "Adams(order=5" in repr(Sampler(solver="adams")) and "CFG(w=2.0" in repr(CFG(2.0))
    assert repr(Euler()) == "Euler()"
    field = fmdiff.field(math.sin, VP(), (2,))
    assert repr(field).startswith("FunctionField(sin, kind='v', path=VP(")
    assert "classes=2" in repr(mixture(CondOT()))
    guided = Sampler(guidance=CFG(2.0)).seen(mixture(VP()), torch.ones(1))
    assert repr(guided).startswith("Along(Guided(Mixture(")


# --- a plain function as a field ------------------------------------------------------------


@pytest.mark.parametrize("kind", ["v", "x", "eps", "score"])
@pytest.mark.parametrize("path", ["condot", "cosine"])
def test_a_function_is_sampled_as_the_field_it_is(path, kind):
    """Of every kind a function may predict, a solver gets the same v."""
    exact = mixture(Sampler(path=path).path)
    exact.classes = 0
    field = fmdiff.field(lambda x, t: exact.predict(x, t, kind), path, (2,), kind=kind)
    for solver in ("rk4", "dopri5", "dpmpp_2m", "euler_maruyama"):
        made = fmdiff.generate(field, 50, solver=solver, steps=60, **F64)
        eps = noise(0, 50, (2,), 0, "start")
        again = fmdiff.generate(exact, solver=solver, steps=60, eps=eps, **F64)
        if solver != "euler_maruyama":
            assert made.nfe_counted > 1
            torch.testing.assert_close(made.x, again.x, rtol=0, atol=0.1)


def test_a_function_has_a_density_and_an_interval():
    """v = 0 carries N(0, 1) to itself."""
    field = fmdiff.field(lambda x, t: 0 * x, "condot", (2,), interval=(0.1, 1.0))
    assert isinstance(field, FunctionField) and field.interval() == (0.1, 1.0)
    field = fmdiff.field(lambda x, t: 0 * x, "condot", (2,))
    x = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    wanted = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1).double()
    log_p = fmdiff.log_prob(field, x, solver="euler", coordinates="native")
    torch.testing.assert_close(log_p, wanted)
    detached = fmdiff.field(lambda x, t: torch.zeros_like(x), "condot", (2,))
    with pytest.raises(FmdiffError, match="v has no gradient with respect to x"):
        fmdiff.log_prob(detached, x)
    module = torch.nn.Bilinear(2, 1, 2)
    field = fmdiff.field(lambda x, t: module(x, t.to(x).expand(len(x), 1)), CondOT(), (2,))
    assert fmdiff.generate(field, 4).x.shape == (4, 2)


def test_a_function_that_does_not_fit_is_told():
    def short(x, t):
        return x[:, :1]

    field = fmdiff.field(short, "condot", (2,))
    message = refusal(field=field)
    assert "function short must return the shape of x_t, [64, 2], and returned [64, 1]" in message
    message = refusal(field=fmdiff.field(lambda x, t: 0.0, "condot", (2,)))
    assert "must return a tensor and returned a float" in message
    with pytest.raises(FmdiffError, match="interval="):
        fmdiff.field(short, "condot", (2,), interval=(0.5, 0.2))
    with pytest.raises(FmdiffError, match="unknown path 'curve'"):
        fmdiff.field(short, "curve", (2,))


# --- one's own start ------------------------------------------------------------------------


@pytest.mark.parametrize("path", [CondOT(), Cosine()])
@pytest.mark.parametrize("coordinates", ["straight", "native"])
def test_the_noise_of_a_seed_given_as_eps_or_as_the_state_is_the_same_start(path, coordinates):
    field = mixture(path)
    eps = noise(0, 10, (2,), 7, "start").double()
    options = {"steps": 6, "coordinates": coordinates, "batch_size": 4, **F64}
    for solver in ("heun", "euler_maruyama"):
        seeded = fmdiff.generate(field, 10, seed=7, solver=solver, **options).x
        given = fmdiff.generate(field, seed=7, eps=eps, solver=solver, **options).x
        assert torch.equal(given, seeded)
    # at t = 0 both paths are eps, whatever the mixture
    state = fmdiff.generate(field, seed=7, x_start=eps, **options).x
    torch.testing.assert_close(state, fmdiff.generate(field, 10, seed=7, **options).x)


def test_an_ode_and_an_sde_run_from_the_same_point():
    field, x_start = mixture(VP()), torch.tensor([[0.7, -0.3]]).expand(200, 2)
    options = {"steps": 60, "final": "denoise"}
    ode = fmdiff.generate(field, x_start=x_start, classes=[0], **options).x
    options["solver"] = "euler_maruyama"
    sde = fmdiff.generate(field, x_start=x_start, classes=[0], **options).x
    assert (ode - ode[0]).abs().max() < 1e-5 and sde.std(0).min() > 0.1
    states = fmdiff.generate(field, x_start=x_start, classes=[0], trajectory=True, steps=3)
    first = states.trajectory[0][0] * (field.path.alpha(torch.zeros(())) + 1)
    torch.testing.assert_close(states.trajectory[0][0], states.trajectory[0][0][:1].expand(200, 2))
    assert first.isfinite().all()


def test_starts_that_do_not_fit_are_told():
    assert "eps has shape [3, 5]: [n, 2] is needed" in refusal(eps=torch.zeros(3, 5))
    assert "n=4" in refusal(4, x_start=torch.zeros(3, 2))
    assert "x_start has shape [0, 2]" in refusal(x_start=torch.zeros(0, 2))
    assert "eps is of torch.int64" in refusal(eps=torch.zeros(3, 2).long())
    both = {"eps": torch.zeros(3, 2), "x_start": torch.zeros(3, 2)}
    assert "eps and x_start are both given" in refusal(**both)


# --- numbers and solvers that are none ------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"steps": 0}, {"steps": -3}, {"n": 0}, {"n": -1}, {"nfe": 0}, {"nfe": -2}, {"batch_size": 0}],
)
def test_numbers_below_1_are_told(options):
    [(name, value)] = options.items()
    assert refusal(**options) == f"{name}={value}: 1 or more are needed"


def test_a_solver_that_is_none_is_told():
    class Bare:
        def step(self, field, x, t, s, state, noise):
            return x, None

    class Stepless(Solver):
        pass

    class Alone(Solver):
        def step(self, field, x, t, s, state, noise):
            return x

    class Narrow(Solver):
        def step(self, field, x, t, s, state, noise):
            return x[:, :1], state

    class Doubled(Solver):
        def step(self, field, x, t, s, state, noise):
            return x.double(), state

    assert refusal(solver=Bare()) == "Bare must derive from fmdiff.solvers.solver.Solver"
    assert "Stepless must define step(self, field, x, t, s, state, noise)" in refusal(
        solver=Stepless()
    )
    assert "Alone.step must return a pair (x, state) and returned a Tensor" in refusal(
        solver=Alone()
    )
    assert "Narrow.step must return x of shape [64, 2]" in refusal(solver=Narrow())
    assert "returned shape [64, 2] and torch.float64" in refusal(solver=Doubled())


def test_a_solver_needs_its_step_alone():
    class Own(Solver):
        """Euler, written by a user."""

        def step(self, field, x, t, s, state, noise):
            return x + (s - t) * field(x, t), state

    field = mixture(CondOT())
    own = fmdiff.generate(field, 5, solver=Own(), steps=7, guidance="cfg")
    assert own.nfe_counted == own.nfe_planned == 14
    assert torch.equal(own.x, fmdiff.generate(field, 5, solver="euler", steps=7, guidance="cfg").x)
