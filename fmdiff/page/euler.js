"use strict";
// Solvers step by step against the exact solution, with the table of `fmdiff simulate`.
(() => {
  const { ui } = fm;
  const COLOURS = { euler: "--orange", midpoint: "--purple", heun: "--green", rk4: "--blue" };

  fm.scenes.euler = (root, { data }) => {
    const { view, side, below } = ui.layout(root);
    const state = fm.state.euler = { problem: "" };
    const last = data.methods.at(-1);
    let spec, formulas = [], fresh = true;

    const choice = ui.select({ label: "system", options: data.systems.map((s, i) => [i, s.text]), oninput: () => open() });
    const theta = ui.slider({ label: "rate θ", min: -3, max: 5, step: 0.1, value: 1, oninput: () => solve() });
    const texts = [1, 2].map(i => ui.text({ label: "", value: "", oninput: () => read() }));
    const x0 = [1, 2].map(i => ui.slider({ label: `start x${i}`, min: -5, max: 5, step: 0.1, value: 1, oninput: () => solve() }));
    const end = ui.slider({ label: "end time T", min: 0.5, max: 10, step: 0.5, value: 1, oninput: () => solve() });
    const steps = ui.slider({ label: "steps n", min: 1, max: 50, step: 1, value: 4, oninput: () => { fresh = true; solve(); } });
    const upto = ui.slider({ label: "steps shown", min: 0, max: 4, step: 1, value: 4, oninput: () => show() });
    const play = ui.play({ label: "Play", seconds: 3, frame: share => {
      upto.value = Math.round(share * steps.value);
      show();
    } });
    const back = ui.button({ label: "Step back", onclick: () => { upto.value -= 1; show(); } });
    const forth = ui.button({ label: "Step", onclick: () => { upto.value += 1; show(); } });
    const toggles = data.methods.map((m, i) => ui.toggle({ label: m.label, value: i === 0, colour: COLOURS[m.name], oninput: () => show() }));
    const method = ui.select({ label: "the steps of", options: data.methods.map((m, i) => [i, m.label]), value: 0, oninput: () => {
      toggles[method.value].value = true;
      show();
    } });
    choice.root.hidden = data.systems.length === 1;
    side.append(choice.root, ...texts.map(t => t.root), theta.root, ...x0.map(s => s.root), end.root, steps.root,
      upto.root, ui.row(play, back, forth), ui.group("methods, beside the exact solution (dashed)", ...toggles));

    const box = ui.element("div"), listing = ui.element("div");
    view.append(box);
    side.after(ui.element("div", { class: "late" }, method.root, listing));
    const plot = ui.plot(box, { x: [0, 1], y: [0, 1], label: "" });
    let table = null;
    const errors = ui.table(["method", "evaluations", "x at the end", "error", "of the exact value", "error of twice the steps", "order seen"], [],
      "The end of each method");
    below.append(errors.root);

    const names = base => spec.d === 1 ? [base] : [`${base}1`, `${base}2`];
    const open = () => {
      play.stop();
      spec = data.systems[choice.value];
      spec.d = spec.x0.length;
      theta.root.hidden = !spec.matrix;
      if (spec.matrix) theta.value = spec.theta;
      texts.forEach((text, i) => {
        text.root.hidden = !spec.formulas || i >= spec.d;
        text.root.firstChild.textContent = spec.d === 1 ? "u(x, t) =" : `u${i + 1}(x1, x2, t) =`;
        text.value = spec.formulas?.[i] ?? "";
      });
      x0.forEach((slider, i) => {
        slider.root.hidden = i >= spec.d;
        slider.root.firstChild.textContent = `start ${names("x")[i]}`;
        const start = spec.x0[i] ?? 0, reach = Math.max(5, Math.ceil(Math.abs(start)));
        slider.range(-reach, reach, 0.1);
        slider.value = start;
      });
      end.range(0.5, Math.max(10, spec.end), 0.5);
      if (spec.end % 0.5) end.range(spec.end / 10, 10 * spec.end, spec.end / 10);
      end.value = spec.end;
      table = ui.table(["step", "t", ...["x", "u", "x_next", "exact"].flatMap(names), "error"], [], "The steps, as fmdiff simulate prints them", 6);
      listing.replaceChildren(table.root);
      fresh = true;
      read();
    };

    const read = () => {
      const read = [];
      state.problem = "";
      for (const [i, text] of texts.entries()) {
        text.problem = "";
        if (!spec.formulas || i >= spec.d) continue;
        try {
          read.push(fm.formula(text.value, [...names("x"), "t"], data.grammar, names("u")[i]));
        } catch (error) {
          text.problem = state.problem = error.message;
        }
      }
      if (state.problem) return;
      formulas = read;
      solve();
    };

    // ---- the solutions ----------------------------------------------------------------------

    const solve = () => {
      const n = steps.value, T = end.value, start = Float64Array.from(x0.slice(0, spec.d), s => s.value);
      const u = fm.velocity({ ...spec, theta: () => theta.value, formulas });
      // the exact solution at the ends of n steps: fine steps of order 4, as in Python
      const exact = n => {
        const fine = Math.max(data.span, Math.ceil(data.reference / n));
        return { all: fm.follow(last, u, start, fm.grid(0, T, n * fine)), fine };
      };
      const { all, fine } = exact(n);
      state.exact = all.filter((_, k) => k % fine === 0);
      state.curve = { x: all.map(x => [...x]), t: fm.grid(0, T, n * fine) };
      state.times = fm.grid(0, T, n);
      const gap = (x, y) => Math.hypot(...x.map((v, i) => v - y[i]));
      state.methods = data.methods.map(m => {
        const states = fm.follow(m, u, start, state.times);
        const twice = fm.follow(m, u, start, fm.grid(0, T, 2 * n)).at(-1);
        const error = gap(states[n], state.exact[n]), half = gap(twice, state.exact[n]);
        return { name: m.name, states, velocities: states.map((x, k) => u(x, state.times[k])), error, half,
          errors: states.map((x, k) => gap(x, state.exact[k])), evaluations: n * m.b.length, order: Math.log2(error / half) };
      });
      Object.assign(state, { system: spec.name, theta: theta.value, x0: [...start], steps: n, end: T, size: Math.hypot(...state.exact[n]) });
      upto.range(0, n, 1);
      if (fresh) upto.value = n;
      fresh = false;
      show();
    };

    // ---- what is shown ----------------------------------------------------------------------

    const shown = () => state.methods.filter((_, i) => toggles[i].value);
    const show = () => {
      const k = upto.value, n = steps.value, chosen = state.methods[method.value];
      state.shown = { steps: k, methods: shown().map(m => m.name) };
      if (!play.playing) play.at = k / n;
      back.root.disabled = k === 0;
      forth.root.disabled = k === n;
      const row = i => [i + 1, state.times[i], ...chosen.states[i], ...chosen.velocities[i], ...chosen.states[i + 1],
        ...state.exact[i + 1], chosen.errors[i + 1]];
      state.table = Array.from({ length: k }, (_, i) => row(i));
      table.fill(state.table);
      const point = x => [...x].map(v => ui.format(v)).join(", ");
      errors.fill(state.methods.map((m, i) => [data.methods[i].label, m.evaluations, point(m.states[n]), m.error,
        state.size > 0 ? `${ui.format(100 * m.error / state.size, 3)} %` : "–", m.half, m.error > 1e-11 ? ui.format(m.order, 3) : "–"]));
      const words = `${shown().map((m, i) => m.name).join(", ") || "no method"}, ${k} of ${n} steps of h = ${ui.format(end.value / n)}`;
      plot.canvas.setAttribute("aria-label", `${spec.d === 1 ? "x over time" : "The trajectory in the plane"}: the exact solution and ${words}`);
      ui.announce(`${data.methods[method.value].label}: x = ${point(chosen.states[k])} at t = ${ui.format(state.times[k])}, error ${ui.format(chosen.errors[k])}`);
      frame();
      plot.refresh();
    };
    const frame = () => {
      const seen = [...state.curve.x, ...shown().flatMap(m => m.states)];
      const span = i => {
        const values = seen.map(x => x[i]).filter(Number.isFinite);
        const lo = Math.min(0, ...values), hi = Math.max(0, ...values), pad = 0.06 * (hi - lo) || 1;
        return [lo - pad, hi + pad];
      };
      if (spec.d === 1) {
        plot.x = [0, end.value];
        plot.y = span(0);
        plot.labels("time t (no unit)", "x (no unit)");
        plot.shape(0.62);
      } else {
        const half = Math.max(...[0, 1].flatMap(i => span(i).map(Math.abs)));
        plot.x = plot.y = [-half, half];
        plot.labels("x1 (no unit)", "x2 (no unit)");
        plot.shape(1);
      }
    };
    plot.draw = () => {
      const across = (states, times) => spec.d === 1 ? times : states.map(x => x[0]);
      const up = states => states.map(x => x[spec.d - 1]);
      plot.line(across(state.curve.x, state.curve.t), up(state.curve.x), "--ink", { size: 2, dash: [6, 4] });
      const k = upto.value;
      for (const m of shown()) {
        const states = m.states.slice(0, k + 1), times = state.times.slice(0, k + 1), colour = COLOURS[m.name];
        plot.line(across(states, times), up(states), colour, { size: 2 });
        plot.dots(across(states, times), up(states), colour, { size: 5, ring: true });
        if (k === steps.value) continue;
        // where the velocity at this state would lead
        const h = end.value / steps.value, [a, v] = [m.states[k], m.velocities[k]];
        const ahead = [a, a.map((x, i) => x + h * v[i])];
        plot.line(across(ahead, [state.times[k], state.times[k] + h]), up(ahead), colour, { size: 1.5, dash: [2, 3] });
      }
    };
    open();
  };
})();
