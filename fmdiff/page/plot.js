"use strict";
// A picture with axes on a canvas, in the colours of the theme and as sharp as the screen.
//   const plot = fm.ui.plot(root, { x: [lo, hi], y: [lo, hi], label, xlabel, ylabel, draw });
//   plot.refresh()             draws anew, soon: the axes, then draw(plot)
//   plot.line, plot.dots ...   what draw calls, in the units of the axes
(() => {
  const ui = fm.ui;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const FONT = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif";
  const MARGIN = { left: 50, right: 12, top: 10, bottom: 42 };
  const EDGE = 7; // pixels of a dot beyond the axes

  // Round numbers in [lo, hi], about `count` of them.
  const ticks = (lo, hi, count) => {
    const raw = (hi - lo) / Math.max(1, count);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * ([1, 2, 5].find(m => m * power >= raw) ?? 10);
    const first = Math.ceil(lo / step - 1e-9);
    const last = Math.floor(hi / step + 1e-9);
    return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => +((first + i) * step).toPrecision(12));
  };

  // ratio: height by width, 1 for a plane with equal units. interactive: a reader can act on it.
  ui.plot = (root, { x, y, label, xlabel = "", ylabel = "", ratio = 0.62, interactive = false, draw }) => {
    const canvas = ui.element("canvas", interactive
      ? { class: "plot", tabindex: 0, role: "application", "aria-label": label }
      : { class: "plot", role: "img", "aria-label": label });
    root.append(canvas);
    const pen = canvas.getContext("2d");
    let width = 0, height = 0, scale = 1, planned = 0, colours = {};

    const plot = {
      canvas, pen, draw,
      x: [...x], y: [...y],
      get width() { return width; },
      get height() { return height; },
      px: value => MARGIN.left + (value - plot.x[0]) / (plot.x[1] - plot.x[0]) * (width - MARGIN.left - MARGIN.right),
      py: value => height - MARGIN.bottom - (value - plot.y[0]) / (plot.y[1] - plot.y[0]) * (height - MARGIN.top - MARGIN.bottom),
      // The point of the plane under a mouse or a finger.
      at(event) {
        const box = canvas.getBoundingClientRect();
        const u = (event.clientX - box.left - MARGIN.left) / (width - MARGIN.left - MARGIN.right);
        const v = (height - MARGIN.bottom - event.clientY + box.top) / (height - MARGIN.top - MARGIN.bottom);
        return [plot.x[0] + u * (plot.x[1] - plot.x[0]), plot.y[0] + v * (plot.y[1] - plot.y[0])];
      },
      colour(name) {
        colours[name] ??= getComputedStyle(document.documentElement).getPropertyValue(name).trim();
        return colours[name];
      },
      // A line through points (xs[i], ys[i]); it breaks where one of them is not finite.
      line(xs, ys, colour, { size = 2, dash = [], opacity = 1 } = {}) {
        pen.save();
        Object.assign(pen, { strokeStyle: plot.colour(colour), lineWidth: size, globalAlpha: opacity, lineJoin: "round" });
        pen.setLineDash(dash);
        pen.beginPath();
        let down = false;
        for (let i = 0; i < xs.length; i++) {
          const a = clamp(plot.px(xs[i])), b = clamp(plot.py(ys[i]));
          const ok = Number.isFinite(a) && Number.isFinite(b);
          if (ok) pen[down ? "lineTo" : "moveTo"](a, b);
          down = ok;
        }
        pen.stroke();
        pen.restore();
      },
      dots(xs, ys, colour, { size = 4, opacity = 1, ring = false } = {}) {
        pen.save();
        Object.assign(pen, { fillStyle: plot.colour(colour), globalAlpha: opacity, lineWidth: 1.5, strokeStyle: plot.colour("--paper") });
        for (let i = 0; i < xs.length; i++) {
          const a = plot.px(xs[i]), b = plot.py(ys[i]);
          if (!(Math.abs(a) < 1e5 && Math.abs(b) < 1e5)) continue;
          if (size < 1.5) { pen.fillRect(a - size, b - size, 2 * size, 2 * size); continue; }
          pen.beginPath();
          pen.arc(a, b, size, 0, 2 * Math.PI);
          pen.fill();
          if (ring) pen.stroke();
        }
        pen.restore();
      },
      // The area between two curves.
      band(xs, lows, highs, colour, opacity = 0.16) {
        pen.save();
        Object.assign(pen, { fillStyle: plot.colour(colour), globalAlpha: opacity });
        pen.beginPath();
        xs.forEach((value, i) => pen[i ? "lineTo" : "moveTo"](plot.px(value), clamp(plot.py(lows[i]))));
        for (let i = xs.length - 1; i >= 0; i--) pen.lineTo(plot.px(xs[i]), clamp(plot.py(highs[i])));
        pen.closePath();
        pen.fill();
        pen.restore();
      },
      // An arrow whose middle lies at (a, b), of (u, v) pixels with v upwards.
      arrow(a, b, u, v, colour, { size = 1.4, opacity = 1 } = {}) {
        const length = Math.hypot(u, v);
        if (!(length > 0.3)) return;
        const head = Math.min(5, 0.45 * length), [c, s] = [u / length, -v / length];
        const [x0, y0] = [plot.px(a) - u / 2, plot.py(b) + v / 2], [x1, y1] = [x0 + u, y0 - v];
        pen.save();
        Object.assign(pen, { strokeStyle: plot.colour(colour), lineWidth: size, globalAlpha: opacity, lineCap: "round" });
        pen.beginPath();
        pen.moveTo(x0, y0);
        pen.lineTo(x1, y1);
        pen.moveTo(x1 - head * (c - 0.6 * s), y1 - head * (s + 0.6 * c));
        pen.lineTo(x1, y1);
        pen.lineTo(x1 - head * (c + 0.6 * s), y1 - head * (s - 0.6 * c));
        pen.stroke();
        pen.restore();
      },
      // A text at (a, b).
      text(words, a, b, colour = "--ink", align = "left") {
        pen.save();
        Object.assign(pen, { fillStyle: plot.colour(colour), font: FONT, textAlign: align, textBaseline: "middle" });
        pen.fillText(words, plot.px(a), plot.py(b));
        pen.restore();
      },
      labels(across, up) { [xlabel, ylabel] = [across, up]; },
      shape(number) {
        if (number === ratio) return;
        ratio = number;
        resize();
      },
      refresh() {
        planned ||= requestAnimationFrame(() => { planned = 0; paint(); });
      },
    };

    const clamp = pixel => Math.max(-1e5, Math.min(1e5, pixel));

    const axes = () => {
      Object.assign(pen, { font: FONT, lineWidth: 1, fillStyle: plot.colour("--muted") });
      const [left, bottom] = [MARGIN.left, height - MARGIN.bottom];
      pen.strokeStyle = plot.colour("--line");
      pen.beginPath();
      Object.assign(pen, { textAlign: "center", textBaseline: "top" });
      for (const value of ticks(...plot.x, (width - left) / 70)) {
        pen.moveTo(plot.px(value), MARGIN.top);
        pen.lineTo(plot.px(value), bottom);
        pen.fillText(ui.format(value), plot.px(value), bottom + 6);
      }
      Object.assign(pen, { textAlign: "right", textBaseline: "middle" });
      for (const value of ticks(...plot.y, height / 55)) {
        pen.moveTo(left, plot.py(value));
        pen.lineTo(width - MARGIN.right, plot.py(value));
        pen.fillText(ui.format(value), left - 7, plot.py(value));
      }
      pen.stroke();
      Object.assign(pen, { textAlign: "center", textBaseline: "bottom", fillStyle: plot.colour("--ink") });
      pen.fillText(xlabel, (left + width - MARGIN.right) / 2, height - 3);
      pen.save();
      pen.translate(3, (MARGIN.top + bottom) / 2);
      pen.rotate(-Math.PI / 2);
      pen.textBaseline = "top";
      pen.fillText(ylabel, 0, 0);
      pen.restore();
    };

    const paint = () => {
      if (!width) return;
      pen.setTransform(scale, 0, 0, scale, 0, 0);
      pen.clearRect(0, 0, width, height);
      axes();
      pen.save();
      pen.beginPath();
      pen.rect(MARGIN.left - EDGE, MARGIN.top - EDGE, width - MARGIN.left - MARGIN.right + 2 * EDGE,
        height - MARGIN.top - MARGIN.bottom + 2 * EDGE);
      pen.clip();
      plot.draw?.(plot);
      pen.restore();
    };

    const resize = () => {
      width = root.clientWidth;
      // equal units: the plane inside the margins is a square
      height = ratio === 1
        ? width - MARGIN.left - MARGIN.right + MARGIN.top + MARGIN.bottom : Math.max(240, Math.round(width * ratio));
      scale = devicePixelRatio || 1;
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
      canvas.style.height = `${height}px`;
      paint();
    };
    new ResizeObserver(resize).observe(root);
    dark.addEventListener("change", () => { colours = {}; plot.refresh(); });
    return plot;
  };
})();
