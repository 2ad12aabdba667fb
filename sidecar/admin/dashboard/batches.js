// Batches and how far they are: where the API has them.

import { byId, el, row, rows, setText } from "./dom.js";

const PERIOD = 2000;

export async function watchBatches(visible) {
  try {
    const { paths } = await (await fetch("/openapi.json")).json();
    if (!paths["/batches"] || !paths["/batches"].get) return;
  } catch {
    setTimeout(() => watchBatches(visible), 5 * PERIOD);
    return;
  }
  byId("batches-panel").hidden = false;
  setInterval(() => visible() && look(), PERIOD);
  look();
}

async function look() {
  let listed;
  try {
    const answer = await fetch("/batches");
    if (!answer.ok) return;
    listed = await answer.json();
  } catch {
    return; // the live line tells that the sidecar is away
  }
  const batches = (Array.isArray(listed) ? listed : listed.batches || []).slice(0, 20);
  rows(
    byId("batches"),
    batches,
    (it) => it.id,
    () => {
      const made = row(3);
      made.children[2].append(el("progress", { max: "1" }), " ", el("small"));
      return made;
    },
    (made, it) => {
      const counts = it.counts || {};
      const done = (counts.completed || 0) + (counts.failed || 0) + (counts.unknown || 0);
      const bar = made.children[2].firstChild;
      setText(made.children[0], it.id);
      setText(made.children[1], it.status);
      bar.value = counts.total ? done / counts.total : 0;
      bar.setAttribute("aria-label", `Progress of batch ${it.id}`);
      setText(made.children[2].lastChild, `${done} of ${counts.total || 0}${counts.failed ? `, ${counts.failed} failed` : ""}`);
    },
  );
  byId("batches-none").hidden = batches.length > 0;
}
