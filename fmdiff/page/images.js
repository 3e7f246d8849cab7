"use strict";
// Images from noise. The steps of the solvers are programs (program.js), and the network is a
// graph; this file draws starts and noise, asks, and shows.
(() => {
  const { ui } = fm;
  const SECONDS = 3; // from noise to data
  const SIDE = 300; // pixels of a grid on the screen, at least
  const GAP = 1; // pixels between two images

  // The point at share u of the way from a to b along the sphere, for one image after the other.
  function between(a, b, u, size) {
    if (u === 0 || u === 1) return u ? b : a;
    const out = new Float64Array(a.length);
    for (let from = 0; from < a.length; from += size) {
      let [aa, bb, ab] = [0, 0, 0];
      for (let i = from; i < from + size; i++) {
        aa += a[i] * a[i];
        bb += b[i] * b[i];
        ab += a[i] * b[i];
      }
      const angle = Math.acos(ab / Math.sqrt(aa * bb));
      const [p, q] = [Math.sin((1 - u) * angle) / Math.sin(angle), Math.sin(u * angle) / Math.sin(angle)];
      for (let i = from; i < from + size; i++) out[i] = p * a[i] + q * b[i];
    }
    return out;
  }

  // A grid of images (C, H, W) with values from -1 to 1, each pixel a whole number of screen pixels.
  function grid([C, H, W], label) {
    const canvas = ui.element("canvas", { role: "img", style: "image-rendering: pixelated; display: block" });
    const figure = ui.element("figure", { style: "margin: 0; flex: 0 0 auto" }, canvas,
      ui.element("figcaption", { class: "note" }, label));
    const context = canvas.getContext("2d");
    let room = SIDE;

    function show(x, n, summary) {
      const across = Math.ceil(Math.sqrt(n));
      const down = Math.ceil(n / across);
      const [width, height] = [across * (W + GAP) - GAP, down * (H + GAP) - GAP];
      const scale = Math.max(1, Math.floor(Math.min(room, Math.max(SIDE, width)) / width));
      if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
      Object.assign(canvas.style, { width: `${scale * width}px`, height: `${scale * height}px` });
      const image = context.createImageData(width, height);
      for (let k = 0; k < n; k++) {
        const corner = Math.floor(k / across) * (H + GAP) * width + k % across * (W + GAP);
        for (let i = 0; i < H * W; i++) {
          const to = 4 * (corner + Math.floor(i / W) * width + i % W);
          for (let c = 0; c < 3; c++) {
            const value = x[(k * C + (C === 1 ? 0 : c)) * H * W + i];
            image.data[to + c] = Math.round(127.5 * (value + 1)); // clamped to 0 ... 255
          }
          image.data[to + 3] = 255;
        }
      }
      context.putImageData(image, 0, 0);
      canvas.setAttribute("aria-label", `${label}: ${summary}`);
    }
    return { figure, canvas, show, set room(pixels) { room = pixels; } };
  }

  fm.scenes.images = async (root, scene) => {
    const { data } = scene;
    const graph = await scene.graph("field");
    const size = data.shape.reduce((a, b) => a * b, 1);
    const { view, side, below } = ui.layout(root);
    const state = fm.state.images = { seed: 1, busy: true, frames: [], estimates: [], jobs: 0 };

    // The time at a share of the way.
    const at = share => {
      if (!state.times) return share;
      const [first, last] = [state.times[0], state.times[state.times.length - 1]];
      return share === 1 ? last : first + share * (last - first);
    };

    // ---- controls -------------------------------------------------------------------------------

    const solver = ui.select({ label: "solver", options: data.solvers.map((s, i) => [i, s.label]), value: 0,
      oninput: () => { fit(); compute(); } });
    const choice = () => data.solvers[Number(solver.value)];
    const steps = ui.slider({ label: "steps", min: 0, max: 1, step: 1, value: 0,
      format: i => String(choice().steps[i]), oninput: () => compute() });
    const [weakest, strongest] = data.scales ?? [0, data.strongest];
    const w = ui.slider({ label: "guidance w", min: weakest, max: strongest, step: 0.1,
      value: Math.max(1, weakest), oninput: () => compute() });
    const label = ui.select({ label: "class", value: "all", oninput: () => compute(),
      options: [["all", "every class in turn"], ...data.labels.map(y => [y, data.names[y]])] });
    const number = ui.select({ label: "images", value: 4, options: data.counts.map(n => [n, String(n)]),
      oninput: () => compute() });
    const walk = ui.slider({ label: "walk to the next noise", min: 0, max: 1, step: 0.01, value: 0,
      oninput: () => compute() });
    const fresh = ui.button({ label: "New noise", onclick: () => {
      state.seed += 1;
      walk.value = 0;
      compute();
    } });
    const player = ui.play({ seconds: SECONDS, frame: share => { time.value = share; show(share); } });
    const time = ui.slider({ label: "time t (0 noise, 1 data)", min: 0, max: 1, step: 0.005, value: 1,
      format: share => ui.format(at(share), 3), oninput: share => { player.stop(); seek(share); } });
    const progress = ui.element("progress", { max: 1, value: 0, "aria-label": "steps computed",
      style: "width: 100%; accent-color: var(--accent)" });
    const problem = ui.element("p", { class: "problem", role: "alert" });
    const noise = ui.element("p", { class: "note" });
    const words = ui.element("code");
    side.append(ui.row(player, fresh), time.root, progress, problem, noise, walk.root);
    if (data.classes) side.append(label.root, w.root);
    side.append(solver.root, steps.root, number.root);
    below.append(ui.element("p", { class: "note" }, "The same on the command line: ", words));
    const states = grid(data.shape, "the state at time t");
    const guesses = grid(data.shape, "the network's estimate of the image");
    view.append(ui.element("div", { style: "display: flex; flex-wrap: wrap; gap: 1rem" },
      states.figure, guesses.figure));

    // The slider of a solver's steps: the number that stood before, if it has that.
    const fit = () => {
      const counts = choice().steps;
      const place = counts.indexOf(state.steps);
      steps.range(0, Math.max(1, counts.length - 1), 1);
      steps.value = place < 0 ? Math.floor(counts.length / 2) : place;
    };

    // ---- the sampling ---------------------------------------------------------------------------

    const settings = () => {
      const n = Number(number.value);
      const y = Int32Array.from({ length: data.classes ? n : 0 },
        (_, i) => label.value === "all" ? data.labels[i % data.labels.length] : Number(label.value));
      return { n, y, w: data.classes ? w.value : 1, walk: walk.value, seed: state.seed,
        solver: choice().name, steps: choice().steps[steps.value],
        program: choice().programs[steps.value] };
    };

    // The answers of the network for this sampling, guided if w asks for it.
    const questions = ({ n, y, w }) => async (x, t, kind, s) => {
      const inputs = { x, t, s: s ?? t, w };
      if (!data.classes) return graph.ask(inputs, n);
      if (w === 1 || data.scales) return graph.ask({ ...inputs, y }, n);
      const twice = new Float64Array(2 * n * size);
      twice.set(x);
      twice.set(x, n * size);
      const labels = new Int32Array(2 * n).fill(data.classes);
      labels.set(y, n);
      const both = await graph.ask({ ...inputs, x: twice, y: labels }, 2 * n);
      const [guide, conditional] = [both.subarray(0, n * size), both.subarray(n * size)];
      return Float64Array.from(guide, (value, i) => value + w * (conditional[i] - value));
    };

    const draw = (n, seed) => Float64Array.from({ length: n * size }, fm.normals(seed));

    const sample = async stale => {
      const now = settings();
      const { n, program, seed } = now;
      const run = fm.program(program, questions(now));
      const eps = between(draw(n, seed), draw(n, seed + 1), now.walk, size);
      const kick = fm.normals(seed + 2 ** 31);
      const kicks = [];
      const normal = count => {
        kicks.push(Float64Array.from({ length: count }, kick));
        return kicks[kicks.length - 1];
      };
      const began = performance.now();
      const frames = [run.start(run.from(eps))];
      Object.assign(progress, { max: run.steps, value: 0 });
      tell(now);
      while (run.done < run.steps) {
        frames.push(await run.step(normal));
        if (stale()) return;
        progress.value = run.done;
        if (run.done < run.steps) picture(n, frames[run.done], run.estimates().at(-1)?.x, run.times[run.done]);
      }
      Object.assign(state, now, { eps, kicks, frames, times: run.times, estimates: run.estimates(),
        seconds: (performance.now() - began) / 1000 });
      seek(1);
    };

    // Samples anew with the controls as they are. Of many wishes at once only the last is finished.
    let running = false;
    const compute = async () => {
      state.jobs += 1;
      state.busy = true;
      player.stop();
      if (running) return;
      running = true;
      problem.textContent = "";
      try {
        for (let job = 0; job !== state.jobs;) {
          job = state.jobs;
          await sample(() => job !== state.jobs);
        }
      } catch (error) {
        problem.textContent = `The images cannot be computed here: ${error.message}`;
      }
      running = state.busy = false;
    };

    // ---- what is shown --------------------------------------------------------------------------

    const tell = ({ seed, walk: share, solver: name, steps: count, w: strength }) => {
      noise.textContent = share === 0 ? `Noise number ${seed}`
        : `From noise number ${seed} to ${seed + 1}: ${Math.round(100 * share)} % of the way`;
      const guided = strength === 1 ? "" : data.scales ? ` guidance.w=${strength}`
        : ` guidance=cfg guidance.w=${strength}`;
      const own = label.value === "all" ? "" : ` classes=${label.value}`;
      words.textContent = `fmdiff sample ${data.source} solver=${name} steps=${count}${guided}${own}`;
    };

    const picture = (n, x, guess, t) => {
      const summary = `${n} ${n === 1 ? "image" : "images"} at t = ${ui.format(t, 3)}`;
      states.show(x, n, summary);
      guesses.show(guess ?? x, n, summary);
    };

    // The last state, and the estimate from it, at a share of the way.
    const show = share => {
      const t = at(share);
      const i = state.times.findLastIndex(time => time <= t);
      const guess = state.estimates.findLast(e => e.t <= t) ?? state.estimates[0];
      Object.assign(state, { t: state.times[i], x: state.frames[i], estimate: guess?.x ?? null });
      picture(state.n, state.x, state.estimate, state.t);
    };

    // Shows a moment that stays.
    const seek = share => {
      player.at = share;
      time.value = share;
      show(share);
      const classes = data.classes ? `, class ${label.input.selectedOptions[0].text}, w = ${state.w}` : "";
      ui.announce(`${state.n} images at t = ${ui.format(state.t, 3)}${classes}, ${choice().label}, ${state.steps} steps`);
    };

    new ResizeObserver(([{ contentRect }]) => {
      states.room = guesses.room = contentRect.width;
      if (state.times) show(time.value);
    }).observe(view);
    fit();
    compute();
  };
})();
