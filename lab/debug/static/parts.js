// What the pages of the debugger and of the explorer share.
import { h, render } from "/static/preact.mjs";
import htm from "/static/htm.mjs";

export const html = htm.bind(h);
export const page = document.getElementById("page");
export const show = (content) => {
  render(content, page);
  document.body.dataset.ready = "1";
};

const MARKS = { leader: "★", follower: "●", candidate: "?", down: "✕" };
const role = (view) => String(view.role).split(",")[0];

// A node: its fields, with the old value struck out where `changes` has field -> [before, after].
export function Card({ id, view, changes = {} }) {
  const fields = Object.keys(view).filter((name) => name !== "role");
  const gone = Object.keys(changes).filter((name) => !(name in view));
  const field = (name) => html`<div key=${name} class=${changes[name] ? "new" : ""}><dt>${name.replaceAll("_", " ")}</dt>
    <dd>${String(view[name] ?? "none")}${changes[name] && html` <s>${String(changes[name][0])}</s>`}</dd></div>`;
  return html`<section class=${`card ${role(view)} ${Object.keys(changes).length ? "acted" : ""}`} aria-label=${`node ${id}: ${view.role}`}>
    <h3>node ${id} <span>${MARKS[role(view)] || "○"} ${view.role}${changes.role && html` <s>${changes.role[0]}</s>`}</span></h3>
    <dl>${[...fields, ...gone.filter((name) => name !== "role")].map(field)}</dl></section>`;
}

export async function ask(path, body) {
  const options = body && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error((await answer.text()).trim());
  return answer.json();
}

// Each key acts when the one before has: what it does depends on where that one led.
export function listen(keys) {
  let turn = Promise.resolve();
  let waiting = 0;
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const act = keys[event.key];
    if (!act) return;
    event.preventDefault();
    if (event.repeat && waiting) return;
    waiting += 1;
    turn = turn.then(act).finally(() => { waiting -= 1; });
  });
}

export function theme() {
  const root = document.documentElement.dataset;
  const dark = root.theme ? root.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.theme = dark ? "light" : "dark";
}
