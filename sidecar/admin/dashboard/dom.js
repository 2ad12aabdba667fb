// What the parts of the page share: elements, figures as text, tables whose rows stay where the focus is.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

// Text only: nothing that a client of the sidecar sent can become markup.
export function el(name, attributes = {}, ...inner) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...inner);
  return made;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Rows by key: those that stay are updated in place, so that a focused button is still focused.
export function rows(body, items, keyOf, make, update) {
  const old = new Map([...body.children].map((row) => [row.dataset.key, row]));
  let place = body.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let row = old.get(key);
    old.delete(key);
    if (!row) {
      row = make(item);
      row.dataset.key = key;
    }
    update(row, item);
    if (row === place) place = place.nextElementSibling;
    else body.insertBefore(row, place);
  }
  for (const row of old.values()) row.remove();
}

// A row of a header cell and `count` cells; `classes` by position.
export function row(count, ...classes) {
  const made = el("tr");
  for (let at = 0; at < count; at += 1) {
    const cell = at ? el("td") : el("th", { scope: "row" });
    if (classes[at]) cell.className = classes[at];
    made.append(cell);
  }
  return made;
}

export const none = "–";

export function rate(perSecond) {
  if (!perSecond) return "0";
  if (perSecond < 0.1) return "<0.1";
  return perSecond < 100 ? perSecond.toFixed(1) : Math.round(perSecond).toLocaleString("en");
}

export function percent(part, whole) {
  if (!whole) return none;
  const share = (100 * part) / whole;
  if (share > 0 && share < 0.1) return "<0.1 %";
  return share === 0 || share === 100 ? `${share} %` : `${share.toFixed(1)} %`;
}

export function milliseconds(value) {
  if (value === null || value === undefined) return none;
  if (value >= 10000) return `${(value / 1000).toFixed(0)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return `${value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}

export function duration(seconds) {
  if (seconds < 100) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

export function clock(stamp) {
  return new Date(stamp).toLocaleTimeString("en-GB");
}

// Bars of counts, the errors among them in another colour at the foot.
export function spark(svg, counts, errors) {
  const text = counts.join() + errors.join();
  if (svg.dataset.drawn === text) return;
  svg.dataset.drawn = text;
  const slots = 60;
  const top = Math.max(1, ...counts);
  const path = (values) => {
    const start = slots - values.length;
    return values
      .map((value, at) => {
        if (!value) return "";
        const height = Math.max(1, (20 * value) / top);
        return `M${((start + at) * 2.5).toFixed(1)} 22v-${height.toFixed(1)}h2v${height.toFixed(1)}z`;
      })
      .join("");
  };
  const bars = (name, values) => {
    const made = document.createElementNS(SVG, "path");
    made.setAttribute("class", name);
    made.setAttribute("d", path(values));
    return made;
  };
  const sum = counts.reduce((all, one) => all + one, 0);
  const failed = errors.reduce((all, one) => all + one, 0);
  svg.replaceChildren(bars("all", counts), bars("bad", errors));
  svg.setAttribute("aria-label", `${sum} requests in 5 minutes, ${failed} errors`);
}

export function sparkSvg() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("viewBox", "0 0 150 22");
  svg.setAttribute("role", "img");
  return svg;
}

export const ICONS = { good: "●", note: "◦", warning: "▲", serious: "◆", critical: "✖", waiting: "…" };
