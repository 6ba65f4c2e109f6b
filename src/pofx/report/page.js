"use strict";
const root = document.documentElement, all = (selector, from = document) => [...from.querySelectorAll(selector)];
root.classList.add("js");

// Tables: a heading sorts the last body by its column, what was fixed stays on top, blanks stay at the end.
for (const table of all("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[table.tBodies.length - 1];
  heads.forEach((head, i) => head.addEventListener("click", () => {
    const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1, key = row => row.cells[i].dataset.sort;
    const value = row => key(row) === "inf" ? Infinity : isNaN(key(row)) ? key(row) : +key(row);
    const order = (a, b) => value(a) < value(b) ? -way : value(a) > value(b) ? way : 0;
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
    body.append(...[...body.rows].sort((a, b) => (key(a) === "") - (key(b) === "") || (key(a) === "" ? 0 : order(a, b))));
  }));
}

// Theme: the system's, unless the reader chooses.
const theme = document.getElementById("theme"), system = matchMedia("(prefers-color-scheme: dark)");
theme.addEventListener("change", () => {
  if (theme.value) root.dataset.theme = theme.value; else delete root.dataset.theme;
  draw();
});
system.addEventListener("change", () => draw());

// Charts: every figure is in the page; text takes the colour of the theme, the y axis the scale that the reader chose.
const figures = JSON.parse(document.getElementById("chart-data")?.textContent ?? "{}"), touch = matchMedia("(pointer: coarse)").matches;
const options = { responsive: true, displaylogo: false, displayModeBar: false, scrollZoom: false };

function draw(plots = all(".plot")) {
  for (const plot of plots) {
    const chosen = all("select", plot).map(select => select.value).join("/"), log = plot.querySelector(".log");
    for (const box of all(".chart", plot)) {
      const { data, layout } = structuredClone(figures[plot.dataset.chart][box.dataset.panel][chosen]);
      const ink = getComputedStyle(document.body).color, ground = getComputedStyle(document.body).backgroundColor;
      layout.font.color = ink;
      layout.hoverlabel = { bgcolor: ground, font: { color: ink } };
      layout.dragmode = touch ? false : "zoom";  // a finger scrolls the page
      if (log) layout.yaxis.type = log.checked && data.every(trace => trace.y.every(y => y === null || y > 0)) ? "log" : "linear";
      Plotly.react(box, data, layout, options);
    }
  }
}
for (const plot of all(".plot")) plot.addEventListener("change", () => draw([plot]));
draw();

// Grids: which rows stand beside the data, and with which sampling seed.
const boxes = all("#rows input"), seed = document.getElementById("seed");
function show() {
  for (const box of boxes) document.querySelector(`figure[data-row="${box.value}"]`).hidden = !box.checked;
  if (seed) for (const figure of all("figure[data-row]")) {
    const parts = all("[data-seed]", figure);
    parts.forEach(part => part.hidden = part.dataset.seed !== seed.value);
    figure.querySelector(".missing").hidden = parts.some(part => !part.hidden);
  }
}
boxes.forEach(box => box.addEventListener("change", show));
seed?.addEventListener("change", show);
for (const id of ["all", "none"]) document.getElementById(id)?.addEventListener("click", () => {
  boxes.forEach(box => box.checked = id === "all");
  show();
});

// Pictures: a button around each opens it, enlarged by a whole number, so that pixels stay squares.
const zoom = document.getElementById("zoom"), large = document.getElementById("zoom-picture");
let current = null, scale = 1;
if (zoom) {
  const stage = zoom.querySelector(".stage");
  for (const picture of all("figure img")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "zoom";
    if ("seed" in picture.dataset) {  // what the seed picker hides is the button
      button.dataset.seed = picture.dataset.seed;
      delete picture.dataset.seed;
      [button.hidden, picture.hidden] = [picture.hidden, false];
    }
    picture.replaceWith(button);
    button.append(picture);
    button.addEventListener("click", () => { zoom.showModal(); enlarge(button); });
  }
  const visible = () => all("button.zoom").filter(button => button.checkVisibility());
  const size = () => { large.style.width = `${large.naturalWidth * scale}px`; };
  const step = by => { const buttons = visible(); enlarge(buttons.at((buttons.indexOf(current) + by) % buttons.length)); };
  const grow = by => { scale = Math.min(12, Math.max(1, scale + by)); size(); };

  large.addEventListener("load", () => {  // not decode(): that fails where the next picture is chosen meanwhile
    const room = Math.min((stage.clientWidth - 32) / large.naturalWidth, (stage.clientHeight - 32) / large.naturalHeight);
    scale = Math.floor(room);
    grow(0);
  });

  function enlarge(button) {
    const picture = button.querySelector("img"), drawn = picture.closest(".pixels, .tiles") !== null;
    current = button;
    large.src = picture.src;
    large.alt = picture.alt;
    large.classList.toggle("pixels", drawn);
    zoom.classList.toggle("paper", picture.closest(".exploration") !== null);
    document.getElementById("zoom-title").textContent = picture.alt;
  }
  const keys = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), "+": () => grow(1), "=": () => grow(1), "-": () => grow(-1) };
  zoom.addEventListener("keydown", event => {
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  });
  const buttons = { previous: () => step(-1), next: () => step(1), in: () => grow(1), out: () => grow(-1), close: () => zoom.close() };
  for (const [name, act] of Object.entries(buttons)) document.getElementById(`zoom-${name}`).addEventListener("click", act);
  zoom.addEventListener("close", () => current.focus());
}
