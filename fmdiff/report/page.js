"use strict";
// Pictures over training: the slider shows, in each track, the last picture up to its step.
for (const film of document.querySelectorAll(".film")) {
  const slider = film.querySelector("input");
  if (!slider) continue;
  const steps = slider.dataset.steps.split(" ").map(Number);
  const show = () => {
    const step = steps[slider.value];
    film.querySelector("output").textContent = step.toLocaleString("en");
    slider.setAttribute("aria-valuetext", "step " + step);
    for (const frames of film.querySelectorAll(".frames")) {
      const images = [...frames.querySelectorAll("img")];
      const shown = images.filter(image => Number(image.dataset.step) <= step).pop() || images[0];
      for (const image of images) image.hidden = image !== shown;
    }
  };
  slider.addEventListener("input", show);
  slider.show = show;
  show();
}
// Arrow keys move the slider that is nearest to the middle of the window, wherever the focus is.
document.addEventListener("keydown", event => {
  const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!way || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest("input, pre, textarea")) return;
  const distance = element => {
    const box = element.getBoundingClientRect();
    return Math.abs((box.top + box.bottom - innerHeight) / 2);
  };
  const seen = [...document.querySelectorAll(".film input")].filter(slider => {
    const box = slider.closest(".film").getBoundingClientRect();
    return box.bottom > 0 && box.top < innerHeight;
  });
  const slider = seen.sort((a, b) => distance(a) - distance(b))[0];
  if (!slider) return;
  slider.value = Number(slider.value) + way;
  slider.show();
  event.preventDefault();
});
// Animations play, unless the reader wants less motion, until they are stopped.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const moving of document.querySelectorAll(".moving")) {
  const button = moving.querySelector("button");
  const play = playing => {
    moving.classList.toggle("playing", playing);
    button.textContent = playing ? "Pause" : "Play";
  };
  button.addEventListener("click", () => play(!moving.classList.contains("playing")));
  button.hidden = false;
  play(!still);
}
// Copy a command; a page opened from a file may lack the clipboard, so select as well.
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    getSelection().selectAllChildren(code);
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
}
// Values under the pointer.
for (const chart of document.querySelectorAll(".chart")) {
  const lines = [...chart.querySelectorAll("polyline[data-values]")].map(line => ({
    label: line.dataset.label,
    at: line.getAttribute("points").split(" ").map(pair => pair.split(",").map(Number)),
    values: line.dataset.values.split(" ").map(pair => pair.split(",").map(Number)),
  }));
  const cursor = chart.querySelector(".cursor");
  const readout = chart.parentElement.querySelector(".readout");
  if (!lines.length || !readout) continue;
  const before = readout.textContent;
  chart.addEventListener("pointermove", event => {
    const box = chart.getBoundingClientRect();
    const x = (event.clientX - box.left) * chart.viewBox.baseVal.width / box.width;
    const nearest = line => line.at.reduce(
      (best, point, i) => Math.abs(point[0] - x) < Math.abs(line.at[best][0] - x) ? i : best, 0);
    const found = lines.map(line => ({ line, i: nearest(line) }));
    const closest = found.reduce((a, b) =>
      Math.abs(b.line.at[b.i][0] - x) < Math.abs(a.line.at[a.i][0] - x) ? b : a);
    const [value] = closest.line.values[closest.i];
    const [place] = closest.line.at[closest.i];
    cursor.setAttribute("d", `M${place} 10V186`);
    cursor.setAttribute("visibility", "visible");
    const said = found.filter(({ line, i }) => Math.abs(line.at[i][0] - place) < 6)
      .map(({ line, i }) => `${line.label} ${line.values[i][1]}`);
    readout.textContent = `${chart.dataset.x} ${value.toLocaleString("en")}: ${said.join(", ")}`;
  });
  chart.addEventListener("pointerleave", () => {
    cursor.setAttribute("visibility", "hidden");
    readout.textContent = before;
  });
}
