"use strict";
// Particles from noise to data. The steps of the solvers are programs (program.js), and the field
// is a graph; this file draws starts and noise, asks, and shows.
(() => {
  const { ui } = fm;
  const COLOURS = ["--blue", "--orange", "--green", "--purple", "--brown"];
  const TRAILS = 200; // particles whose way is drawn
  const SECONDS = 4; // from noise to data
  const BINS = 40; // of the histograms of a line
  const STRIP = 0.17; // the room of these beside the time from 0 to 1

  // The mean and the standard deviation of each coordinate of points.
  const moments = (points, d) => Array.from({ length: d }, (_, k) => {
    const own = points.filter((_, i) => i % d === k);
    const mean = own.reduce((a, b) => a + b, 0) / own.length;
    return [mean, Math.sqrt(own.reduce((a, b) => a + (b - mean) ** 2, 0) / own.length)];
  });

  const column = (points, d, k, rows) => rows.map(i => points[d * i + k]);

  fm.scenes.sampler = async (root, scene) => {
    const { data } = scene, graph = await scene.graph("field"), d = data.low.length;
    const { view, side, below } = ui.layout(root);
    let shown = null; // the particles by colour, and the data under them
    const state = fm.state.sampler = { seed: 1, job: 0, busy: true, frames: [] };

    const ends = () => [state.times[0], state.times[state.times.length - 1]];
    // The time at a share of the way.
    const at = share => {
      if (!state.times) return share;
      const [first, last] = ends();
      return share === 1 ? last : first + share * (last - first);
    };

    // ---- controls -----------------------------------------------------------------------------

    const again = () => compute();
    const solver = ui.select({ label: "solver", options: data.solvers.map((s, i) => [i, s.label]), value: 0,
      oninput: () => { fit(); again(); } });
    const chosen = () => data.solvers[solver.value];
    const steps = ui.slider({ label: "steps", min: 0, max: 1, step: 1, value: 0,
      format: i => String(chosen().steps[i]), oninput: again });
    const sigma = ui.slider({ label: "noise σ of the SDE", min: 0, max: 1, step: 1, value: 0,
      format: i => chosen().sigmas.length ? ui.format(chosen().sigmas[i]) : "–", oninput: again });
    const [weakest, strongest] = data.scales ?? [0, data.strongest];
    const w = ui.slider({ label: "guidance w", min: weakest, max: strongest, step: 0.1,
      value: Math.max(1, weakest), oninput: again });
    const everyone = [["all", "every class in turn"]];
    const label = ui.select({ label: "class", value: "all", oninput: again,
      options: everyone.concat(data.labels.map(y => [y, data.names[y]])) });
    const number = ui.slider({ label: "particles", min: Math.min(100, data.particles), max: data.most, step: 100,
      value: data.particles, oninput: again });
    const player = ui.play({ seconds: SECONDS, frame: share => { time.value = share; show(share); } });
    const fresh = ui.button({ label: "New noise", onclick: () => { state.seed += 1; compute(true); } });
    const time = ui.slider({ label: "time t (0 noise, 1 data)", min: 0, max: 1, step: 0.005, value: 0,
      format: share => at(share).toFixed(3), oninput: share => { player.stop(); seek(share); } });
    const trails = ui.toggle({ label: "trajectories of the particles", oninput: () => plot.refresh() });
    const estimates = ui.toggle({ label: "the field's estimate of the data", colour: "--red",
      oninput: () => plot.refresh() });
    const progress = ui.element("progress", { max: 1, value: 0, "aria-label": "steps computed",
      style: "width: 100%; accent-color: var(--accent)" });
    const words = ui.element("code"), problem = ui.element("p", { class: "problem", role: "alert" });
    side.append(ui.row(player, fresh), time.root, progress, problem, solver.root, steps.root, sigma.root);
    if (data.classes) side.append(label.root, w.root);
    side.append(number.root, trails.root, estimates.root);
    const cost = ui.element("span");
    const note = ui.element("p", { class: "note" }, cost, " The same on the command line: ", words);
    const axes = d === 1 ? ["x"] : ["x₁", "x₂"];
    const heads = axes.flatMap(name => [`mean of ${name}`, `spread of ${name}`]);
    const table = ui.table(["", ...heads], [], "Means and standard deviations (no unit)");
    below.append(table.root, note);

    const range = (slider, list, wish) => {
      const place = list.indexOf(wish);
      slider.range(0, Math.max(0, list.length - 1), 1);
      slider.value = place < 0 ? Math.floor(list.length / 2) : place;
      slider.input.disabled = list.length < 2;
    };
    // The sliders of a solver: the same number of steps as before, if it has that.
    const fit = () => {
      range(steps, chosen().steps, state.steps ?? 16);
      range(sigma, chosen().sigmas, state.sigma ?? 0.5);
    };

    // ---- the sampling -------------------------------------------------------------------------

    // Labels of n particles, one class or all in turn.
    const labels = n => Int32Array.from({ length: data.classes ? n : 0 },
      (_, i) => label.value === "all" ? data.labels[i % data.labels.length] : Number(label.value));

    // The answers of the field for this sampling, guided if w asks for it.
    const questions = ({ n, y, w }) => async (x, t, kind, s) => {
      const inputs = { x, t, s: s ?? t, w };
      if (!data.classes) return graph.ask(inputs, n);
      const conditional = await graph.ask({ ...inputs, y }, n);
      if (w === 1 || data.scales) return conditional;
      const guide = await graph.ask({ ...inputs, y: new Int32Array(n).fill(data.classes) }, n);
      return guide.map((value, i) => value + w * (conditional[i] - value));
    };

    // The states at the first time: noise, or draws from a pool for a field that needs more.
    const begin = (program, run, n, y, normal) => {
      if (program.pool === null) return run.from(Float64Array.from({ length: n * d }, normal));
      const pool = data.pools[program.pool], rows = pool.x.length / d;
      const x = new Float64Array(n * d);
      for (let i = 0; i < n; i++) {
        // the length of a pair of normal numbers is uniform in this measure
        let row = Math.floor(rows * Math.exp(-(normal() ** 2 + normal() ** 2) / 2));
        while (pool.y.length && pool.y[row] !== y[i]) row = (row + 1) % rows;
        for (let k = 0; k < d; k++) x[d * i + k] = pool.x[d * row + k];
      }
      return x;
    };

    const settings = () => {
      const { name, steps: counts, sigmas, programs } = chosen();
      const program = programs[sigmas.length ? Number(sigma.input.value) : 0][Number(steps.input.value)];
      const n = number.value, y = labels(n), strength = data.classes ? w.value : 1;
      const evaluations = program.items.filter(item => item.row && item.size === undefined).length
        * (strength === 1 || data.scales ? 1 : 2);
      const own = { name, steps: counts[Number(steps.input.value)], sigma: sigmas[Number(sigma.input.value)] ?? null };
      return { program, n, y, w: strength, class: label.value, evaluations, ...own };
    };

    const commands = ({ name, steps, sigma, w, class: y }) => [
      `solver=${name}`, sigma === null ? "" : `solver.diffusion=${sigma}`, `steps=${steps}`,
      w === 1 ? "" : `guidance=cfg guidance.w=${w}`, y === "all" ? "" : `classes=${y}`,
    ].filter(Boolean).join(" ");

    // Samples anew. The picture stays at its time, or begins to move if `move` says so.
    const compute = (move = false) => sample(move).catch(error => {
      problem.textContent = `The particles cannot be computed here: ${error.message}`;
    });

    const sample = async move => {
      const job = ++state.job, now = settings(), { program, n, y } = now;
      player.stop();
      state.busy = true;
      progress.style.visibility = "visible";
      words.textContent = `fmdiff sample ${data.source} ${commands(now)}`;
      cost.textContent = `Each particle costs ${now.evaluations} evaluations of the field.`;
      const run = fm.program(program, questions(now));
      const normal = fm.normals(state.seed), kick = fm.normals(state.seed + 2 ** 31);
      const start = begin(program, run, n, y, normal), noise = [];
      const draw = count => {
        noise.push(Float64Array.from({ length: count }, kick));
        return noise[noise.length - 1];
      };
      const frames = [run.start(start)], began = performance.now();
      Object.assign(progress, { max: run.steps, value: 0 });
      while (run.done < run.steps) {
        frames.push(await run.step(draw));
        if (job !== state.job) return;
        progress.value = run.done;
      }
      Object.assign(state, now, { start, noise, frames, times: run.times, estimates: run.estimates() });
      shown = { groups: groups(), under: dataRows() };
      Object.assign(state, { busy: false, seconds: (performance.now() - began) / 1000 });
      progress.style.visibility = "hidden";
      if (move && !ui.still) {
        player.at = 0;
        player.start();
      } else seek(move ? 1 : time.value);
      time.value = player.at;
    };

    // ---- the picture --------------------------------------------------------------------------

    // The last state at or before time t, and the share of the way from it to the next.
    const place = t => {
      const { times } = state;
      let i = 0;
      while (i < times.length - 2 && times[i + 1] <= t) i += 1;
      const h = times[i + 1] - times[i];
      return [i, h > 0 ? Math.min(1, (t - times[i]) / h) : 0];
    };

    // The particles at time t, on straight lines from state to state.
    const particles = t => {
      if (state.frames.length < 2) return state.frames[0];
      const [i, share] = place(t), [before, after] = [state.frames[i], state.frames[i + 1]];
      if (share === 1) return after;
      return before.map((value, k) => value + share * (after[k] - value));
    };

    const show = share => {
      state.t = at(share);
      state.x = particles(state.t);
      state.estimate = state.estimates.findLast(({ t }) => t <= state.t) ?? null;
      plot.refresh();
    };

    // Shows a moment that stays: the numbers, too.
    const seek = share => {
      player.at = share;
      time.value = share;
      show(share);
      report();
    };

    const report = () => {
      const flat = list => list.flatMap(([mean, spread]) => [mean, spread]);
      const now = moments(state.x, d), rows = [["particles", ...flat(now)]];
      if (data.points.length) {
        const own = shown.under.flatMap(i => data.points.slice(d * i, d * i + d));
        rows.push([`data${state.class === "all" ? "" : ` of class ${data.names[state.class]}`}`, ...flat(moments(own, d))]);
      }
      table.fill(rows);
      const means = now.map(([mean]) => ui.format(mean, 3)).join(", ");
      const summary = `${state.n} particles at t = ${ui.format(state.t, 3)}: mean ${means}, spread ${now.map(([, sd]) => ui.format(sd, 3)).join(", ")}`;
      plot.canvas.setAttribute("aria-label", `${summary}. ${chosen().label}, ${state.steps} steps.`);
      ui.announce(summary);
    };

    // The data points of the class that is shown.
    const dataRows = () => {
      const all = Array.from({ length: data.points.length / d }, (_, i) => i);
      const one = state.class !== "all" && data.pointLabels.length;
      return one ? all.filter(i => data.pointLabels[i] === Number(state.class)) : all;
    };

    // Groups of particles by colour.
    const groups = () => {
      const rows = Array.from({ length: state.n }, (_, i) => i);
      if (!data.classes || state.class !== "all") return [[COLOURS[0], rows]];
      const count = Math.min(COLOURS.length, data.labels.length);
      return Array.from({ length: count }, (_, k) => [
        COLOURS[k], rows.filter(i => data.labels.indexOf(state.y[i]) % count === k)]);
    };

    const size = () => state.n > 600 ? 1.4 : 2.2;

    const drawPlane = () => {
      const { under } = shown;
      plot.dots(column(data.points, 2, 0, under), column(data.points, 2, 1, under), "--muted", { size: 1.3, opacity: 0.5 });
      if (trails.value) ways((frame, i) => [frame[2 * i], frame[2 * i + 1]]);
      if (estimates.value && state.estimate) {
        const rows = shown.groups.flatMap(([, rows]) => rows), { x } = state.estimate;
        plot.dots(column(x, 2, 0, rows), column(x, 2, 1, rows), "--red", { size: 1.2, opacity: 0.7 });
      }
      for (const [colour, rows] of shown.groups) {
        plot.dots(column(state.x, 2, 0, rows), column(state.x, 2, 1, rows), colour, { size: size(), opacity: 0.85 });
      }
    };

    // The ways of the first particles up to now; point(frame, i, t) places one.
    const ways = point => {
      for (const [colour, rows] of shown.groups) way(point, colour, rows.filter(i => i < TRAILS));
    };

    const way = (point, colour, rows) => {
      const [last] = place(state.t), xs = [], ys = [];
      const add = (frame, i, t) => {
        const [a, b] = point(frame, i, t);
        xs.push(a);
        ys.push(b);
      };
      for (const i of rows) {
        for (let k = 0; k <= last; k++) add(state.frames[k], i, state.times[k]);
        add(state.x, i, state.t);
        xs.push(NaN);
        ys.push(NaN);
      }
      plot.line(xs, ys, colour, { size: 0.7, opacity: 0.5 });
    };

    const drawLine = () => {
      ways((frame, i, t) => [t, frame[i]]);
      for (const [colour, rows] of shown.groups) {
        plot.dots(rows.map(() => state.t), column(state.x, 1, 0, rows), colour, { size: size(), opacity: 0.6 });
      }
      if (estimates.value && state.estimate) plot.dots([...state.estimate.x].map(() => 1), state.estimate.x, "--red", { size: 1.2 });
      if (data.points.length) histogram(shown.under.map(i => data.points[i]), "--muted", 0.5);
      histogram(state.x, COLOURS[0], 0.4);
    };

    // A histogram that lies beside the end.
    const histogram = (xs, colour, opacity) => {
      const [lo, hi] = plot.y, width = (hi - lo) / BINS, counts = new Float64Array(BINS);
      for (const x of xs) if (x >= lo && x < hi) counts[Math.floor((x - lo) / width)] += 1;
      const most = 0.2 * xs.length; // a fifth of all fills the strip
      counts.forEach((k, bin) => {
        const reach = 1.02 + STRIP * Math.min(1, k / most), low = lo + bin * width;
        plot.band([1.02, reach], [low, low], [low + width, low + width], colour, opacity);
      });
    };

    const xs = d === 1 ? [0, 1.02 + STRIP] : [data.low[0], data.high[0]];
    const plot = ui.plot(view, { x: xs, y: [data.low[d - 1], data.high[d - 1]], ratio: d === 1 ? 0.62 : 1,
      label: "Particles on their way from noise to data",
      xlabel: d === 1 ? "time t (0 noise, 1 data; no unit)" : "x₁ (no unit)", ylabel: d === 1 ? "x (no unit)" : "x₂ (no unit)",
      draw: () => { if (state.frames.length) (d === 1 ? drawLine : drawPlane)(); } });

    fit();
    compute(true);
  };
})();
