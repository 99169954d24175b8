"use strict";
// Draws /status.json every two seconds and /history.json every fifteen. Only what `textContent` and attributes can
// carry: the policy allows no more.

const SVG = "http://www.w3.org/2000/svg";
const DAY_S = 86400;
const id = (name) => document.getElementById(name);
let history = null;
let answered = null;

function make(parent, name, attributes = {}, text) {
  const isSvg = name === "svg" || parent.namespaceURI === SVG;
  const node = parent.appendChild(isSvg ? document.createElementNS(SVG, name) : document.createElement(name));
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// Units that people read.
const count = (value) => value.toLocaleString("en");
function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < 4; unit++) value /= 1024;
  return `${unit && value < 100 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}
function time(seconds) {
  const s = Math.floor(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < DAY_S) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / DAY_S)} d ${Math.floor((s % DAY_S) / 3600)} h`;
}
function took(ms) {
  if (ms === null) return "–";
  if (ms === 0) return "0 ms";
  if (ms < 10) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  return ms < 1e5 ? `${(ms / 1000).toFixed(1)} s` : time(ms / 1000);
}
const rate = (value) => (value === 0 ? "0" : value < 0.1 ? "<0.1" : value < 10 ? value.toFixed(1) : count(Math.round(value)));

// Rows of a term, a text and how it looks; those without a text are left out.
function list(place, rows) {
  const dl = id(place);
  dl.replaceChildren();
  for (const [term, text, look] of rows) {
    if (text === null || text === undefined || text === "") continue;
    make(dl, "dt", {}, term);
    make(dl, "dd", look ? { class: look } : {}, text);
  }
}

function showHead({ agent, link }) {
  const word = link.state.replace("_", " ");
  document.title = `${agent.device}: ${word}`;
  id("device").textContent = agent.device;
  id("agent").textContent = `backhaul ${agent.version} · running for ${time(agent.uptime_s)} · the clock is ${link.clock === "set" ? "set" : "NOT SET"}` +
    (agent.config === "fallback" ? " · on an EARLIER configuration" : "");
  const look = link.state === "stopped" ? "bad" : link.state === "up" && !link.suspect ? "good" : "look";
  id("state").className = "state " + look;
  id("word").textContent = `${word} for ${time(link.since_s)}`;
  const why = id("why");
  why.replaceChildren();
  if (link.suspect) make(why, "p", {}, "A pong is late: the session may be dead.");
  if (link.next_attempt_ms !== null)
    make(why, "p", {}, `Next attempt in ${took(link.next_attempt_ms)}: ${link.next_attempt_why}.`);
  const last = link.last_failure;
  if (last) {
    const what = link.state === "up" ? "The last session or attempt ended" : "It ended";
    make(why, "p", link.state === "up" ? { class: "quiet" } : {}, `${what} ${time(last.s_ago)} ago: ${last.why}.`);
    make(why, "p", { class: "quiet" }, `${last.class} · ${last.detail}`);
  }
}

function showLanes(lanes) {
  const body = id("lanes").tBodies[0];
  body.replaceChildren();
  for (const lane of lanes) {
    const row = make(body, "tr");
    const lost = lane.overflowed + lane.expired + lane.corrupt + lane.rejected;
    make(row, "td", {}, lane.name);
    make(row, "td", {}, count(lane.depth));
    make(row, "td", {}, lane.oldest_s === null ? "–" : time(lane.oldest_s));
    make(row, "td", {}, rate(lane.put_per_s));
    make(row, "td", {}, rate(lane.acked_per_s));
    const full = lane.bytes_max ? Math.min(1, lane.bytes / lane.bytes_max) : 0;
    const flash = make(row, "td", {}, bytes(lane.bytes));
    make(flash, "span", { class: "most" }, ` of ${bytes(lane.bytes_max)}`);
    const fill = make(flash, "svg", { class: "fill", width: 48, height: 8, role: "img", "aria-label": `${Math.round(100 * full)} percent full` });
    make(fill, "rect", { class: "ground", width: 48, height: 8 });
    make(fill, "rect", { class: full >= 0.8 && lane.depth ? "level look" : "level", width: 48 * full, height: 8 });
    make(row, "td", lost ? { class: "bad" } : {}, count(lost));
  }
}

function show(status) {
  const { link, flash, wire, delay, memory } = status;
  showHead(status);
  showLanes(status.lanes);
  const { quality, path, certificate } = link;
  const failures = Object.entries(link.failures).map(([name, times]) => `${count(times)} ${name}`).join(", ");
  const open = link.endpoints.filter((endpoint) => endpoint.breaker !== "closed").map((endpoint) => endpoint.url).join(", ");
  list("link", [
    ["endpoint", link.endpoint],
    ["by", path && [path.interface, path.local].filter((part) => part).join(", ")],
    ["to", path && path.address],
    ["proxy", path && path.proxy],
    ["session", link.session],
    ["round trip", link.rtt_ms === null ? null : took(link.rtt_ms)],
    ["pings lost", quality.ping_loss === null ? null : `${Math.round(100 * quality.ping_loss)} %`, quality.ping_loss > 0 ? "look" : ""],
    ["when busy", quality.bytes_per_s === null ? null : `${bytes(quality.bytes_per_s)}/s`],
    ["sessions", `${count(link.sessions)} in ${count(link.attempts)} attempts`],
    ["failures", failures],
    ["breaker open", open, "look"],
    ["certificate", certificate && `${certificate.of}, ends ${certificate.not_after.slice(0, 10)}` +
      (certificate.days_left === null ? "" : ` (${certificate.days_left} days)`), certificate && certificate.ends_soon ? "bad" : ""],
  ]);
  const { budget, lifetime } = flash;
  list("flash", [
    ["state", flash.state, flash.state === "ok" ? "good" : "bad"],
    ["written", bytes(flash.bytes_written)],
    ["of records", bytes(flash.bytes_payload)],
    ["syncs", count(flash.syncs)],
    ["a sync takes", flash.syncs ? `${took(flash.sync_ms_p50)}, at most ${took(flash.sync_ms_max)}` : null],
    ["put to flash", `${took(delay.put_to_committed_ms.p50)} (99 %: ${took(delay.put_to_committed_ms.p99)})`],
    ["budget", budget && `${budget.state}, ${bytes(budget.bytes_left)} of ${bytes(budget.bytes_per_day)} left`, budget && budget.state !== "ok" ? "look" : ""],
    ["device", lifetime && `${lifetime.kind} ${lifetime.device}, ${bytes(lifetime.capacity_bytes)}`],
    ["life used", lifetime && lifetime.used_percent !== null ? `up to ${lifetime.used_percent} %` : null],
    ["life left", lifetime && lifetime.years !== null ? `about ${lifetime.years} years at this rate` : null],
  ]);
  list("rest", [
    ["out", bytes(wire.bytes_sent)],
    ["in", bytes(wire.bytes_received)],
    ["in 24 hours", bytes(wire.day_bytes) + (wire.capped ? ", SPENT" : ""), wire.capped ? "look" : ""],
    ["put to upstream", `${took(delay.put_to_delivered_ms.p50)} (99 %: ${took(delay.put_to_delivered_ms.p99)})`],
    ["memory", `${bytes(memory.rss_bytes)} of ${bytes(memory.rss_bytes_max)}`],
    ["in queues", `${bytes(memory.queues_bytes)} of ${bytes(memory.queues_bytes_max)}`],
    ["commands", status.commands.received ? `${count(status.commands.received)}, done ${count(status.commands.done)}` : null],
  ]);
}

// The next of 1, 2, 5, 10, 20, … that holds it.
function ceiling(most) {
  for (let step = 1e-3; ; step *= 10)
    for (const factor of [1, 2, 5]) if (factor * step >= most * 0.999) return factor * step;
}

// A plot of the last day: x by slot, hours below.
function frame(place, height, left, label) {
  const width = Math.max(240, id(place).clientWidth);
  const svg = document.createElementNS(SVG, "svg");
  for (const [key, value] of Object.entries({ width, height: height + 20, role: "img", "aria-label": label })) svg.setAttribute(key, value);
  const slots = DAY_S / history.slot_s + 1;
  const x = (index) => left + ((width - left - 2) * index) / slots;
  const step = width < 560 ? 6 : 3;
  for (let hours = 24; hours >= 0; hours -= step) {
    const at = x(slots - 1 - (hours * 3600) / history.slot_s);
    const anchor = hours === 24 ? "start" : hours ? "middle" : "end";
    make(svg, "text", { x: hours ? at : width - 2, y: height + 15, "text-anchor": anchor }, hours ? `−${hours} h` : "now");
  }
  return { svg, x, slots, width, first: slots - history.slots.length };
}

function drawLink() {
  const { svg, x, slots, first } = frame("plot-link", 26, 0, "the link in the last day");
  make(svg, "rect", { class: "unseen", x: 0, y: 2, width: x(slots), height: 22 });
  history.slots.forEach(([up], index) => {
    if (up === null) return;
    const [from, width] = [x(first + index), x(1) - x(0) + 0.3];
    const high = (22 * up) / 1000;
    if (up < 1000) make(svg, "rect", { class: "down", x: from, y: 2, width, height: 22 - high });
    if (up > 0) make(svg, "rect", { class: "up", x: from, y: 24 - high, width, height: high });
  });
  id("plot-link").replaceChildren(svg);
}

// `curves`: a function from a slot to its value (null: a gap) each.
function drawCurves(place, label, unit, curves) {
  const height = 110;
  const { svg, x, width, first } = frame(place, height, 58, label);
  const values = curves.flatMap((curve) => history.slots.map(curve)).filter((value) => value !== null);
  const top = unit.top(Math.max(unit.least, ...values));
  const y = (value) => 8 + (height - 10) * (1 - value / top);
  for (const part of [0, 0.5, 1]) {
    make(svg, "line", { class: "grid", x1: 58, x2: width, y1: y(top * part), y2: y(top * part) });
    make(svg, "text", { x: 52, y: y(top * part) + 4, "text-anchor": "end" }, unit.text(top * part));
  }
  curves.forEach((curve, nth) => {
    let [line, run] = ["", []];
    const end = () => {
      if (run.length && nth === 0)
        make(svg, "path", { class: "area", d: `M${run[0][0]} ${y(0)}L${run.map((at) => at.join(" ")).join("L")}L${run[run.length - 1][0]} ${y(0)}Z` });
      if (run.length) line += `M${run.map((at) => at.join(" ")).join("L")}` + (run.length === 1 ? "h1" : "");
      run = [];
    };
    history.slots.forEach((slot, index) => {
      const value = slot[0] === null ? null : curve(slot);
      if (value === null) return end();
      run.push([x(first + index + 0.5).toFixed(1), y(value).toFixed(1)]);
    });
    end();
    make(svg, "path", { class: nth ? "curve two" : "curve", d: line || "M0 0" });
  });
  id(place).replaceChildren(svg);
}

function draw() {
  if (!history) return;
  // The newest slot is not over.
  const seconds = (slot) => (slot === history.slots[history.slots.length - 1] ? Math.max(1, history.open_s) : history.slot_s);
  const plain = { least: 1, top: ceiling, text: (value) => count(+value.toPrecision(3)) };
  const few = { ...plain, least: 0.1 };
  const octets = { least: 10, top: (most) => { let unit = 1; while (unit * 1024 <= most) unit *= 1024; return unit * ceiling(most / unit); }, text: bytes };
  const millis = { least: 1, top: ceiling, text: took };
  drawLink();
  drawCurves("plot-waiting", "records waiting in the last day", plain, [(slot) => slot[1]]);
  drawCurves("plot-rates", "records a second, in and out", few, [(slot) => slot[2] / seconds(slot), (slot) => slot[3] / seconds(slot)]);
  drawCurves("plot-rtt", "round trip", millis, [(slot) => slot[6]]);
  drawCurves("plot-bytes", "bytes on the wire a second", octets, [(slot) => slot[5] / seconds(slot)]);
}

function showNotes(notes) {
  const place = id("notes");
  place.replaceChildren();
  if (!notes.length) make(place, "li", {}, "nothing yet");
  for (const note of notes) {
    const item = make(place, "li");
    const at = new Date(Date.now() - 1000 * note.s_ago);
    make(item, "time", { datetime: at.toISOString(), title: at.toLocaleString() }, `${time(note.s_ago)} ago`);
    make(item, "b", {}, note.kind.replaceAll("_", " "));
    const text = make(item, "span", {}, note.detail);
    if (note.times > 1) make(text, "em", {}, ` (${count(note.times)} times in ${time(note.first_s_ago - note.s_ago)})`);
  }
}

async function get(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${answer.status} ${answer.statusText}`);
  return answer;
}

// One request after the other, and none while nobody looks.
async function look(path, every, shown) {
  for (;;) {
    if (!document.hidden) {
      try {
        shown(await (await get(path)).json());
        answered = new Date();
        id("gone").hidden = true;
      } catch (error) {
        id("gone").hidden = false;
        id("gone").textContent = `The agent does not answer (${error.message}); what is below is ` +
          (answered ? `of ${answered.toLocaleTimeString()}.` : "empty.");
      }
    }
    await new Promise((done) => setTimeout(done, every));
  }
}

id("config").addEventListener("toggle", async () => {
  if (id("config").open) id("toml").textContent = await get("/config.toml").then((answer) => answer.text(), (error) => error.message);
});
addEventListener("resize", draw);
look("/status.json", 2000, show);
look("/history.json", 15000, (shown) => {
  history = shown;
  draw();
  showNotes(history.notes);
});
