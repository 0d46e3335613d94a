// The table of runs: sorted by any column, filtered by words.

import { ask, badge, count, el, link, number, path, time } from "./dom.js";

const COLUMNS = [
  ["name", "Run", false], ["status", "Status", false], ["algorithm", "Algorithm", false], ["step", "Step", true],
  ["held_out_before", "Held-out before", true], ["held_out", "Held-out", true], ["reward", "Reward", true],
  ["created", "Created (UTC)", false],
];
const MOST_ROWS = 2000;
const REFRESH_SECONDS = 5;

let sortedBy = "created", isAscending = false, wanted = "";

export async function showRuns(main, again) {
  const heads = el("tr");
  const body = el("tbody");
  const total = el("p", { class: "note", role: "status" });
  let runs = [];

  const draw = () => {
    const words = wanted.toLowerCase().split(/\s+/).filter(Boolean);
    const text = (run) => [run.name, run.status, run.algorithm, run.created].join(" ").toLowerCase();
    const kept = runs.filter((run) => words.every((word) => text(run).includes(word)));
    kept.sort((a, b) => compared(a[sortedBy], b[sortedBy]));
    body.replaceChildren(...kept.slice(0, MOST_ROWS).map(row));
    total.textContent = kept.length > MOST_ROWS
      ? `the first ${MOST_ROWS} of ${kept.length} runs: filter to see others`
      : `${kept.length} of ${runs.length} runs`;
    const numBroken = runs.filter((run) => run.reason !== null).length;
    if (numBroken) total.textContent += `, ${numBroken} broken`;
    heads.replaceChildren(...COLUMNS.map(([key, name, isNumber]) => head(key, name, isNumber, draw)));
  };
  const filter = el("input", {
    type: "search", value: wanted, placeholder: "words of name, status, algorithm", autocomplete: "off",
    oninput: (event) => { wanted = event.target.value; draw(); },
  });
  const load = async () => {
    const found = await ask(path("runs"), again.signal);
    runs = found.runs;
    draw();
    if (!runs.length) total.textContent = `no runs in ${found.folder}: burnish train quickstart makes one`;
    if (runs.some((run) => run.status === "running")) again.in(REFRESH_SECONDS, load);
  };
  await load();
  main.replaceChildren(
    el("h1", {}, "Runs"),
    el("div", { class: "controls" }, el("label", { class: "control wide" }, el("span", {}, "Filter"), filter), total),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Runs" },
      el("table", { class: "runs" }, el("caption", { class: "hidden" }, "Runs"), el("thead", {}, heads), body)));
}

function compared(a, b) {
  const isMissing = [a, b].map((each) => each === null || each === "");
  if (isMissing[0] || isMissing[1]) return isMissing[0] - isMissing[1]; // last, whichever the order
  const order = typeof a === "number" ? a - b : a < b ? -1 : a > b ? 1 : 0;
  return isAscending ? order : -order;
}

function head(key, name, isNumber, draw) {
  const isSorted = key === sortedBy;
  const order = isSorted ? (isAscending ? "ascending" : "descending") : "none";
  const press = () => {
    isAscending = isSorted ? !isAscending : !isNumber && key !== "created";
    sortedBy = key;
    draw();
    document.querySelector(`[data-sort="${key}"]`)?.focus();
  };
  return el("th", { scope: "col", "aria-sort": order, class: isNumber ? "number" : null },
    el("button", { type: "button", class: "sort", "data-sort": key, onclick: press },
      name, el("span", { "aria-hidden": "true" }, isSorted ? (isAscending ? " ▲" : " ▼") : "")));
}

function row(run) {
  const name = el("td", {}, el("a", { href: link("runs", run.name) }, run.name));
  if (run.reason !== null) {
    return el("tr", {}, name, el("td", {}, badge(run.status)), el("td", { colspan: "6", class: "reason" }, run.reason));
  }
  const cells = [count(run.step), number(run.held_out_before), number(run.held_out), number(run.reward)];
  return el("tr", {}, name, el("td", {}, badge(run.status)), el("td", {}, run.algorithm ?? "–"),
    cells.map((each) => el("td", { class: "number" }, each)), el("td", { class: "time" }, time(run.created)));
}
