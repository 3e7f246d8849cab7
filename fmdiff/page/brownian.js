"use strict";
// Random paths of dX = -theta X dt + sigma dW. The law and the solver's coefficients are data.
(() => {
  const { ui } = fm;
  const SHOWN = 100; // paths that are drawn
  const MOST = 2000; // paths that are counted
  const FEW = 30; // paths whose ends are dots, not a histogram

  fm.scenes.brownian = (root, { data }) => {
    const { view, side, below } = ui.layout(root);
    const start = data.start, times = data.times, end = times[times.length - 1];
    const state = fm.state.brownian = { seeds: [], paths: [], noise: [] };
    let seed = 0;

    const main = ui.element("div"), ends = ui.element("div");
    view.append(main, ends);

    const theta = ui.slider({ label: "pull back θ", min: 0, max: data.thetas.length - 1, step: 1,
      value: data.thetas.indexOf(start.theta), format: i => ui.format(data.thetas[i]), oninput: () => follow() });
    const sigma = ui.slider({ label: "noise σ", min: 0, max: Math.max(3, start.sigma), step: 0.05, value: start.sigma,
      oninput: () => follow() });
    const x0 = ui.slider({ label: "start x at t = 0", min: Math.min(-4, ...start.x0), max: Math.max(4, ...start.x0),
      step: 0.1, value: start.x0[0], oninput: () => { start.x0 = [x0.value]; follow(); } });
    const steps = ui.slider({ label: "steps", min: 0, max: data.steps.length - 1, step: 1,
      value: data.steps.indexOf(200), format: i => String(data.steps[i]), oninput: () => follow() });
    const more = count => {
      for (let i = 0; i < count && state.seeds.length < MOST; i++) state.seeds.push(++seed);
      follow();
    };
    const one = ui.button({ label: "New path", look: "primary", onclick: () => more(1) });
    const many = ui.button({ label: "100 paths", onclick: () => more(100) });
    const clear = ui.button({ label: "Clear", onclick: () => { state.seeds = []; follow(); } });
    side.append(ui.row(one, many, clear), theta.root, sigma.root, x0.root, steps.root);
    const table = ui.table(["at the end", "theory", "these paths"], [], `The law at t = ${ui.format(end)}`);
    below.append(table.root);

    const plot = ui.plot(main, { x: [0, end], y: [-3, 3], label: "", xlabel: "time t (no unit)", ylabel: "position x (no unit)" });
    const histogram = ui.plot(ends, { x: [-3, 3], y: [0, 1], label: "", ratio: 0.3, xlabel: "position x at the end (no unit)", ylabel: "density" });
    plot.canvas.addEventListener("click", () => more(1));

    // Follow all paths anew: the same noise under other settings.
    const follow = () => {
      const row = Number(theta.input.value), n = data.steps[steps.value], s = sigma.value;
      const [keep, kick] = data.rows[row][steps.value];
      state.noise = state.seeds.map(number => {
        const normal = fm.normals(number);
        return Float64Array.from({ length: n }, normal);
      });
      state.paths = state.noise.map((noise, i) => {
        const path = new Float64Array(n + 1);
        path[0] = start.x0[i % start.x0.length];
        for (let k = 0; k < n; k++) path[k + 1] = keep * path[k] + s * kick * noise[k];
        return path;
      });
      const begin = start.x0[0];
      state.times = Array.from({ length: n + 1 }, (_, k) => end * k / n);
      state.mean = data.means[row].map(m => begin * m);
      state.variance = data.variances[row].map(v => s * s * v);
      Object.assign(state, { theta: data.thetas[row], sigma: s, x0: [...start.x0], steps: n });
      show();
    };

    const show = () => {
      const last = state.mean.length - 1, mean = state.mean[last], sd = Math.sqrt(state.variance[last]);
      const xs = state.paths.map(path => path[path.length - 1]), n = xs.length;
      const average = xs.reduce((a, b) => a + b, 0) / n;
      const spread = xs.reduce((a, b) => a + (b - average) ** 2, 0) / (n - 1);
      const inside = k => xs.filter(x => Math.abs(x - mean) <= k * sd).length / n;
      state.sample = { n, mean: average, variance: spread, inside: [inside(1), inside(2)] };
      const percent = share => Number.isFinite(share) ? `${(100 * share).toFixed(1)} %` : "–";
      table.fill([
        ["mean", mean, average],
        ["variance", sd * sd, n > 1 ? spread : NaN],
        ["within 1 standard deviation", percent(data.inside[0]), percent(inside(1))],
        ["within 2 standard deviations", percent(data.inside[1]), percent(inside(2))],
        ["paths", "–", String(n)],
      ]);
      const reach = Math.max(1, ...state.mean.map((m, i) => Math.abs(m) + 3.2 * Math.sqrt(state.variance[i])));
      plot.y = histogram.x = [-reach, reach];
      histogram.y = [0, sd > 0 ? 0.55 / sd : 1];
      const words = `${n} random paths of ${state.steps} steps, θ = ${ui.format(state.theta)}, σ = ${ui.format(state.sigma)}`;
      plot.canvas.setAttribute("aria-label", `Positions over time: ${words}, with the bands of one and two standard deviations. A click adds a path.`);
      histogram.canvas.setAttribute("aria-label", `Histogram of the ends of ${words}, against the normal density`);
      ui.announce(`${n} paths; mean ${ui.format(average)}, in theory ${ui.format(mean)}`);
      plot.refresh();
      histogram.refresh();
    };

    plot.draw = () => {
      const bound = k => state.mean.map((m, i) => m + k * Math.sqrt(state.variance[i]));
      plot.band(times, bound(-2), bound(2), "--blue");
      plot.band(times, bound(-1), bound(1), "--blue");
      const drawn = state.paths.slice(-SHOWN);
      drawn.forEach((path, i) => plot.line(state.times, path, i === drawn.length - 1 ? "--orange" : "--blue",
        i === drawn.length - 1 ? { size: 2.2 } : { size: 1, opacity: Math.max(0.15, 0.8 - drawn.length / 150) }));
      plot.line(times, state.mean, "--ink", { size: 1.5, dash: [5, 4] });
    };
    histogram.draw = () => {
      const last = state.mean.length - 1, mean = state.mean[last], sd = Math.sqrt(state.variance[last]);
      if (!(sd > 0)) return;
      const ends = state.paths.map(path => path[path.length - 1]), few = ends.length < FEW;
      const width = sd / 3, counts = new Map();
      for (const x of few ? [] : ends) {
        const bin = Math.floor((x - mean) / width);
        counts.set(bin, (counts.get(bin) ?? 0) + 1);
      }
      if (few) histogram.dots(ends, ends.map(() => 0.03 / sd), "--blue", { size: 5 });
      for (const [bin, k] of counts) {
        const height = k / ends.length / width, low = mean + bin * width;
        histogram.band([low, low + width], [0, 0], [height, height], "--blue", 0.45);
      }
      histogram.line(...normal(mean, sd), "--ink", { size: 1.5, dash: [5, 4] });
    };
    const normal = (mean, sd) => [data.density[0].map(z => mean + sd * z), data.density[1].map(p => p / sd)];
    more(3);
  };
})();
