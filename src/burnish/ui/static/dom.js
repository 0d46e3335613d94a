// Building the page. Whatever comes from files becomes text, never markup: nothing here parses a string.

export function el(tag, properties = {}, ...children) {
  return filled(document.createElement(tag), properties, children);
}

export function svg(tag, properties = {}, ...children) {
  return filled(document.createElementNS("http://www.w3.org/2000/svg", tag), properties, children);
}

function filled(node, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (["value", "checked", "selected", "disabled"].includes(name)) node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

// JSON of the API; an Error with the server's own words where there is none.
export async function ask(path, signal) {
  const answer = await fetch(path, { signal, headers: { Accept: "application/json" } });
  const content = await answer.json().catch(() => ({ error: `the server answered with status ${answer.status}` }));
  if (!answer.ok) throw new Error(content.error);
  return content;
}

export const path = (...parts) => "/api/" + parts.map(encodeURIComponent).join("/");
export const link = (...parts) => "#/" + parts.map(encodeURIComponent).join("/");

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size >= 1e6 || (size < 1e-3 && size > 0) ? value.toExponential(2) : value.toFixed(size >= 1000 ? 0 : digits);
}

// The same of what is counted: whole where it is.
export const count = (value) => (Number.isInteger(value) ? String(value) : number(value));

export const interval = (low, high) => (low === null || high === null ? "–" : `[${number(low)}, ${number(high)}]`);
export const time = (text) => text.replace("T", " ").replace(/Z$/, "");
export const badge = (status) => el("span", { class: "badge", "data-kind": status }, status);
export const fault = (text) => el("p", { class: "fault", role: "alert" }, text);
export const note = (text) => el("p", { class: "note" }, text);

export function select(label, options, value, onchange) {
  const chosen = el("select", { onchange: (event) => onchange(event.target.value) });
  chosen.append(...options.map(([key, text]) => el("option", { value: key }, text)));
  chosen.value = value;
  return el("label", { class: "control" }, el("span", {}, label), chosen);
}

// A table of rows of cells; a cell is text, a node, or null. `columns` are [heading, is a number].
export function table(caption, columns, rows, kind = "scroll") {
  const cell = (each, index) => el("td", { class: columns[index][1] ? "number" : null }, each ?? "–");
  return el("div", { class: kind, tabindex: "0", role: "region", "aria-label": caption },
    el("table", {},
      el("caption", { class: "hidden" }, caption),
      el("thead", {}, el("tr", {}, columns.map(([name, isNumber]) =>
        el("th", { scope: "col", class: isNumber ? "number" : null }, name)))),
      el("tbody", {}, rows.map((row) => el("tr", {}, row.map(cell))))));
}
