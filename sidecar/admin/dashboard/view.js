// Draws a frame of figures.

import { ICONS, byId, clock, duration, el, milliseconds, none, percent, rate, row, rows, setText, spark, sparkSvg } from "./dom.js";

const LEVEL = { healthy: "good", degraded: "warning", unhealthy: "critical", critical: "critical" };
const STATE = { closed: ["good", "closed"], half_open: ["warning", "half-open"], open: ["serious", "open"] };
const CAUSE = {
  consecutive: "failures in a row",
  failure_ratio: "too many failures",
  slow_ratio: "too many slow calls",
  open_time_over: "finding out whether it is back",
  probe_failed: "a probe failed",
  probes_slow: "probes are slow",
  probes_succeeded: "probes succeeded",
  forced: "by an operator",
};

export function draw(state, window, act) {
  const all = total(state.routes, window);
  drawNow(state, all, window);
  drawTiles(all, state);
  drawRoutes(state.routes, window);
  drawBreakers(state.breakers, act);
  drawUpstreams(state.upstreams);
  drawCounts("fallbacks", state.routes, window, "fallbacks");
  drawCounts("shadow", state.routes, window, "shadow");
  drawChecks(state);
  setText(byId("where"), `${state.environment}, version ${state.version}, up ${duration(state.uptime_seconds)}`);
  const { generation, loaded_at: loadedAt, warnings } = state.configuration;
  const warned = warnings ? `, ${warnings} warning${warnings > 1 ? "s" : ""}` : "";
  setText(byId("configuration"), `Configuration generation ${generation}, since ${clock(loadedAt)}${warned}.`);
}

// What clients saw: routes of ingress alone, unless there are none.
function total(routes, window) {
  const fromClients = routes.filter((it) => it.plane === "ingress" && it.windows[window].requests);
  const counted = fromClients.length ? fromClients : routes;
  const sum = { requests: 0, errors: 0, fallbacks: 0, hits: 0, lookedUp: 0, seconds: 1, slowest: null };
  for (const { route, windows } of counted) {
    const it = windows[window];
    sum.requests += it.requests;
    sum.errors += it.errors;
    sum.fallbacks += count(it.fallbacks);
    sum.seconds = Math.max(sum.seconds, it.seconds);
    if (it.p95_ms !== null && (sum.slowest === null || it.p95_ms > sum.slowest[1])) sum.slowest = [route, it.p95_ms];
  }
  for (const { windows } of routes) {
    sum.hits += windows[window].hits;
    sum.lookedUp += windows[window].looked_up;
  }
  return sum;
}

const count = (counts) => Object.values(counts).reduce((sum, one) => sum + one, 0);

function drawNow(state, all, window) {
  const [worst, ...rest] = state.troubles;
  const level = worst ? worst.level : "good";
  const last = window === "1" ? "last minute" : `last ${window} minutes`;
  const figures = all.requests
    ? `${rate(all.requests / all.seconds)} requests a second, ${all.errors ? percent(all.errors, all.requests) : "no"} errors in the ${last}.`
    : `No traffic in the ${last}.`;
  byId("now").dataset.level = level;
  setText(byId("headline-icon"), ICONS[level]);
  setText(byId("headline-text"), worst ? worst.text : `All is well. ${figures}`);
  rows(
    byId("troubles"),
    rest,
    (it) => it.text.replace(/[0-9.]+/g, "#"),
    () => el("li", {}, el("span", { class: "icon", "aria-hidden": "true" }), el("span")),
    (item, it) => {
      item.firstChild.className = `icon ${it.level}`;
      setText(item.firstChild, ICONS[it.level]);
      setText(item.lastChild, it.text);
    },
  );
  document.title = `${ICONS[level]} Sidecar: ${worst ? level : "all is well"}`;
}

function drawTiles(all, state) {
  const tile = (name, value, small = "") => ({ name, value, small });
  const tiles = [
    tile("Requests", rate(all.requests / all.seconds), "/s"),
    tile("Errors", percent(all.errors, all.requests), all.errors ? ` ${all.errors}` : ""),
    tile("Slowest route's p95", all.slowest ? milliseconds(all.slowest[1]) : none),
    tile("Cache hits", percent(all.hits, all.lookedUp)),
    tile("Fallbacks", percent(all.fallbacks, all.requests)),
    tile("CPU of the machine", `${Math.round(state.system.cpu_percent)} %`, ""),
  ];
  rows(
    byId("tiles"),
    tiles,
    (it) => it.name,
    (it) => el("div", {}, el("dt", {}, it.name), el("dd", {}, el("span"), el("small"))),
    (div, it) => {
      setText(div.lastChild.firstChild, it.value);
      setText(div.lastChild.lastChild, it.small);
    },
  );
}

function drawRoutes(routes, window) {
  const recent = (it) => it.windows["15"].requests;
  const busy = routes.filter(recent).sort((a, b) => recent(b) - recent(a) || a.route.localeCompare(b.route));
  rows(
    byId("routes"),
    busy,
    (it) => it.route,
    () => {
      const made = row(9, "", "wide", "n", "n", "n mid", "n", "n mid", "n", "n mid");
      made.children[0].append(el("span"), " ", el("small"));
      made.children[1].append(sparkSvg());
      return made;
    },
    (made, it) => {
      const [name, drawn, traffic, errors, p50, p95, p99, hits, fallbacks] = made.children;
      const figures = it.windows[window];
      setText(name.firstChild, it.route);
      setText(name.lastChild, `to ${it.upstream}${it.plane === "egress" ? ", a call of the app" : ""}`);
      spark(drawn.firstChild, it.requests, it.errors);
      setText(traffic, rate(figures.requests / figures.seconds));
      setText(errors, figures.errors ? percent(figures.errors, figures.requests) : figures.requests ? "0" : none);
      errors.className = figures.errors ? "n critical" : "n none";
      setText(p50, milliseconds(figures.p50_ms));
      setText(p95, milliseconds(figures.p95_ms));
      setText(p99, milliseconds(figures.p99_ms));
      setText(hits, percent(figures.hits, figures.looked_up));
      const fallen = count(figures.fallbacks);
      setText(fallbacks, fallen ? percent(fallen, figures.requests) : none);
      fallbacks.className = fallen ? "n mid warning" : "n mid none";
    },
  );
  const quiet = routes.filter((it) => !recent(it)).map((it) => it.route);
  setText(byId("routes-quiet"), quiet.length ? `Without traffic in the last 15 minutes: ${quiet.join(", ")}.` : "");
}

function drawBreakers(breakers, act) {
  rows(
    byId("breakers"),
    breakers,
    (it) => it.breaker,
    (it) => {
      const made = row(3);
      const button = (action, text) => {
        const one = el("button", { type: "button", "data-action": action }, text);
        one.setAttribute("aria-label", `${text} the circuit breaker of ${it.breaker}`);
        one.addEventListener("click", () => act(it.breaker, action));
        return one;
      };
      setText(made.children[0], it.breaker);
      made.children[1].append(el("span", { class: "state" }), el("span", { class: "why" }));
      made.children[2].append(
        el("div", { class: "buttons" }, button("force_open", "Force open"), button("force_close", "Force closed"), button("reset", "Reset")),
      );
      return made;
    },
    (made, it) => {
      const [state, why] = made.children[1].children;
      const [level, word] = STATE[it.state];
      state.className = `state ${it.forced && it.state === "closed" ? "warning" : level}`;
      setText(state, `${ICONS[level]} ${it.forced ? "forced " : ""}${word}${it.mode === "shadow" ? " (shadow)" : ""}`);
      made.children[1].dataset.state = it.forced ? `forced_${it.state}` : it.state;
      setText(why, reasonOf(it));
    },
  );
  byId("breakers-none").hidden = breakers.length > 0;
}

function reasonOf(it) {
  if (it.forced) return `${it.forced.reason}; ends in ${duration(it.forced.expires_in_seconds)}`;
  if (!it.since) return "since the start";
  const wait = it.retry_after_seconds ? `, probed in ${duration(it.retry_after_seconds)}` : "";
  return `${CAUSE[it.cause] || it.cause}, since ${clock(it.since)}${wait}`;
}

function drawUpstreams(upstreams) {
  rows(
    byId("upstreams"),
    upstreams,
    (it) => it.upstream,
    () => row(5, "", "n", "n", "n", "n"),
    (made, it) => {
      const [name, calls, failed, p95, quota] = made.children;
      setText(name, it.upstream);
      setText(calls, rate(it.rate));
      const bad = it.failed + it.limited;
      setText(failed, bad ? percent(bad, it.calls) : it.calls ? "0" : none);
      failed.className = bad ? "n critical" : "n none";
      failed.title = Object.entries(it.verdicts).map(([verdict, calls_]) => `${verdict}: ${calls_}`).join(", ");
      setText(p95, milliseconds(it.p95_ms));
      const held = it.held_seconds !== null && it.held_seconds > 0;
      const left = it.quota_left === null ? none : Math.floor(it.quota_left).toLocaleString("en");
      setText(quota, held ? `held ${duration(it.held_seconds)}` : left);
      quota.className = held ? "n serious" : "n";
    },
  );
  byId("upstreams-none").hidden = upstreams.length > 0;
  hide("upstreams", !upstreams.length);
}

function hide(id, empty) {
  byId(id).closest("section").classList.toggle("off", empty);
}

function drawCounts(id, routes, window, what) {
  const counts = routes.flatMap(({ route, windows }) =>
    Object.entries(windows[window][what]).map(([kind, number]) => ({ route, kind, number })),
  );
  counts.sort((a, b) => b.number - a.number);
  rows(
    byId(id),
    counts,
    (it) => `${it.route} ${it.kind}`,
    () => row(3, "", "", "n"),
    (made, it) => {
      setText(made.children[0], it.route);
      setText(made.children[1], it.kind);
      setText(made.children[2], it.number.toLocaleString("en"));
    },
  );
  byId(`${id}-none`).hidden = counts.length > 0;
  hide(id, !counts.length);
}

function drawChecks({ checks, system }) {
  rows(
    byId("checks"),
    Object.entries(checks),
    ([name]) => name,
    () => row(3),
    (made, [name, check]) => {
      const level = LEVEL[check.status];
      setText(made.children[0], name.replace("_", " "));
      made.children[1].className = `state ${level}`;
      setText(made.children[1], `${ICONS[level]} ${check.status}`);
      const took = check.latency_ms === undefined ? "" : `answers in ${milliseconds(check.latency_ms)}`;
      setText(made.children[2], check.reason || took);
    },
  );
  const facts = {
    "Memory of the machine": `${Math.round(system.memory_percent)} %`,
    "Open files": `${system.open_fds}`,
    Threads: `${system.threads}`,
    "Memory of the sidecar": `${Math.round(system.resident_bytes / 1048576)} MiB`,
  };
  rows(
    byId("system"),
    Object.entries(facts),
    ([name]) => name,
    ([name]) => el("div", {}, el("dt", {}, name), el("dd")),
    (div, [, value]) => setText(div.lastChild, value),
  );
}

export function drawDecisions(decisions, withPlain, enabled) {
  const shown = decisions.filter((it) => withPlain || !it.plain).slice(0, 200);
  rows(
    byId("decisions"),
    shown,
    (it) => it.key,
    (it) => {
      const made = row(5, "n", "", "", "mid", "n");
      const [time, status, request, route, took] = made.children;
      const level = it.status >= 500 || it.end !== "done" ? "critical" : it.status >= 400 || !it.plain ? "warning" : "good";
      time.replaceWith(el("td", { class: "n none" }, clock(it.timestamp)));
      status.replaceWith(el("td", { class: `state ${level}` }, `${ICONS[level]} ${it.status}${it.end === "done" ? "" : ` ${it.end}`}`));
      request.replaceWith(
        el("th", { scope: "row" }, el("span", { class: "path" }, `${it.method} ${it.path}`), el("span", { class: "trail" }, it.trail)),
      );
      setText(route, it.route);
      setText(took, it.duration_ms < 10 ? it.duration_ms.toFixed(1) : Math.round(it.duration_ms).toLocaleString("en"));
      return made;
    },
    () => {},
  );
  const empty = byId("decisions-none");
  empty.hidden = shown.length > 0;
  setText(empty, enabled ? "None: every request so far was a plain success." : "The access log is off (logging.access), and these come from it.");
}
