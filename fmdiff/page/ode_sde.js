"use strict";
// The ODE and the SDE of an exact field, from the same starts. Field and steps come from Python.
(() => {
  const { ui } = fm;
  const DRAWN = 60; // ways that are drawn

  fm.scenes.ode_sde = async (root, scene) => {
    const { data } = scene;
    const { view, side, below } = ui.layout(root);
    const graphs = [];
    for (const i of data.mixtures.keys()) graphs.push(await scene.graph(`mixture${i}`));
    const state = fm.state.ode_sde = { ready: false };
    let about, seed = 1, turn = 0;

    const choice = ui.select({ label: "law at t = 1", options: data.mixtures.map((m, i) => [i, m.name]), oninput: () => open() });
    const sigma = ui.slider({ label: "noise σ of the SDE", min: 0, max: data.sigmas.length - 1, step: 1,
      value: data.sigmas.indexOf(data.start.sigma), format: i => ui.format(data.sigmas[i]), oninput: () => solve() });
    const steps = ui.slider({ label: "steps", min: 0, max: data.steps.length - 1, step: 1, value: 1,
      format: i => String(data.steps[i]), oninput: () => solve() });
    const count = ui.slider({ label: "samples", min: 100, max: 1000, step: 100, value: 300, oninput: () => solve() });
    const same = ui.toggle({ label: "all from one start", value: data.start.x0.length > 0, oninput: () => { arrange(); solve(); } });
    const x0 = [1, 2].map(i => ui.slider({ label: `start x${i}`, min: -3, max: 3, step: 0.1, value: data.start.x0[i - 1] ?? 0.1, oninput: () => solve() }));
    const clock = ui.slider({ label: "time t", min: 0, max: 1, step: 1, value: 0,
      format: k => state.times ? ui.format(state.times[k], 3) : "1", oninput: () => { play.stop(); show(); } });
    const play = ui.play({ label: "Play", seconds: 3, frame: share => {
      clock.value = Math.round(share * (state.times.length - 1));
      show();
    } });
    const fresh = ui.button({ label: "New noise", onclick: () => { seed += 1; solve(); } });
    choice.root.hidden = data.mixtures.length === 1;
    side.append(choice.root, sigma.root, steps.root, count.root, same.root, ...x0.map(s => s.root), clock.root, ui.row(play, fresh));

    const pair = ui.element("div", { class: "pair" });
    const figure = title => {
      const box = ui.element("div"), head = ui.element("h3", {}, title);
      pair.append(ui.element("div", {}, head, box));
      return { box, head };
    };
    view.append(pair);
    const figures = { ode: figure("ODE, no noise"), sde: figure("SDE") };
    const plots = {};
    for (const name of ["ode", "sde"]) plots[name] = ui.plot(figures[name].box, { x: [0, 1], y: [-1, 1], label: "", ratio: 1 });
    const ends = ui.element("div");
    view.append(ends);
    const law = ui.plot(ends, { x: [-1, 1], y: [0, 1], label: "The density at t = 1, and histograms of the ends of the ODE and of the SDE",
      ratio: 0.3, xlabel: "x at t = 1 (no unit)", ylabel: "density" });
    const table = ui.table(["component", "weight", "ODE", "SDE"], [], "Shares of the samples that end nearest to each component");
    below.append(table.root);

    const arrange = () => x0.forEach((slider, i) => {
      slider.root.hidden = !same.value || i >= about.d;
      slider.root.firstChild.textContent = about.d === 1 ? "start x" : `start x${i + 1}`;
    });
    const open = () => {
      about = data.mixtures[choice.value];
      const { half } = about;
      for (const plot of Object.values(plots)) {
        plot.x = about.d === 1 ? [0, 1] : [-half, half];
        plot.y = [-half, half];
        plot.labels(...about.d === 1 ? ["time t (no unit)", "x (no unit)"] : ["x1 (no unit)", "x2 (no unit)"]);
      }
      law.x = [-half, half];
      ends.hidden = about.d !== 1;
      arrange();
      return solve();
    };

    // ---- the samples ------------------------------------------------------------------------

    const run = async (program, starts, normal) => {
      const { d } = about, graph = graphs[choice.value];
      const noise = [], walk = fm.program(program, (x, t) => graph.run({ x, t }, x.length / d));
      const states = [walk.start(starts)];
      while (walk.done < walk.steps) {
        states.push(await walk.step(n => {
          noise.push(Float64Array.from({ length: n }, normal));
          return noise.at(-1);
        }));
      }
      return { states, noise, times: walk.times };
    };
    const solve = async () => {
      const mine = ++turn, { d } = about, n = count.value;
      state.ready = false;
      await new Promise(requestAnimationFrame); // of many moves of a slider, only the last counts
      if (mine !== turn) return;
      const starts = same.value ? Float64Array.from({ length: n * d }, (_, i) => x0[i % d].value)
        : Float64Array.from(about.starts.slice(0, n * d));
      const ode = await run(data.ode[steps.value], starts);
      const sde = await run(data.sde[sigma.value][steps.value], starts, fm.normals(seed));
      if (mine !== turn) return;
      const begun = state.times !== undefined;
      Object.assign(state, { ode: ode.states, sde: sde.states, noise: sde.noise, times: ode.times, mixture: about.name,
        sigma: data.sigmas[sigma.value], steps: data.steps[steps.value], starts });
      const last = state.times.length - 1, share = begun ? clock.value / clock.input.max : 1;
      clock.range(0, last, 1);
      clock.value = Math.round(share * last);
      state.shares = [ode, sde].map(({ states }) => shares(states.at(-1)));
      state.ready = true;
      show();
    };
    // The share of the samples that end nearest to each component.
    const shares = x => {
      const { d, means } = about, counts = means.map(() => 0);
      for (let i = 0; i < x.length; i += d) {
        const gaps = means.map(m => Math.hypot(...m.map((v, j) => v - x[i + j])));
        counts[gaps.indexOf(Math.min(...gaps))] += d / x.length;
      }
      return counts;
    };

    // ---- what is shown ----------------------------------------------------------------------

    const show = () => {
      if (!state.times) return;
      const k = clock.value, percent = share => `${(100 * share).toFixed(1)} %`;
      state.k = k;
      if (!play.playing) play.at = k / (state.times.length - 1);
      figures.sde.head.textContent = `SDE, σ = ${ui.format(state.sigma)}`;
      const [ode, sde] = state.shares;
      table.fill(about.means.map((mean, i) => [`at ${mean.map(v => ui.format(v, 3)).join(", ")}`, percent(about.weights[i]), percent(ode[i]), percent(sde[i])]));
      for (const name of ["ode", "sde"]) {
        plots[name].canvas.setAttribute("aria-label", `Ways of ${Math.min(DRAWN, count.value)} samples of the ${name.toUpperCase()} up to t = ${ui.format(state.times[k], 3)}`);
        plots[name].refresh();
      }
      law.refresh();
      ui.announce(`σ = ${ui.format(state.sigma)}, t = ${ui.format(state.times[k], 3)}`);
    };
    for (const [name, colour] of [["ode", "--orange"], ["sde", "--blue"]]) {
      plots[name].draw = plot => {
        if (!state.times) return;
        const { d } = about, states = state[name], k = state.k, n = states[0].length / d;
        if (d === 2) plot.dots(about.samples.map(p => p[0]), about.samples.map(p => p[1]), "--green", { size: 2, opacity: 0.4 });
        for (let i = 0; i < Math.min(DRAWN, n); i++) {
          const way = states.slice(0, k + 1).map(x => x.subarray(d * i, d * i + d));
          plot.line(d === 1 ? state.times.slice(0, k + 1) : way.map(p => p[0]), way.map(p => p[d - 1]), colour, { size: 1.2, opacity: 0.45 });
        }
        const now = [...states[k]];
        const up = now.filter((_, i) => i % d === d - 1), across = d === 1 ? up.map(() => state.times[k]) : now.filter((_, i) => i % d === 0);
        plot.dots(across, up, colour, { size: d === 1 ? 2.5 : 3, opacity: 0.7 });
      };
    }
    law.draw = () => {
      if (!state.times || !about.density) return;
      const [grid, density] = about.density, width = 2 * about.half / 60;
      law.y = [0, 1.5 * Math.max(...density)];
      for (const [name, colour] of [["ode", "--orange"], ["sde", "--blue"]]) {
        const counts = new Array(60).fill(0), x = state[name].at(-1);
        for (const v of x) counts[Math.floor((v + about.half) / width)] += 1 / x.length / width;
        counts.forEach((p, i) => {
          const lo = -about.half + i * width;
          if (p) law.band([lo, lo + width], [0, 0], [p, p], colour, 0.4);
        });
      }
      law.line(grid, density, "--ink", { size: 1.5, dash: [5, 4] });
    };
    await open();
  };
})();
