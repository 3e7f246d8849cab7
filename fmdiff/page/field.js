"use strict";
// The explorer of vector fields in the plane. A particle is dropped at a place and a time; its way
// through that point is computed to both ends of time, so that the slider can go anywhere.
(() => {
  const { ui } = fm;
  const APART = 38; // pixels between two arrows, about
  const MOST = 200; // particles
  const NEAR = 16; // pixels within which a particle is taken
  const FAR = 1e4; // where a particle is no longer followed

  fm.scenes.field = async (root, scene) => {
    const { data } = scene;
    const { view, side } = ui.layout(root);
    const graphs = {};
    for (const name of Object.keys(scene.graphs)) graphs[name] = await scene.graph(name);
    const state = fm.state.field = { particles: [], problem: "" };
    let spec, u, times, cursor = [0, 0], held = null;

    // ---- controls ---------------------------------------------------------------------------

    const choice = ui.select({ label: "field", options: data.fields.map((f, i) => [i, f.text]), oninput: () => open() });
    const theta = ui.slider({ label: "rate θ", min: -4, max: 4, step: 0.1, value: 1, oninput: () => retrace() });
    const texts = [1, 2].map(i => ui.text({ label: `u${i}(x1, x2, t) =`, value: "", oninput: () => read() }));
    const label = ui.select({ label: "class", options: [], oninput: () => retrace() });
    const clock = ui.slider({ label: "time t", min: 0, max: 1, step: 1, value: 0,
      format: k => times ? ui.format(times[k], 3) : "0", oninput: () => { play.stop(); move(clock.value); } });
    const play = ui.play({ label: "Play", seconds: 4, frame: share => {
      const k = share * spec.steps;
      if (clock.value !== Math.floor(k)) clock.value = Math.floor(k);
      move(k);
    } });
    // a field leads noise to data, and particles start as noise; those of a system start anywhere
    const scatter = ui.button({ label: "Drop 20", onclick: () => {
      const n = state.particles.length, normal = fm.normals(n + 1), far = spec.x[1] / 2.5;
      play.stop();
      if (spec.noise) clock.value = state.k = 0;
      drop(spec.noise ? Array.from({ length: 20 }, (_, i) => spec.noise[(n + i) % spec.noise.length])
        : Array.from({ length: 20 }, () => [far * normal(), far * normal()]));
    } });
    const clear = ui.button({ label: "Clear", onclick: () => { play.stop(); state.particles = []; move(state.k); } });
    const ways = ui.toggle({ label: "whole trajectories", value: true, oninput: () => plot.refresh() });
    const points = ui.toggle({ label: "samples of the data", value: true, colour: "--green", oninput: () => plot.refresh() });
    const longest = ui.element("p", { class: "note" });
    choice.root.hidden = data.fields.length === 1;
    side.append(choice.root, ...texts.map(t => t.root), theta.root, label.root, clock.root,
      ui.row(play, scatter, clear), ui.group("", ways, points), longest);

    const plot = ui.plot(view, { x: [-1, 1], y: [-1, 1], ratio: 1, interactive: true, xlabel: "x1 (no unit)", ylabel: "x2 (no unit)",
      label: "The plane with its arrows. A click drops a particle, a drag moves it. Arrow keys move the cross, Enter drops a particle at it, Delete takes the last one away." });
    view.append(ui.element("p", { class: "note" },
      "Click to drop, drag to move. By keyboard: arrow keys move the cross, Enter drops a particle at it, Delete takes the last one away."));

    // ---- the field --------------------------------------------------------------------------

    const open = () => {
      play.stop();
      spec = data.fields[choice.value];
      times = fm.grid(...spec.t, spec.steps);
      for (const [control, there] of [[theta, spec.matrix], [texts[0], spec.formulas], [texts[1], spec.formulas],
        [label, spec.classes], [points, spec.points?.length]]) control.root.hidden = !there;
      if (spec.matrix) theta.value = spec.theta;
      if (spec.formulas) spec.formulas.forEach((text, i) => { texts[i].value = text; });
      if (spec.classes) {
        label.input.replaceChildren(...spec.classes.map((name, i) => ui.element("option", { value: i }, name)));
        label.value = spec.classes.length - 1;
      }
      plot.x = spec.x;
      plot.y = spec.y;
      clock.range(0, spec.steps, 1);
      clock.value = 0;
      play.at = 0;
      state.k = 0;
      state.particles = [];
      read();
      drop(spec.starts);
    };

    // Read the formulas; while one is wrong, the field before it stays.
    const read = () => {
      let formulas = [];
      state.problem = "";
      for (const [i, text] of texts.entries()) {
        text.problem = "";
        if (!spec.formulas) continue;
        try {
          formulas.push(fm.formula(text.value, ["x1", "x2", "t"], data.grammar, `u${i + 1}`));
        } catch (error) {
          text.problem = state.problem = error.message;
        }
      }
      if (state.problem) return;
      const more = t => Object.fromEntries(spec.inputs.map(name => [name, { s: t, w: spec.w, y: Number(label.value) }[name]]));
      u = fm.velocity({ ...spec, theta: () => theta.value, formulas, graph: graphs[spec.graph], more });
      retrace();
    };

    // ---- particles --------------------------------------------------------------------------

    // The ways of points that are at x (B, 2) at times[k]: an array of states for all times.
    const trace = (x, k) => {
      const stop = state => state.map(v => Math.abs(v) < FAR ? v : NaN);
      const forth = fm.follow(data.method, u, x, times.slice(k)).map(stop);
      const back = fm.follow(data.method, u, x, times.slice(0, k + 1).reverse()).map(stop);
      return [...back.reverse().slice(0, -1), ...forth];
    };
    const put = (particles) => {
      for (const k of new Set(particles.map(p => p.k))) {
        const group = particles.filter(p => p.k === k);
        const states = trace(Float64Array.from(group.flatMap(p => p.at)), k);
        group.forEach((p, i) => { p.way = states.map(s => [s[2 * i], s[2 * i + 1]]); });
      }
    };
    const retrace = () => {
      put(state.particles);
      move(state.k);
    };
    const drop = places => {
      const room = places.slice(0, MOST - state.particles.length);
      const k = Math.floor(state.k);
      const more = room.map(at => ({ at, k, way: [] }));
      put(more);
      state.particles.push(...more);
      move(k);
      ui.announce(`${state.particles.length} particles`);
    };
    // Show the time with number k, which may lie between two.
    const move = k => {
      state.k = k;
      const low = Math.floor(k), high = Math.min(low + 1, spec.steps), share = k - low;
      state.t = times[low] + share * (times[high] - times[low]);
      state.positions = state.particles.map(({ way }) => way[low].map((v, i) => v + share * (way[high][i] - v)));
      Object.assign(state, { field: spec.text, theta: theta.value, times });
      if (!play.playing) play.at = k / spec.steps;
      plot.refresh();
    };

    // ---- the picture ------------------------------------------------------------------------

    plot.draw = () => {
      if (spec.points && points.value) plot.dots(spec.points.map(p => p[0]), spec.points.map(p => p[1]), "--green", { size: 2, opacity: 0.55 });
      const cells = Math.max(9, Math.round(plot.width / APART));
      const middles = (lo, hi) => fm.grid(lo, hi, cells).slice(0, -1).map(v => v + (hi - lo) / cells / 2);
      const grid = middles(...spec.x).flatMap(a => middles(...spec.y).map(b => [a, b]));
      const flat = Float64Array.from(grid.flat());
      const arrows = u(flat, state.t);
      const speeds = grid.map((_, i) => Math.hypot(arrows[2 * i], arrows[2 * i + 1]));
      const most = Math.max(...speeds.filter(Number.isFinite)), cell = (plot.px(spec.x[1]) - plot.px(spec.x[0])) / cells;
      grid.forEach(([a, b], i) => {
        // the square root shows slow places too
        const long = 0.95 * cell * Math.sqrt(speeds[i] / most) / speeds[i];
        if (speeds[i] > 0) plot.arrow(a, b, long * arrows[2 * i], long * arrows[2 * i + 1], "--muted");
      });
      state.arrows = { points: grid, velocities: arrows };
      longest.textContent = `Longest arrow: speed ${ui.format(most, 3)}. An arrow's length grows as the root of the speed.`;
      const low = Math.floor(state.k), few = state.particles.length <= 60;
      state.particles.forEach(({ way }, i) => {
        if (!ways.value) return;
        const line = (points, look) => plot.line(points.map(p => p[0]), points.map(p => p[1]), "--blue", look);
        line(way, { size: 1.5, opacity: few ? 0.8 : 0.3, dash: [2, 4] });
        line([...way.slice(0, low + 1), state.positions[i]], { size: 2, opacity: few ? 1 : 0.5 });
      });
      plot.dots(state.positions.map(p => p[0]), state.positions.map(p => p[1]), "--orange", { size: few ? 6 : 4, ring: true });
      if (document.activeElement === plot.canvas && plot.canvas.matches(":focus-visible")) cross();
    };
    const cross = () => {
      const [a, b] = cursor, r = (spec.x[1] - spec.x[0]) / 30;
      plot.line([a - r, a + r], [b, b], "--ink");
      plot.line([a, a], [b - r, b + r], "--ink");
    };

    // ---- mouse, finger and keyboard ---------------------------------------------------------

    const nearest = event => {
      const box = plot.canvas.getBoundingClientRect();
      const gaps = state.positions.map(([a, b]) => Math.hypot(plot.px(a) - event.clientX + box.left, plot.py(b) - event.clientY + box.top));
      const i = gaps.indexOf(Math.min(...gaps));
      return i >= 0 && gaps[i] < NEAR ? state.particles[i] : null;
    };
    plot.canvas.addEventListener("pointerdown", event => {
      held = nearest(event);
      if (!held) return;
      play.stop();
      clock.value = Math.floor(state.k);
      move(clock.value);
      plot.canvas.setPointerCapture(event.pointerId);
    });
    let pending = 0; // once a frame, however often the mouse tells where it is
    plot.canvas.addEventListener("pointermove", event => {
      if (!held) return;
      Object.assign(held, { at: plot.at(event), k: state.k });
      const particle = held;
      pending ||= requestAnimationFrame(() => {
        pending = 0;
        put([particle]);
        move(state.k);
      });
    });
    // a finger on a particle moves it, elsewhere it scrolls the page
    plot.canvas.addEventListener("touchstart", event => {
      if (nearest(event.touches[0])) event.preventDefault();
    }, { passive: false });
    plot.canvas.addEventListener("click", event => {
      const dragged = held;
      held = null;
      if (dragged) return;
      drop([plot.at(event)]);
      if (!ui.still && state.k < spec.steps) play.start();
    });
    plot.canvas.addEventListener("keydown", event => {
      const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }[event.key];
      const step = (spec.x[1] - spec.x[0]) / (event.shiftKey ? 8 : 40);
      if (way) {
        cursor = cursor.map((v, i) => Math.max(spec.x[0], Math.min(spec.x[1], v + way[i] * step)));
        ui.announce(`x1 ${ui.format(cursor[0], 3)}, x2 ${ui.format(cursor[1], 3)}`);
      } else if (event.key === "Enter" || event.key === " ") drop([[...cursor]]);
      else if (event.key === "Delete" || event.key === "Backspace") { state.particles.pop(); move(state.k); }
      else return;
      event.preventDefault();
      state.cursor = cursor;
      plot.refresh();
    });
    for (const name of ["focus", "blur"]) plot.canvas.addEventListener(name, () => plot.refresh());

    open();
  };
})();
