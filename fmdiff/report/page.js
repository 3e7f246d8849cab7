"use strict";
// Pictures over training or over t: the slider shows, in each track, the last picture up to its
// value. Those over t play, unless the reader wants less motion, until they are stopped.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
for (const film of document.querySelectorAll(".film")) {
  const slider = film.querySelector("input");
  if (!slider) continue;
  const steps = slider.dataset.steps.split(" ").map(Number);
  const whole = slider.dataset.unit === "step";
  const show = () => {
    const step = steps[slider.value];
    const words = whole ? step.toLocaleString("en") : step.toPrecision(3);
    film.querySelector("output").textContent = words;
    slider.setAttribute("aria-valuetext", `${slider.dataset.unit} ${words}`);
    for (const frames of film.querySelectorAll(".frames")) {
      const images = [...frames.querySelectorAll("img")];
      const place = image => Number(image.dataset.step ?? image.dataset.at);
      const shown = images.filter(image => place(image) <= step).pop() || images[0];
      for (const image of images) image.hidden = image !== shown;
    }
  };
  const button = film.querySelector(".play");
  let timer = 0;
  const play = playing => {
    clearTimeout(timer);
    timer = playing ? setTimeout(next, 80) : 0;
    button.textContent = playing ? "Pause" : "Play";
  };
  const next = () => {
    slider.value = (Number(slider.value) + 1) % steps.length;
    show();
    timer = setTimeout(next, Number(slider.value) === steps.length - 1 ? 1500 : 80);
  };
  slider.show = () => { if (button) play(false); show(); };
  slider.addEventListener("input", slider.show);
  show();
  if (!button) continue;
  button.hidden = false;
  button.addEventListener("click", () => play(!timer));
  play(!still);
}
// A picture is enlarged by a click, Enter or Space, and closed by the same or Escape.
const large = document.querySelector("dialog.large");
const enlarge = picture => {
  const copy = picture.cloneNode(true);
  copy.removeAttribute("tabindex");
  copy.classList.remove("enlarges");
  copy.querySelector(".cursor")?.remove();
  const look = ["pixels", "drawn"].find(name => picture.closest(`.${name}`));
  large.className = `large ${look || ""}`;
  large.replaceChildren(copy);
  large.showModal();
};
large.addEventListener("click", () => large.close());
large.addEventListener("close", () => large.replaceChildren());
large.addEventListener("keydown", event => {
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    large.close();
  }
});
for (const picture of document.querySelectorAll(".enlarges")) {
  picture.addEventListener("click", () => enlarge(picture));
  picture.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    enlarge(picture);
  });
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
  if (large.open) return;
  const slider = seen.sort((a, b) => distance(a) - distance(b))[0];
  if (!slider) return;
  slider.value = Number(slider.value) + way;
  slider.show();
  event.preventDefault();
});
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
