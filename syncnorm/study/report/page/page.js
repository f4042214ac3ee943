// What the page can do beyond being read: values of points, sorted tables, found rows. Without it nothing is missing.
"use strict";

// A point's value appears below the pointer, at a tap, and for the keyboard.
const tip = document.body.appendChild(document.createElement("div"));
tip.className = "tip";
tip.setAttribute("role", "status");
const hide = () => tip.classList.remove("shown");
const show = (spot) => {
  const box = spot.getBoundingClientRect();
  tip.textContent = spot.querySelector("title").textContent;
  tip.classList.add("shown");
  const left = Math.min(box.left + box.width / 2 - tip.offsetWidth / 2, innerWidth - tip.offsetWidth - 8);
  tip.style.left = `${Math.max(8, left) + scrollX}px`;
  tip.style.top = `${box.top + scrollY - tip.offsetHeight - 6}px`;
};
for (const spot of document.querySelectorAll("circle.spot")) {
  spot.addEventListener("pointerenter", () => show(spot));
  spot.addEventListener("click", () => show(spot));
  spot.addEventListener("pointerleave", hide);
}
addEventListener("scroll", hide, { passive: true });
// Arrow keys go through the points of the figure that has the focus.
for (const figure of document.querySelectorAll("svg.chart")) {
  const spots = [...figure.querySelectorAll("circle.spot")];
  if (!spots.length) continue;
  let at = -1;
  figure.setAttribute("tabindex", "0");
  figure.addEventListener("blur", hide);
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step) return;
    event.preventDefault();
    at = (at + step + spots.length) % spots.length;
    show(spots[at]);
  });
}

// A table whose heading is pressed is sorted by that column, numbers as numbers.
const number = (text) => parseFloat(text.replace("\u2212", "-").replace(/[^\d.eE+-].*$/, ""));
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (!isNaN(x) && !isNaN(y)) return x - y;
  if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1;
  return a.localeCompare(b);
};
const sortable = (table) => {
  const heads = table.querySelectorAll("thead tr:last-child > *");
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      for (const body of table.tBodies) {
        const rows = [...body.rows].filter((row) => !row.classList.contains("block"));
        rows.sort((a, b) => compare(a.cells[column]?.textContent ?? "", b.cells[column]?.textContent ?? ""));
        body.append(...(down ? rows.reverse() : rows));
      }
    });
  });
};

// The table of runs is made from the page's data, and shows the rows that hold every word of the search.
const data = document.getElementById("runs-data");
if (data) {
  const { columns, rows } = JSON.parse(data.textContent);
  const table = document.querySelector("table.runs");
  const head = table.createTHead().insertRow();
  for (const name of ["history", ...columns]) head.append(Object.assign(document.createElement("th"), { textContent: name }));
  const body = table.createTBody();
  for (const [cells, history] of rows) {
    const row = body.insertRow();
    row.id = `run-${cells[0]}`;
    const drawn = row.insertCell();
    if (history) drawn.append(spark(...history));
    for (const cell of cells) row.insertCell().textContent = cell;
  }
  sortable(table);
  const search = document.getElementById("search");
  const count = document.getElementById("count");
  const find = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} runs`;
  };
  search.addEventListener("input", find);
  find();
  document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView();
}
for (const table of document.querySelectorAll("main table:not(.runs)")) if (!table.querySelector("tr.span")) sortable(table);

// A small line of a run's history, from 0 (lowest) to 100 (highest).
function spark(name, first, last, heights) {
  const holder = document.createElement("template");
  holder.innerHTML = '<svg class="spark" role="img" viewBox="0 -2 80 24"><title></title><polyline/></svg>';
  const svg = holder.content.firstChild;
  const step = 80 / Math.max(1, heights.length - 1);
  const points = heights.map((height, index) => `${(index * step).toFixed(1)},${20 - height / 5}`);
  svg.querySelector("polyline").setAttribute("points", points.join(" "));
  svg.querySelector("title").textContent = `${name}: ${first} to ${last}`;
  return svg;
}
