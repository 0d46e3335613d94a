// The eval stores, the figures of one, and two of them compared.

import { ask, badge, count, el, fault, interval, link, note, number, path, select, table, time } from "./dom.js";

export async function showEvaluations(main, again) {
  const found = await ask(path("evaluations"), again.signal);
  const rows = found.stores.map((store) => {
    const name = el("a", { href: link("evaluations", store.name) }, store.name);
    if (store.reason !== null) return [name, badge(store.status), el("span", { class: "reason" }, store.reason)];
    const figure = store.figure;
    return [name, badge(store.status), store.label, store.source, count(store.num_items),
      figure === null ? "–" : `${figure.measure} ${number(figure.value)}`,
      figure === null ? "–" : interval(figure.low, figure.high), time(store.created)];
  });
  const columns = [["Store"], ["Status"], ["Model"], ["Task"], ["Items", true], ["Mean", true], ["95 % CI", true], ["Created (UTC)"]];
  const names = found.stores.filter((store) => store.status === "done").map((store) => store.name);
  main.replaceChildren(
    el("h1", {}, "Evaluations"),
    rows.length ? table("Eval stores", columns, rows) : note(`no eval stores in ${found.folder}: burnish eval makes one`),
    ...(names.length > 1 ? [comparison(names, again)] : []));
}

function comparison(names, again) {
  const place = el("div", { role: "status" });
  let [b, a] = names; // the newest against the one before it
  let margin = "";
  const draw = async () => {
    const query = new URLSearchParams({ a, b });
    if (margin !== "") query.set("margin", margin);
    try {
      place.replaceChildren(...compared(await ask(`/api/comparison?${query}`, again.signal)));
    } catch (error) {
      if (error.name === "AbortError") return;
      place.replaceChildren(fault(error.message));
    }
  };
  const options = names.map((name) => [name, name]);
  draw();
  return el("section", { "aria-label": "Comparison" },
    el("h2", {}, "Compare two"),
    el("div", { class: "controls" },
      select("Baseline A", options, a, (value) => { a = value; draw(); }),
      select("B", options, b, (value) => { b = value; draw(); }),
      el("label", { class: "control" }, el("span", {}, "Margin that does not matter"),
        el("input", { type: "number", min: "0", step: "any", placeholder: "none",
          onchange: (event) => { margin = event.target.value; draw(); } }))),
    place);
}

function compared(found) {
  const claim = found.claim, [verdict, ...takes] = claim.verdict;
  return [
    el("p", { class: "verdict", "data-kind": verdict.split(",")[0] }, `verdict: ${verdict}`),
    ...takes.map(note),
    el("p", {}, `${claim.label_b} against ${claim.label_a} on ${found.num_items} items: difference ` +
      `${claim.difference > 0 ? "+" : ""}${number(claim.difference)}, 95 % CI ${interval(claim.low, claim.high)}, ` +
      `${claim.test} p = ${number(claim.p_value, 4)}`),
    table("Means", [["Store"], ["Mean", true], ["95 % CI", true], ["By"]],
      found.arms.map((arm) => [arm.label, number(arm.mean), interval(arm.low, arm.high), arm.interval]), "scroll narrow"),
    ...found.notes.map((text) => note(`note: ${text}`)),
  ];
}

export async function showEvaluation(main, again, name) {
  const crumb = el("p", { class: "crumb" }, el("a", { href: link("evaluations") }, "Evaluations"), " /");
  const found = await ask(path("evaluations", name), again.signal);
  main.replaceChildren(crumb, el("h1", {}, found.name),
    el("p", {}, `${found.label}: ${found.asked}`),
    table("Figures", [["Measure"], ["Of"], ["Value", true], ["95 % CI", true], ["n", true], ["Method"]],
      found.figures.map((each) => [
        each.measure, each.of, number(each.value), interval(each.low, each.high), count(each.n), each.method])),
    ...found.remarks.map(note));
}
