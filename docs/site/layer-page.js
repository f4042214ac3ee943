// The page around layer.js: settings, steps, and the drawing.
"use strict";

const STEPS = [
  ["Values", "x", (s) => `${s.devices}. Orange and blue are two classes, whose values differ.`],
  ["Mean", "x", (s) => `The mean of each group of values that share statistics: ${s.groups}. A device's mean follows its classes.`],
  ["Variance", "x", (s) => "The band is one standard deviation to each side. Few values, or values that are alike, make a poor estimate."],
  ["Normalise", "hat", (s) => `Subtract the mean and divide by the standard deviation. ${s.lost}`],
  ["Scale and shift", "y", () => `Multiply by a learnt weight (here ${WEIGHT}) and add a learnt bias (here ${BIAS}). All devices have the same two.`],
  ["Running statistics", "y", (s) => s.running],
  ["Evaluate", "evaluated", (s) => s.evaluated],
  ["Gradient", "gradient", (s) => `The gradient of a value has three paths: its own, and through the mean and the variance to all that share them. So the values of ${s.shared} move each other.`],
];
const [LOW, HIGH, ROW, LEFT] = [-4, 4, 64, 84];
const GRADIENT = STEPS.length - 1;
const svg = document.getElementById("figure");
const words = document.getElementById("words");
const table = document.getElementById("table");
let step = 0;
let width = 640;
let timer = null;

const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value;
const settings = () => ({ norm: chosen("norm"), ranks: Number(chosen("ranks")), skew: Number(chosen("skew")) });
const place = (value) => LEFT + ((Math.max(LOW, Math.min(HIGH, value)) - LOW) / (HIGH - LOW)) * (width - LEFT - 10);
const text = (value) => (Number.isFinite(value) ? value.toFixed(2).replace("-", "\u2212") : "not defined");

function make(tag, attributes, parent = svg) {
  const node = document.createElementNS(svg.namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return parent.appendChild(node);
}

function say(state, { norm, ranks }) {
  const per = state.statistics[0].n;
  const many = ranks === 1 ? "One device has all samples" : `${ranks} devices have ${8 / ranks} ${ranks === 8 ? "sample" : "samples"} each`;
  const of = { bn: "each device's", sync_bn: "all devices'", gn: "each sample's" }[norm];
  const shared = { bn: "a device", sync_bn: "all devices", gn: "a sample" }[norm];
  return {
    devices: many,
    groups: `${of} ${per} values`,
    shared,
    lost: norm === "sync_bn" || ranks === 1 && norm === "bn"
      ? "The classes stay apart: they had the same mean taken away."
      : "Where a group holds one class, what told it from the other class is gone.",
    running: norm === "gn"
      ? "A norm by sample keeps no running statistics: it evaluates as it trains."
      : `Each device moves its running mean and variance by a tenth towards those of ${norm === "bn" ? "its own batch, so devices differ" : "all devices, so devices agree"}.`,
    evaluated: norm === "gn"
      ? "Evaluation takes each sample's own statistics again, so nothing changes."
      : `Evaluation takes the running statistics of the first device for everyone${norm === "bn" && ranks > 1 ? ", which are those of its own samples" : ""}. After one step they are far from the batch's.`,
  };
}

function draw() {
  const chosenNow = settings();
  const state = layer(chosenNow.norm, chosenNow.ranks, chosenNow.skew);
  const [, key, sentence] = STEPS[step];
  words.textContent = sentence(say(state, chosenNow));
  const height = ROW * chosenNow.ranks + 34;
  width = Math.round(svg.getBoundingClientRect().width) || width;
  const drawn = JSON.stringify([chosenNow, width]);
  if (svg.dataset.drawn !== drawn) {
    svg.replaceChildren();
    svg.dataset.drawn = drawn;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    frame(state, chosenNow.ranks, height);
  }
  statisticsOf(state, chosenNow);
  for (const circle of svg.querySelectorAll("circle")) {
    const [rank, sample, position] = circle.dataset.at.split(",").map(Number);
    const value = state[key][rank][sample][position];
    circle.setAttribute("cx", place(value));
    circle.firstChild.textContent = text(value);
  }
  fill(state, chosenNow);
  document.querySelectorAll("#names button").forEach((button, index) => {
    if (index === step) button.setAttribute("aria-current", "step");
    else button.removeAttribute("aria-current");
  });
}

function frame(state, ranks, height) {
  for (let value = LOW; value <= HIGH; value += 2) {
    make("line", { x1: place(value), x2: place(value), y1: 6, y2: height - 26 });
    make("text", { x: place(value), y: height - 10, "text-anchor": "middle" }).textContent = String(value).replace("-", "\u2212");
  }
  make("g", { id: "marks" });
  state.shares.forEach((share, rank) => {
    make("text", { x: 0, y: ROW * rank + ROW / 2 + 4, class: "name" }).textContent = `Device ${rank + 1}`;
    share.forEach((sample, index) => sample.values.forEach((_, position) => {
      const up = ROW * rank + 14 + ((index + 0.5) / share.length) * (ROW - 24) + (position - 1.5) * 2;
      const circle = make("circle", { cy: up, r: 5, class: `class-${sample.label}`, "data-at": [rank, index, position] });
      make("title", {}, circle);
    }));
  });
}

// Means and spreads of the groups, as far as the step has come; after normalising they are 0 and 1.
function statisticsOf(state, { norm }) {
  const marks = svg.querySelector("#marks");
  marks.replaceChildren();
  if (step < 1 || step > 2) return;
  for (const one of state.statistics) {
    const ranks = [...new Set(one.places.map(([rank]) => rank))];
    const share = norm === "gn" ? one.places[0] : null;
    const rows = share ? state.shares[share[0]].length : 1;
    for (const rank of ranks) {
      const top = ROW * rank + 14 + (share ? (share[1] / rows) * (ROW - 24) : -6);
      const tall = share ? (ROW - 24) / rows : ROW - 12;
      const deviation = Math.sqrt(one.variance);
      const [from, to] = [place(one.mean - deviation), place(one.mean + deviation)];
      if (step === 2) make("rect", { x: from, y: top, width: to - from, height: tall, class: "spread" }, marks);
      make("line", { x1: place(one.mean), x2: place(one.mean), y1: top, y2: top + tall, class: "mean" }, marks);
    }
  }
}

function fill(state, chosenNow) {
  if (step === GRADIENT) return rows(...parts(state));
  return rows(...shared(state, chosenNow));
}

// The three paths of the gradient of each device's first value.
function parts(state) {
  const head = ["first value of", "own path", "through the mean", "through the variance", "gradient"];
  return [head, state.shares.map((_, rank) => [
    `device ${rank + 1}`, ...state.paths.map((path) => text(path[rank][0][0])), text(state.gradient[rank][0][0]),
  ])];
}

function shared(state, { norm }) {
  const head = ["shared by", "values", "mean", "variance"];
  if (norm !== "gn") head.push("running mean", "running variance");
  return [head, state.statistics.map((one, index) => {
    const name = { bn: `device ${index + 1}`, sync_bn: "all devices", gn: `sample ${index + 1}` }[norm];
    const cells = [name, String(one.n), step > 0 ? text(one.mean) : "", step > 1 ? text(one.variance) : ""];
    if (norm !== "gn") {
      const running = state.running[index];
      cells.push(step > 4 ? text(running.mean) : "0.00", step > 4 ? text(running.variance) : "1.00");
    }
    return cells;
  })];
}

function rows(head, lines) {
  table.replaceChildren();
  const row = table.createTHead().insertRow();
  for (const name of head) row.append(Object.assign(document.createElement("th"), { textContent: name, scope: "col" }));
  const body = table.createTBody();
  for (const [name, ...cells] of lines) {
    const line = body.insertRow();
    line.append(Object.assign(document.createElement("th"), { textContent: name, scope: "row" }));
    for (const cell of cells) line.insertCell().textContent = cell;
  }
}

function go(to) {
  step = (to + STEPS.length) % STEPS.length;
  draw();
}

function play() {
  const button = document.getElementById("play");
  if (timer) {
    clearInterval(timer);
    timer = null;
  } else {
    go(step === STEPS.length - 1 ? 0 : step + 1);
    timer = setInterval(() => (step === STEPS.length - 1 ? play() : go(step + 1)), 2600);
  }
  button.textContent = timer ? "Pause" : "Play";
}

STEPS.forEach(([name], index) => {
  const item = document.getElementById("names").appendChild(document.createElement("li"));
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
  button.addEventListener("click", () => go(index));
  item.append(button);
});
document.getElementById("controls").addEventListener("change", draw);
document.getElementById("next").addEventListener("click", () => go(step + 1));
document.getElementById("back").addEventListener("click", () => go(step - 1));
document.getElementById("play").addEventListener("click", play);
addEventListener("resize", draw);
addEventListener("keydown", (event) => {
  if (event.target.tagName === "INPUT") return;
  if (event.key === "ArrowRight") go(step + 1);
  if (event.key === "ArrowLeft") go(step - 1);
});
const asked = new URLSearchParams(location.search);
if (asked.has("step")) step = Math.min(STEPS.length - 1, Math.max(0, Number(asked.get("step")) || 0));
for (const name of ["norm", "ranks", "skew"]) {
  const input = document.querySelector(`input[name=${name}][value="${CSS.escape(asked.get(name) ?? "")}"]`);
  if (input) input.checked = true;
}
draw();
