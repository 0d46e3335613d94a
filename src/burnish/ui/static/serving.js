// What a server says of itself, asked every two seconds by this page's own server.

import { ask, count, el, note, number, table } from "./dom.js";

const REFRESH_SECONDS = 2;

export async function showServing(main, again) {
  const place = el("div");
  main.replaceChildren(el("h1", {}, "Serving"), place);
  let before = null;
  const load = async () => {
    const now = { found: await ask("/api/serving", again.signal), at: performance.now() };
    const focused = place.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    place.replaceChildren(...drawn(now, before));
    if (focused !== null) place.querySelector(`[role="region"][aria-label="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
    before = now;
    if (now.found.url !== null) again.in(REFRESH_SECONDS, load);
  };
  await load();
}

function drawn({ found, at }, before) {
  if (!found.answers) return [note(found.reason)];
  const models = found.models.map((each) => [each.id, each.version, each.fingerprint?.slice(0, 16)]);
  const progress = Object.entries(found.progress).map(([name, value]) => [name, count(value)]);
  const earlier = new Map((before?.found.metrics ?? []).map((each) => [keyOf(each), each.value]));
  const rate = (each) => {
    const then = earlier.get(keyOf(each));
    if (each.kind === "gauge" || then === undefined || each.value < then) return "–";
    return number(((each.value - then) / (at - before.at)) * 1000);
  };
  const labels = (each) => Object.entries(each.labels).map(([name, value]) => `${name}=${value}`).join(", ");
  const metrics = found.metrics.map((each) => [
    el("span", { title: each.help }, each.name), labels(each), each.kind, count(each.value), rate(each),
    each.mean === null ? "" : number(each.mean)]);
  return [
    el("p", {}, el("span", { class: "badge", "data-kind": found.ready === "ready" ? "finished" : "failed" }, found.ready), ` ${found.url}`),
    part("Models", found.models_reason, () => table("Models", [["Model"], ["Version", true], ["Fingerprint"]], models)),
    part("Progress", found.progress_reason, () => table("Progress", [["What"], ["Number", true]], progress, "scroll narrow")),
    part("Metrics", found.metrics_reason, () => table("Metrics",
      [["Metric"], ["Labels"], ["Kind"], ["Value, or count", true], ["Per second", true], ["Mean", true]], metrics)),
  ];
}

const keyOf = (each) => JSON.stringify([each.name, each.labels]);

function part(name, reason, draw) {
  return el("section", { "aria-label": name }, el("h2", {}, name), reason === null ? draw() : note(reason));
}
