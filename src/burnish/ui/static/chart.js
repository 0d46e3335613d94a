// One metric over the steps, as SVG: a line with a band, or points with their intervals. No library.

import { el, number, svg } from "./dom.js";

const WIDTH = 480, HEIGHT = 220, LEFT = 56, RIGHT = 12, TOP = 10, BOTTOM = 26;

// Round steps of 1, 2 or 5 times a power of ten that cover a range.
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * power).find((each) => each >= rough) ?? 10 * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, index) => (first + index) * step);
}

function range(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return [0, 1];
  const space = low === high ? Math.max(Math.abs(low) * 0.1, 1e-9) : (high - low) * 0.05;
  return [low - space, high + space];
}

export function chart(curve) {
  const known = curve.steps.map((_, index) => index).filter((index) => curve.values[index] !== null);
  const [firstStep, lastStep] = [Math.min(...curve.steps.slice(0, 1)), Math.max(...curve.steps.slice(-1))];
  const [low, high] = range([...curve.values, ...curve.low, ...curve.high]);
  const x = (step) => LEFT + ((step - firstStep) / Math.max(1, lastStep - firstStep)) * (WIDTH - LEFT - RIGHT);
  const y = (value) => TOP + ((high - value) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const isPoints = curve.metric === "held_out";
  const last = known.at(-1);
  const about = known.length
    ? `${curve.metric}: ${number(curve.values[known[0]], 4)} at step ${curve.steps[known[0]]}, ` +
      `${number(curve.values[last], 4)} at step ${curve.steps[last]}`
    : `${curve.metric}: no values`;
  const readout = el("output", { class: "readout", "aria-live": "polite" }, said(curve, last));
  const picture = svg("svg", {
    viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", tabindex: "0", "aria-label": `${about}. Arrow keys read the values.`,
  }, axes([firstStep, lastStep], [low, high], x, y), band(curve, x, y), marks(curve, known, x, y, isPoints));
  follow(picture, curve, known, x, y, readout);
  return el("figure", { class: isPoints ? "chart points" : "chart" },
    el("figcaption", {}, el("strong", {}, curve.metric), readout), picture,
    curve.interval ? el("small", {}, `${curve.num_runs.some((n) => n > 1) ? "mean; band: " : ""}${curve.interval}`) : null);
}

function said(curve, index) {
  if (index === undefined) return "no values";
  const ends = curve.low[index] === null || curve.high[index] === null
    ? "" : ` [${number(curve.low[index])}, ${number(curve.high[index])}]`;
  return `step ${curve.steps[index]}: ${number(curve.values[index], 4)}${ends}`;
}

function axes([firstStep, lastStep], [low, high], x, y) {
  const parts = [];
  for (const value of ticks(low, high, 6)) {
    parts.push(svg("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y(value), y2: y(value) }));
    parts.push(svg("text", { x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, tick(value, high - low)));
  }
  const steps = ticks(firstStep, Math.max(lastStep, firstStep + 1), 6).filter(Number.isInteger);
  for (const step of steps.filter((each) => each <= lastStep)) {
    parts.push(svg("text", { x: x(step), y: HEIGHT - 8, "text-anchor": "middle" }, String(step)));
  }
  parts.push(svg("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
  return parts;
}

function tick(value, span) {
  const size = Math.max(Math.abs(value), span);
  if (value === 0) return "0";
  if (size >= 1e5 || size < 1e-3) return value.toExponential(1);
  return String(Number(value.toFixed(Math.max(0, 2 - Math.floor(Math.log10(span))))));
}

// The parts of a line between which no value is missing.
function pieces(curve, has) {
  const found = [[]];
  curve.steps.forEach((_, index) => (has(index) ? found.at(-1).push(index) : found.push([])));
  return found.filter((piece) => piece.length);
}

function band(curve, x, y) {
  if (curve.metric === "held_out" && curve.num_runs.every((n) => n === 1)) return [];
  return pieces(curve, (index) => curve.low[index] !== null && curve.high[index] !== null).map((piece) => {
    const above = piece.map((index) => `${x(curve.steps[index])},${y(curve.high[index])}`);
    const below = piece.map((index) => `${x(curve.steps[index])},${y(curve.low[index])}`).reverse();
    return svg("path", { class: "band", d: `M${[...above, ...below].join("L")}Z` });
  });
}

function marks(curve, known, x, y, isPoints) {
  const found = pieces(curve, (index) => curve.values[index] !== null);
  const parts = found.filter((piece) => piece.length > 1).map((piece) => svg("path", {
    class: "line", d: "M" + piece.map((index) => `${x(curve.steps[index])},${y(curve.values[index])}`).join("L"),
  }));
  const alone = found.filter((piece) => piece.length === 1).flat(); // which no line would show
  for (const index of isPoints ? known : alone) {
    const [px, py] = [x(curve.steps[index]), y(curve.values[index])];
    if (isPoints && curve.num_runs[index] === 1 && curve.low[index] !== null && curve.high[index] !== null) {
      parts.push(svg("line", { class: "bar", x1: px, x2: px, y1: y(curve.low[index]), y2: y(curve.high[index]) }));
    }
    parts.push(svg("circle", { class: "point", cx: px, cy: py, r: 3.5 }));
  }
  return parts;
}

// A cursor that the pointer or the arrow keys move; what is under it is read out above.
function follow(picture, curve, known, x, y, readout) {
  if (!known.length) return;
  let at = known.length - 1;
  const cursor = svg("g", { class: "cursor", visibility: "hidden" },
    svg("line", { y1: TOP, y2: HEIGHT - BOTTOM }), svg("circle", { r: 4.5 }));
  picture.append(cursor);
  const show = (place) => {
    at = Math.min(known.length - 1, Math.max(0, place));
    const index = known[at], px = x(curve.steps[index]);
    for (const name of ["x1", "x2"]) cursor.firstChild.setAttribute(name, px);
    cursor.lastChild.setAttribute("cx", px);
    cursor.lastChild.setAttribute("cy", y(curve.values[index]));
    cursor.setAttribute("visibility", "visible");
    readout.textContent = said(curve, index);
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const wanted = ((event.clientX - box.left) / box.width) * WIDTH;
    let best = 0;
    known.forEach((index, place) => {
      if (Math.abs(x(curve.steps[index]) - wanted) < Math.abs(x(curve.steps[known[best]]) - wanted)) best = place;
    });
    show(best);
  });
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    readout.textContent = said(curve, known.at(-1));
  };
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: known.length - 1 }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(move);
  });
}
