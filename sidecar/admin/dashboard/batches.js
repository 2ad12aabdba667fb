// Batches and how far they are: where there is a store for them.

import { byId, duration, el, rate, row, rows, setText } from "./dom.js";

const PERIOD = 2000;
const MOST = 20;

export async function watchBatches(visible) {
  try {
    const { enabled } = await (await fetch("/admin/batch/stats")).json();
    if (enabled === false) return;
  } catch {
    setTimeout(() => watchBatches(visible), 5 * PERIOD);
    return;
  }
  byId("batches-panel").hidden = false;
  setInterval(() => visible() && look(), PERIOD);
  look();
}

async function look() {
  try {
    const answer = await fetch("/batches");
    const told = await answer.json();
    if (answer.ok) draw(told.batches.slice(0, MOST));
    else trouble(`Not known just now: ${told.detail}`); // those that are shown stay
  } catch {
    // the live line tells that the sidecar is away
  }
}

function trouble(text) {
  setText(byId("batches-none"), text);
  byId("batches-none").hidden = false;
}

function draw(batches) {
  rows(
    byId("batches"),
    batches,
    (it) => it.id,
    () => {
      const made = row(3);
      made.children[0].append(el("span"), " ", el("small"));
      made.children[1].append(el("span", { class: "state" }), el("span", { class: "why" }));
      made.children[2].append(el("progress", { max: "1" }), " ", el("small"));
      return made;
    },
    (made, it) => {
      const [name, status, progress] = made.children;
      const { total, completed, failed, unknown } = it.counts;
      const done = completed + failed + unknown;
      setText(name.firstChild, it.name || it.id);
      setText(name.lastChild, it.name ? it.id : "");
      status.firstChild.className = `state ${{ paused: "warning", failed: "critical" }[it.status] || ""}`;
      setText(status.firstChild, it.status);
      setText(status.lastChild, it.reason || "");
      progress.firstChild.value = total ? done / total : 0;
      progress.firstChild.setAttribute("aria-label", `Progress of batch ${it.name || it.id}`);
      const speed = it.finished === undefined && it.jobs_per_second ? `${rate(it.jobs_per_second)} a second` : "";
      const left = it.eta_seconds ? `${duration(it.eta_seconds)} left` : "";
      const bad = [failed && `${failed} failed`, unknown && `${unknown} unknown`];
      setText(progress.lastChild, [`${done} of ${total}`, ...bad, speed, left].filter(Boolean).join(", "));
    },
  );
  if (batches.length) byId("batches-none").hidden = true;
  else trouble("None yet.");
}
