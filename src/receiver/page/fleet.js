"use strict";
// Draws /fleet.json, every second. Only what `textContent` and attributes can carry: the policy allows no more.

const SECONDS = 600;
const SVG = "http://www.w3.org/2000/svg";
let fleet = null;
const number = (value) => value.toLocaleString("en");

function put(parent, name, attributes, text) {
  const node = parent.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// The next of 1, 2, 5, 10, 20, … that holds it.
function ceiling(most) {
  for (let step = 1; ; step *= 10)
    for (const factor of [1, 2, 5]) if (factor * step >= most) return factor * step;
}

// Axes, and where a point lies: x in seconds ago, y in units.
function frame(id, top, unit, label) {
  const place = document.getElementById(id);
  const box = { width: Math.max(280, place.clientWidth), height: 220, left: 68, right: 10, above: 12, below: 40 };
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("width", box.width);
  svg.setAttribute("height", box.height);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", label);
  const [wide, high] = [box.width - box.left - box.right, box.height - box.above - box.below];
  const x = (ago) => (box.left + wide * (1 - ago / SECONDS)).toFixed(1);
  const y = (value) => (box.above + high * (1 - Math.min(value, top) / top)).toFixed(1);
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const value = top * part;
    if (!Number.isInteger(value)) continue;
    put(svg, "line", { class: "grid", x1: box.left, x2: box.width - box.right, y1: y(value), y2: y(value) });
    put(svg, "text", { x: box.left - 6, y: Number(y(value)) + 4, "text-anchor": "end" }, number(value) + unit);
  }
  for (let minutes = 10; minutes >= 0; minutes -= 2) {
    const ago = minutes * 60;
    put(svg, "line", { x1: x(ago), x2: x(ago), y1: y(0), y2: Number(y(0)) + 4 });
    put(svg, "text", { x: x(ago), y: Number(y(0)) + 18, "text-anchor": minutes ? "middle" : "end" }, minutes ? "−" + minutes : "now");
  }
  put(svg, "text", { x: box.left + wide / 2, y: box.height - 5, "text-anchor": "middle" }, "minutes");
  put(svg, "line", { x1: box.left, x2: box.width - box.right, y1: y(0), y2: y(0) });
  return { place, svg, x, y };
}

function path(points) {
  return points.length ? "M" + points.map(([x, y]) => x + " " + y).join("L") : "M0 0";
}

function draw() {
  if (!fleet) return;
  const seconds = fleet.seconds;
  const ago = (index) => seconds.length - index;
  const rate = fleet.accept_rate;
  const most = seconds.reduce((most, second) => Math.max(most, second[0]), 4);
  // The rate is drawn where it does not press everything else to the ground.
  const shown = rate !== null && rate <= 5 * most;
  const rates = frame("rates", ceiling(shown ? Math.max(most, rate) : most), "/s", "attempts and refusals per second");
  if (shown) put(rates.svg, "path", { class: "rate", d: path([[rates.x(SECONDS), rates.y(rate)], [rates.x(0), rates.y(rate)]]) });
  for (const [column, name] of [[1, "refused"], [0, "attempts"]])
    put(rates.svg, "path", { class: name, d: path(seconds.map((second, index) => [rates.x(ago(index)), rates.y(second[column])])) });
  rates.place.replaceChildren(rates.svg);

  const devices = Math.max(1, fleet.devices);
  const share = frame("share", 100, " %", "percent of the devices that are connected");
  const line = seconds.map((second, index) => [share.x(ago(index)), share.y((100 * second[2]) / devices)]);
  if (line.length) {
    const ground = share.y(0);
    const area = path([[line[0][0], ground], ...line, [line[line.length - 1][0], ground]]) + "Z";
    share.svg.prepend(put(share.svg, "path", { class: "area", d: area }));
  }
  put(share.svg, "path", { class: "share", d: path(line) });
  share.place.replaceChildren(share.svg);
}

async function look() {
  const numbers = document.getElementById("numbers");
  try {
    const answer = await fetch("/fleet.json");
    if (!answer.ok) throw new Error(answer.status);
    fleet = await answer.json();
    const last = fleet.seconds[fleet.seconds.length - 1] || [0, 0, 0];
    numbers.textContent =
      `${number(fleet.sessions)} of ${number(fleet.devices)} devices connected · ${number(last[0])} attempts/s · ` +
      `${number(last[1])} refused/s · virtual queue ${(fleet.queue_ms / 1000).toFixed(1)} s · ` +
      `since the start ${number(fleet.attempts)} attempts, ${number(fleet.refused)} told to come back, ` +
      `${number(fleet.dropped)} reset`;
    draw();
  } catch (error) {
    numbers.textContent = `the receiver does not answer (${error.message}); what is below is from before`;
  }
  setTimeout(look, 1000);
}

addEventListener("resize", draw);
look();
