"use strict";
// The object that all files of a page add to, the controls of the scenes, and the start.
//   fm.scenes.KIND = (root, scene) => void     a scene; scene.data, await scene.graph("name")
//   fm.state[KIND]                              what a scene shows, as plain numbers and arrays
const fm = { scenes: {}, state: {}, ui: {} };
window.fm = fm;
(() => {
  const ui = fm.ui;
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  let count = 0;

  // An element with attributes and children: texts or elements.
  ui.element = (name, attributes = {}, ...children) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === true) element.setAttribute(key, "");
      else if (value !== false && value != null) element.setAttribute(key, value);
    }
    element.append(...children);
    return element;
  };
  const element = ui.element;

  // A number with as many digits as help a reader.
  ui.format = (value, digits = 4) => {
    if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : value > 0 ? "∞" : "−∞";
    const size = Math.abs(value);
    const text = size && (size < 1e-3 || size >= 1e6)
      ? value.toExponential(digits - 2) : String(+value.toPrecision(digits));
    return text.replace("-", "−").replace("e+", "e");
  };

  // The places of a scene: the picture, the controls beside it, and what stands below.
  ui.layout = root => {
    const view = element("div", { class: "view" });
    const side = element("div", { class: "side" });
    const below = element("div", { class: "below" });
    root.append(view, side, below);
    return { view, side, below };
  };

  // ---- controls: each is an object with `root`, an element to append, and `value` -------------

  ui.slider = ({ label, min, max, step, value, unit = "", format = ui.format, oninput }) => {
    const id = `control-${count++}`;
    const input = element("input", { id, type: "range", min, max, step, value });
    const output = element("output", { for: id });
    const root = element("div", { class: "control slider" },
      element("label", { for: id }, label), output, input);
    const show = () => {
      output.textContent = `${format(Number(input.value))}${unit && ` ${unit}`}`;
      input.setAttribute("aria-valuetext", output.textContent);
    };
    input.addEventListener("input", () => { show(); oninput?.(Number(input.value)); });
    show();
    return {
      root, input,
      get value() { return Number(input.value); },
      set value(number) { input.value = number; show(); },
      range(lo, hi, by) { Object.assign(input, { min: lo, max: hi, step: by }); show(); },
    };
  };

  // options: [value, text] pairs
  ui.select = ({ label, options, value, oninput }) => {
    const id = `control-${count++}`;
    const input = element("select", { id },
      ...options.map(([name, text]) => element("option", { value: name }, text)));
    if (value !== undefined) input.value = value;
    input.addEventListener("input", () => oninput?.(input.value));
    return {
      root: element("div", { class: "control" }, element("label", { for: id }, label), input),
      input,
      get value() { return input.value; },
      set value(name) { input.value = name; },
    };
  };

  ui.button = ({ label, onclick, look = "" }) => {
    const root = element("button", { type: "button", class: look }, label);
    root.addEventListener("click", onclick);
    return { root, set label(text) { root.textContent = text; } };
  };

  ui.toggle = ({ label, value = false, colour, oninput }) => {
    const id = `control-${count++}`;
    const input = element("input", { id, type: "checkbox" });
    input.checked = value;
    input.addEventListener("input", () => oninput?.(input.checked));
    const swatch = colour ? [element("span", { class: "swatch", style: `--c: var(${colour})` })] : [];
    return {
      root: element("div", { class: "control toggle" }, input,
        element("label", { for: id }, ...swatch, label)),
      input,
      get value() { return input.checked; },
      set value(on) { input.checked = on; },
    };
  };

  // A text; `problem` is the sentence about what is wrong with it, or "".
  ui.text = ({ label, value, oninput }) => {
    const id = `control-${count++}`;
    const input = element("input", { id, type: "text", value, spellcheck: "false",
      autocomplete: "off", autocapitalize: "off", "aria-describedby": `${id}-problem` });
    const problem = element("p", { class: "problem", id: `${id}-problem`, role: "alert" });
    input.addEventListener("input", () => oninput?.(input.value));
    return {
      root: element("div", { class: "control" }, element("label", { for: id }, label), input, problem),
      input,
      get value() { return input.value; },
      set value(text) { input.value = text; },
      set problem(sentence) {
        if (problem.textContent !== sentence) problem.textContent = sentence;
        input.setAttribute("aria-invalid", String(sentence !== ""));
      },
    };
  };

  // Several controls with a common name.
  ui.group = (label, ...controls) => {
    const legend = label ? [element("legend", {}, label)] : [];
    return element("fieldset", {}, ...legend, ...controls.map(control => control.root));
  };

  // Buttons in a row.
  ui.row = (...controls) => element("div", { class: "row" }, ...controls.map(c => c.root));

  // A table of texts and numbers; `fill(rows)` replaces its rows.
  ui.table = (head, rows, caption, digits = 4) => {
    const body = element("tbody");
    const line = element("tr", {}, ...head.map(name => element("th", { scope: "col" }, name)));
    const root = element("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption },
      element("table", {}, element("caption", {}, caption), element("thead", {}, line), body));
    const cell = value => typeof value === "number" ? ui.format(value, digits) : String(value);
    const fill = rows => body.replaceChildren(...rows.map(row => element("tr", {},
      ...row.map((value, i) => i ? element("td", {}, cell(value))
        : element("th", { scope: "row" }, cell(value))))));
    fill(rows);
    return { root, fill };
  };

  // What a screen reader says. Of many texts in a short time it says the last.
  let pending = 0;
  ui.announce = text => {
    clearTimeout(pending);
    pending = setTimeout(() => {
      document.getElementById("announcements").textContent = text;
    }, 300);
  };

  // ---- motion ---------------------------------------------------------------------------------

  Object.defineProperty(ui, "still", { get: () => still.matches });

  // A Play button. frame(u) shows the share u in [0, 1] of the way, which takes `seconds`. For a
  // reader who wants less motion the button shows the end.
  ui.play = ({ frame, seconds, label = "Play" }) => {
    let handle = 0, at = 0, before = 0;
    const control = ui.button({ label, look: "primary", onclick: () => handle ? player.stop() : player.start() });
    const tick = now => {
      at = Math.min(1, at + (before ? (now - before) / 1000 / player.seconds : 0));
      before = now;
      frame(at);
      if (at < 1) handle = requestAnimationFrame(tick);
      else player.stop();
    };
    const player = {
      root: control.root, seconds,
      get playing() { return handle !== 0; },
      get at() { return at; },
      set at(share) { at = share; },
      start() {
        if (handle) return;
        if (at >= 1) at = 0;
        if (still.matches) { at = 1; frame(1); return; }
        before = 0;
        control.label = "Pause";
        handle = requestAnimationFrame(tick);
      },
      stop() {
        cancelAnimationFrame(handle);
        handle = 0;
        control.label = label;
      },
    };
    return player;
  };

  // ---- numbers --------------------------------------------------------------------------------

  // Standard normal numbers, the same for the same seed (mulberry32, then Box and Muller).
  fm.normals = seed => {
    let state = seed >>> 0, spare = null;
    const uniform = () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let z = Math.imul(state ^ (state >>> 15), state | 1);
      z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
      return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 4294967296;
    };
    return () => {
      if (spare !== null) { const value = spare; spare = null; return value; }
      const r = Math.sqrt(-2 * Math.log(uniform())), angle = 2 * Math.PI * uniform();
      spare = r * Math.sin(angle);
      return r * Math.cos(angle);
    };
  };

  // ---- start ----------------------------------------------------------------------------------

  const unpack = async id => {
    const text = document.getElementById(id).textContent;
    const packed = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };

  const start = async () => {
    const scenes = JSON.parse(document.getElementById("scenes").textContent);
    for (const [i, scene] of scenes.entries()) {
      const root = document.querySelector(`#scene-${i} .stage`);
      scene.graph = async name => {
        const { data, blob } = scene.graphs[name];
        return fm.graph(data, await unpack(blob));
      };
      try {
        await fm.scenes[scene.kind](root, scene);
      } catch (error) {
        root.replaceChildren(element("p", { role: "alert", class: "problem" },
          `This scene cannot be played here: ${error.message}`));
      }
    }
    document.documentElement.dataset.ready = "true";
  };
  document.addEventListener("DOMContentLoaded", start);
})();
