// Acts on a breaker, after asking why, for how long and, where there is one, for the token.

import { byId, setText } from "./dom.js";

const KEPT = "sidecar.token"; // in sessionStorage: it goes with the tab
const WORDS = {
  force_open: ["Force open", "Nothing is let through to it; policies with a fallback use it. Then probes find out whether it is well."],
  force_close: ["Force closed", "All is let through, and failures are not counted. Then the breaker judges again."],
  reset: ["Reset", "It is closed and starts to count afresh, whatever was measured or forced."],
};

let asked = null;
let takesToken = false;

export function tokenNeeded(needed) {
  takesToken = needed;
}

export function ask(breaker, action) {
  const [verb, what] = WORDS[action];
  asked = { breaker, action };
  setText(byId("act-heading"), `${verb}: ${breaker}`);
  setText(byId("act-what"), what);
  setText(byId("act-do"), verb);
  setText(byId("act-error"), "");
  byId("act-reason").value = "";
  byId("act-time").hidden = action === "reset";
  byId("act-token-row").hidden = !takesToken || sessionStorage.getItem(KEPT) !== null;
  byId("act").showModal();
  byId("act-reason").focus();
}

async function go() {
  const reason = byId("act-reason").value.trim();
  if (!reason) {
    setText(byId("act-error"), "Say why: the log and your colleagues want to know.");
    byId("act-reason").focus();
    return;
  }
  const order = { ...asked, reason };
  if (asked.action !== "reset") order.expires = byId("act-expires").value;
  const token = byId("act-token").value || sessionStorage.getItem(KEPT);
  const headers = { "Content-Type": "application/json" };
  if (takesToken && token) headers.Authorization = `Bearer ${token}`;
  byId("act-do").disabled = true;
  try {
    const answer = await fetch("/admin/breakers", { method: "POST", headers, body: JSON.stringify(order) });
    if (answer.ok) {
      if (takesToken && token) sessionStorage.setItem(KEPT, token);
      byId("act-token").value = "";
      byId("act").close();
      return;
    }
    if (answer.status === 401) {
      sessionStorage.removeItem(KEPT);
      byId("act-token").value = "";
      byId("act-token-row").hidden = false;
      byId("act-token").focus();
    }
    const { detail } = await answer.json();
    setText(byId("act-error"), answer.status === 401 ? "The token is missing or wrong." : detail);
  } catch {
    setText(byId("act-error"), "The sidecar does not answer; nothing was done.");
  } finally {
    byId("act-do").disabled = false;
  }
}

byId("act-do").addEventListener("click", go);
byId("act-cancel").addEventListener("click", () => byId("act").close());
byId("act").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.tagName === "INPUT") go();
});
