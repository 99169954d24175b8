#!/usr/bin/env node
// client.js put TOPIC TEXT: a record onto flash. client.js listen FILTER: commands from upstream, as they come.
const net = require("net"), readline = require("readline"), { randomUUID } = require("crypto");
const SOCKET = process.env.BACKHAUL_SOCKET || "/run/backhaul/backhaul.sock";
const LATER = ["full", "degraded", "busy", "shutting_down"]; // the same again, in a while

function put(request) {
  const agent = net.connect(SOCKET, () => agent.write(JSON.stringify(request) + "\n"));
  let answered = false;
  readline.createInterface({ input: agent }).on("error", () => {}).once("line", (line) => {
    const answer = JSON.parse(line);
    answered = !LATER.includes(answer.error?.code);
    if (answered) console.log(line);
    agent.end();
  });
  agent.on("error", () => {}); // no agent yet
  agent.on("close", () => answered || setTimeout(put, 1000, request));
}

function listen(filter) {
  const agent = net.connect(SOCKET, () => agent.write(JSON.stringify({ subscribe: { topic: filter } }) + "\n"));
  readline.createInterface({ input: agent }).on("line", (line) => {
    const { command } = JSON.parse(line);
    if (!command) return console.error(line);
    console.log(JSON.stringify(command)); // act on it here: it comes again until it is done
    agent.write(JSON.stringify({ done: { seq: command.seq } }) + "\n");
  });
}

const [what, topic, text] = process.argv.slice(2);
// The key makes a retry safe: whatever died between request and answer, it is one record.
if (what === "put") put({ put: { topic, text, key: randomUUID(), wait: "committed" } });
else listen(topic);
