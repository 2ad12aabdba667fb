// Keeps the page live: a stream of events while it is seen, another one when that breaks.

import { ask, tokenNeeded } from "./act.js";
import { watchBatches } from "./batches.js";
import { byId, clock, setText } from "./dom.js";
import { draw, drawDecisions } from "./view.js";

const SILENCE = 4000; // milliseconds without a frame, of which one comes each second
const AGAIN = 1500;
const MOST = 240;

let source = null;
let state = null;
let heard = 0;
let decisions = [];
let told = "";
let number = 0;

const chosen = () => document.querySelector("input[name=window]:checked").value;

function redraw() {
  if (state) draw(state, chosen(), ask);
}

function redrawDecisions() {
  drawDecisions(decisions, byId("decisions-all").checked, state ? state.decisions : true);
}

// For those who hear the page: a change of how things are, not each figure.
function announce(text) {
  const kind = text.replace(/[0-9.]+/g, "#");
  if (kind === told) return;
  told = kind;
  setText(byId("announce"), text);
}

function show(kind, text) {
  byId("live").dataset.state = kind;
  setText(byId("live-text"), text);
  document.body.classList.toggle("stale", kind === "stale");
}

function stale() {
  if (!state) {
    show("stale", "No connection yet; trying again");
    return;
  }
  show("stale", `Stale: figures of ${clock(state.at)}; reconnecting`);
  announce("The sidecar does not answer. The figures are stale.");
}

function onState(event) {
  heard = Date.now();
  state = JSON.parse(event.data);
  tokenNeeded(state.acting_takes_token);
  redraw();
  show("live", `Live, ${clock(state.at)}`);
  const [worst] = state.troubles;
  announce(worst ? `${worst.level}: ${worst.text}` : "All is well.");
}

// A plain success: nothing about it but that it happened.
function plain(line) {
  const degraded = line.trail && line.trail.includes(";degraded=");
  const odd = line.rung || line.attempts > 1 || line.end !== "done" || line.cache === "stale" || degraded;
  return line.status < 400 && !odd;
}

function onDecisions(event) {
  const fresh = JSON.parse(event.data).map((line) => {
    number += 1;
    return { ...line, key: `${number}`, plain: plain(line) };
  });
  decisions = fresh.reverse().concat(decisions).slice(0, MOST);
  redrawDecisions();
}

function open() {
  close();
  heard = Date.now();
  source = new EventSource("/admin/events");
  source.addEventListener("open", () => {
    decisions = []; // all that are kept come again
  });
  source.addEventListener("state", onState);
  source.addEventListener("decisions", onDecisions);
  source.addEventListener("error", () => {
    // A browser does not come back by itself to a server that answered with an error.
    if (source && source.readyState === EventSource.CLOSED) setTimeout(() => !document.hidden && open(), AGAIN);
    stale();
  });
}

function close() {
  if (source) source.close();
  source = null;
}

setInterval(() => {
  if (!source || Date.now() - heard < SILENCE) return;
  stale();
  if (Date.now() - heard > 3 * SILENCE) open(); // half a connection: nothing comes, and nobody says so
}, 1000);

document.addEventListener("visibilitychange", () => {
  if (document.hidden) close();
  else open();
});
window.addEventListener("pagehide", close);
for (const input of document.querySelectorAll("input[name=window]")) input.addEventListener("change", redraw);
byId("decisions-all").addEventListener("change", redrawDecisions);

open();
watchBatches(() => !document.hidden && source !== null);
