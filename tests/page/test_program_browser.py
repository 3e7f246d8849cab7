"""program.js in a real Chromium gives what the program gives in Python."""

from pathlib import Path

import pytest
import torch
from test_program import SOLVERS, mixture, network, solver_named

from fmdiff import page
from fmdiff.page.program import State, record, total
from fmdiff.path import VP
from fmdiff.sampling import Sampler

pytestmark = pytest.mark.slow

RUN = """async ([data, eps, x0, normals]) => {
    const ask = (x, t, kind, s) => {
        const slope = kind === "x" ? 0.5 : kind === "v" ? -0.75 : 1.25;
        return x.map((value) => slope * value * value + t - (s ?? 0));
    };
    const run = fm.program(data, ask);
    const frames = [run.start(Float64Array.from(x0 ?? run.from(eps)))];
    while (run.done < run.steps) {
        frames.push(await run.step((n) => Float64Array.from(normals.shift())));
    }
    const estimates = run.estimates().map(({ t, x }) => [t, ...x]);
    const { times } = run;
    return { times, frames: frames.map((x) => [...x]), estimates, left: normals.length };
}"""
SLOPES = {"x": 0.5, "v": -0.75, "straight": 1.25}


def ask(x, t, kind, s):
    return SLOPES[kind] * x * x + t - (0 if s is None else s)


@pytest.fixture(scope="module")
def shown(chromium):
    shown = chromium.new_page()
    shown.evaluate("globalThis.fm = {}")
    shown.evaluate((Path(page.__file__).parent / "program.js").read_text())
    yield shown
    shown.close()


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("field", ["network", "mixture"])
def test_the_page_takes_the_steps_of_the_solver(shown, name, field):
    field = network(VP(), maps=True) if field == "network" else mixture(VP())
    program = record(Sampler(solver=solver_named(name), steps=6), field)
    eps = 0.5 * torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x = 2 * eps if program.scale is None else program.scale * eps + program.shift
    draws = []

    def noise(t, s):
        draws.append(torch.full((4, 2), 0.1 * len(draws) - 0.3, dtype=torch.float64))
        return draws[-1] * (s - t).sqrt()

    values = program.run(ask, x, noise)
    start = None if program.scale is not None else x.flatten().tolist()
    normals = [z.flatten().tolist() for z in draws]
    result = shown.evaluate(RUN, [program.data(), eps.flatten().tolist(), start, normals])
    assert result["left"] == 0
    assert result["times"] == [item.t for item in program.states]
    pairs = zip(program.items, values, strict=True)
    frames = [item.size * value.flatten() for item, value in pairs if isinstance(item, State)]
    assert torch.stack(frames).isfinite().all()
    exact = {"rtol": 1e-12, "atol": 1e-12}
    got = torch.tensor(result["frames"], dtype=torch.float64)
    torch.testing.assert_close(got, torch.stack(frames), **exact)
    for (t, row), (time, *estimate) in zip(program.estimates, result["estimates"], strict=True):
        assert t == time
        expected = total(row, values).flatten()
        torch.testing.assert_close(torch.tensor(estimate, dtype=torch.float64), expected, **exact)
