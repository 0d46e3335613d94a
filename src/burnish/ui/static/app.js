// Which view is shown: the part of the address after # says it.

import { el, fault, link } from "./dom.js";
import { showEvaluation, showEvaluations } from "./evaluations.js";
import { showRun } from "./run.js";
import { showRuns } from "./runs.js";
import { showServing } from "./serving.js";

const VIEWS = { runs: [showRuns, showRun], evaluations: [showEvaluations, showEvaluation], serving: [showServing] };
const RETRY_SECONDS = 5;

const main = document.getElementById("main");
let current = null; // what the view that is shown still waits for

// The time of a view: ends its requests and its next look when another view is opened.
function lifetime(onfault) {
  const controller = new AbortController();
  let timer = 0;
  const run = async (work) => {
    try {
      await work();
      onfault(null);
    } catch (error) {
      if (controller.signal.aborted) return;
      onfault(error);
      timer = setTimeout(run, RETRY_SECONDS * 1000, work);
    }
  };
  return {
    signal: controller.signal,
    in: (seconds, work) => { if (!controller.signal.aborted) timer = setTimeout(run, seconds * 1000, work); },
    end: () => { controller.abort(); clearTimeout(timer); },
  };
}

async function show() {
  const [view = "runs", name] = location.hash.replace(/^#\//, "").split("/").filter(Boolean).map(decoded);
  const shown = VIEWS[view]?.[name === undefined ? 0 : 1];
  current?.end();
  const trouble = el("div");
  const again = lifetime((error) => trouble.replaceChildren(
    ...(error === null ? [] : [fault(`${error.message}: what is shown may be old; trying again`)])));
  current = again;
  document.title = name === undefined ? `${view} · burnish` : `${name} · burnish`;
  for (const each of document.querySelectorAll("nav a")) {
    if (each.getAttribute("href") === link(view)) each.setAttribute("aria-current", "page");
    else each.removeAttribute("aria-current");
  }
  const place = el("div");
  try {
    if (shown === undefined) throw new Error(`there is no page ${location.hash}`);
    await shown(place, again, name);
  } catch (error) {
    if (again.signal.aborted) return;
    place.replaceChildren(el("h1", {}, name ?? view), fault(error.message));
  }
  if (again.signal.aborted) return;
  main.replaceChildren(trouble, place);
  if (main.hasAttribute("data-shown")) main.focus(); // whoever came by a link reads on from here
  main.setAttribute("data-shown", view);
  window.scrollTo(0, 0);
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the part after # is the view
  main.focus();
});
window.addEventListener("hashchange", show);
show();
