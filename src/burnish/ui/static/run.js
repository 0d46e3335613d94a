// One run: its curves, the completions of a group side by side, and what happened to it.

import { chart } from "./chart.js";
import { ask, badge, el, fault, link, note, number, path, select, table, time } from "./dom.js";

const USUAL = [
  "held_out", "reward_mean", "loss", "entropy", "kl", "completion_tokens_mean", "truncated_share", "grad_norm",
];
const REFRESH_SECONDS = 3;
const MOST_SETTINGS = 200;

let chosen = null; // the metrics that were picked last, for every run
let shows = "alone", band = "range";

export async function showRun(main, again, name) {
  const found = await ask(path("runs", name), again.signal);
  const head = el("div");
  const curves = el("section", { "aria-label": "Curves" });
  const rollouts = el("section", { "aria-label": "Rollouts" });
  const events = el("section", { "aria-label": "Events" });
  main.replaceChildren(head, curves, rollouts, events);
  drawHead(head, found);
  const drawn = {
    curves: await curvesOf(curves, again, name, found),
    rollouts: rolloutsOf(rollouts, again, name),
    events: eventsOf(events, again, name),
  };
  await Promise.all([drawn.rollouts(found.rollout_steps), drawn.events()]);
  const refresh = async () => {
    const now = await ask(path("runs", name), again.signal);
    drawHead(head, now);
    await Promise.all([drawn.curves(now), drawn.rollouts(now.rollout_steps), drawn.events()]);
    if (now.row.status === "running") again.in(REFRESH_SECONDS, refresh);
  };
  if (found.row.status === "running") again.in(REFRESH_SECONDS, refresh);
}

function drawHead(head, run) {
  const of = run.num_steps === null ? "" : ` of ${run.num_steps}`;
  const facts = [
    ["Algorithm", run.row.algorithm], ["Step", `${run.row.step}${of}`], ["Seed", run.seed], ["Model", run.model],
    [`Held-out${run.measure ? " " + run.measure : ""}`, `${number(run.row.held_out_before)} → ${number(run.row.held_out)}`],
    ["Reward", number(run.row.reward)], ["Created (UTC)", time(run.row.created)], ["Folder", run.path],
  ].filter(([, value]) => value !== null && value !== "");
  const isOpen = head.querySelector("details")?.open;
  head.replaceChildren(
    el("p", { class: "crumb" }, el("a", { href: link("runs") }, "Runs"), " /"),
    el("h1", {}, run.row.name, " ", badge(run.row.status)),
    ...run.faults.map(fault),
    ...(run.failure ? [fault(`failed: ${run.failure}`)] : []),
    el("dl", { class: "facts" }, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    ...(run.settings.length ? [el("details", { open: isOpen },
      el("summary", {}, `Settings that are not the default (${run.settings.length})`),
      table("Settings", [["Setting"], ["Value"]], run.settings.slice(0, MOST_SETTINGS).map((each) => [each.key, each.value])))]
      : []));
}

// Returns what draws the curves anew.
async function curvesOf(section, again, name, first) {
  const seeds = await ask(path("runs", name, "replicates"), again.signal).catch(() => []);
  const picture = el("div", { class: "charts" });
  const problem = el("div");
  const picker = el("fieldset", { class: "metrics" });
  let metrics = first.metrics;
  let order = 0;

  const isChosen = (metric) => (chosen ?? USUAL).includes(metric);
  const draw = async () => {
    const mine = ++order;
    const shown = metrics.filter(isChosen);
    if (!shown.length) {
      picture.replaceChildren(note(metrics.length ? "no metric is picked" : "no metrics yet"));
      return;
    }
    const query = new URLSearchParams(shown.map((metric) => ["metric", metric]));
    query.set("band", band);
    query.set("with_replicates", String(shows === "seeds" && seeds.length > 1));
    try {
      const found = await ask(`${path("runs", name, "curves")}?${query}`, again.signal);
      if (mine !== order) return; // another was asked for meanwhile
      problem.replaceChildren();
      picture.replaceChildren(...found.curves.map(chart));
    } catch (error) {
      if (error.name === "AbortError") throw error;
      problem.replaceChildren(fault(error.message));
    }
  };
  const pick = () => {
    chosen = [...picker.querySelectorAll("input:checked")].map((each) => each.value);
    draw();
  };
  const drawPicker = () => picker.replaceChildren(el("legend", {}, "Metrics"), ...metrics.map((metric) =>
    el("label", {}, el("input", { type: "checkbox", value: metric, checked: isChosen(metric), onchange: pick }), metric)));

  const controls = el("div", { class: "controls" });
  if (seeds.length > 1) {
    const names = seeds.map((each) => each.seed ?? each.name).join(", ");
    controls.append(
      select("Show", [["alone", "this run"], ["seeds", `mean of its ${seeds.length} seeds (${names})`]], shows,
        (value) => { shows = value; draw(); }),
      select("Band of the mean", [["range", "lowest to highest"], ["t", "95 % t interval"]], band,
        (value) => { band = value; draw(); }));
  }
  drawPicker();
  section.replaceChildren(el("h2", {}, "Curves"), controls,
    el("details", { class: "pick" }, el("summary", {}, `Pick metrics (${metrics.length})`), picker), problem, picture);
  await draw();
  return async (now) => {
    if (now.metrics.join() !== metrics.join()) {
      metrics = now.metrics;
      drawPicker();
    }
    if (!picture.querySelector(":focus-visible")) await draw(); // not while the arrow keys read a value
  };
}

function rolloutsOf(section, again, name) {
  const controls = el("div", { class: "controls" });
  const place = el("div");
  let steps = null, step = null, group = 0, groups = [];

  const guarded = async (work) => {
    try {
      await work();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      place.replaceChildren(fault(error.message));
    }
  };
  const showGroup = (which) => guarded(async () => {
    group = which;
    place.replaceChildren(completions(await ask(path("runs", name, "rollouts", step, group), again.signal)));
  });
  const showStep = (which) => guarded(async () => {
    step = which;
    groups = (await ask(path("runs", name, "rollouts", step), again.signal)).groups;
    drawControls();
    if (groups.length) await showGroup(Math.min(group, groups.length - 1));
    else place.replaceChildren(note("no groups are stored for this step"));
  });
  const drawControls = () => {
    const move = (change) => {
      const at = steps.indexOf(step) + change;
      if (at >= 0 && at < steps.length) showStep(steps[at]);
    };
    controls.replaceChildren(
      el("button", { type: "button", onclick: () => move(-1), disabled: step === steps[0] }, "← earlier"),
      select("Step", steps.map((each) => [each, each]), step, (value) => showStep(Number(value))),
      el("button", { type: "button", onclick: () => move(1), disabled: step === steps.at(-1) }, "later →"),
      select("Group", groups.map((each) => [each.number, groupName(each)]), group, (value) => showGroup(Number(value))));
  };
  return async (now) => {
    if (steps !== null && now.join() === steps.join()) return;
    const wasLast = steps === null || step === steps.at(-1);
    const isFirst = steps === null;
    steps = now;
    if (!steps.length) {
      section.replaceChildren(el("h2", {}, "Rollouts"), note("no rollouts are stored"));
      return;
    }
    section.replaceChildren(el("h2", {}, "Rollouts"), controls, place);
    // what somebody reads stays; whoever looked at the newest step sees the newer one, unless a control is in use
    if (isFirst || !steps.includes(step) || (wasLast && !section.contains(document.activeElement))) {
      await showStep(steps.at(-1));
    } else drawControls();
  };
}

const groupName = (group) =>
  `${group.number}: reward ${number(group.reward_min, 2)} to ${number(group.reward_max, 2)}, ${group.question.slice(0, 50)}`;

function completions(group) {
  const best = [...group.completions].sort((a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity));
  const said = group.messages.map((each) => el("div", { class: "said" },
    el("span", { class: "role" }, each.role), el("pre", {}, each.content)));
  return el("div", {},
    el("div", { class: "prompt" }, said,
      el("p", { class: "note" }, `task ${group.task_id}; reference answer: `, el("code", {}, group.answer)),
      el("details", {}, el("summary", {}, "Prompt as the model saw it"), el("pre", {}, group.prompt))),
    el("div", { class: "completions", tabindex: "0", role: "region", "aria-label": "Completions, best reward first" },
      best.map((each, index) => completion(each, index))));
}

function completion(each, index) {
  const parts = Object.entries(each.parts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, number(value))));
  const sign = each.advantage > 0 ? "up" : each.advantage < 0 ? "down" : "even";
  return el("article", { class: "completion", "data-sign": sign, "aria-label": `Completion ${index + 1}` },
    el("dl", {},
      el("div", { class: "main" }, el("dt", {}, "reward"), el("dd", {}, number(each.reward))),
      el("div", { class: "main" }, el("dt", {}, "advantage"),
        el("dd", {}, `${each.advantage > 0 ? "+" : ""}${number(each.advantage)}`)),
      parts,
      el("div", {}, el("dt", {}, "length"), el("dd", {}, `${each.length_tokens} tokens`)),
      each.ended ? el("div", {}, el("dt", {}, "ended"), el("dd", {}, each.ended)) : null),
    each.truncated ? el("span", { class: "badge", "data-kind": "truncated" }, "truncated") : null,
    el("pre", {}, each.text === "" ? "(empty)" : each.text));
}

function eventsOf(section, again, name) {
  const list = el("ol", { class: "events" });
  let found = { events: [], num_earlier: 0 }, severity = "all", kind = "all";

  const draw = () => {
    const shown = found.events.filter((each) =>
      (severity === "all" || each.severity === severity) && (kind === "all" || (each.event === "alert") === (kind === "alerts")));
    list.replaceChildren(...shown.map((each) => el("li", { "data-severity": each.severity },
      el("span", { class: "badge", "data-kind": each.severity }, each.severity),
      el("time", {}, time(each.time)),
      el("span", { class: "step" }, each.step === null ? "" : `step ${each.step}`),
      el("strong", {}, each.name === null ? each.event : `${each.event} ${each.name}`),
      each.state === null ? null : el("em", {}, each.state),
      el("span", { class: "message" }, each.message))));
    if (!shown.length) list.replaceChildren(el("li", { class: "note" }, "none"));
    if (found.num_earlier) list.append(el("li", { class: "note" }, `and ${found.num_earlier} earlier ones`));
  };
  section.replaceChildren(el("h2", {}, "Alerts and events"),
    el("div", { class: "controls" },
      select("Severity", [["all", "all"], ["critical", "critical"], ["warning", "warning"], ["info", "info"]], "all",
        (value) => { severity = value; draw(); }),
      select("Kind", [["all", "alerts and events"], ["alerts", "alerts"], ["others", "other events"]], "all",
        (value) => { kind = value; draw(); })),
    list);
  return async () => {
    try {
      found = await ask(path("runs", name, "events"), again.signal);
      draw();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      list.replaceChildren(el("li", {}, fault(error.message)));
    }
  };
}
