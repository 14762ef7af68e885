// The page on which the user chooses the next event. The address contains the choices: #0.2.1
import { Card, ask, html, listen, page, show, theme } from "/static/parts.js";

const state = { about: null, at: null, said: "" };
const here = () => location.hash.slice(1).split(".").filter(Boolean);

async function read() {
  try {
    state.at = await ask(`/api/state?path=${encodeURIComponent(here().join("."))}`);
    state.said = "";
  } catch (error) {
    state.said = error.message;
  }
  draw();
}

const go = (path) => { location.hash = path.join("."); };
const choose = (index) => go([...state.at.path, index]);
const back = () => go(state.at.path.slice(0, -1));

function Choices({ at }) {
  const own = (id) => at.choices.map((choice, index) => [choice, index]).filter(([choice]) => choice.node === id);
  const entry = ([choice, index]) => html`<li key=${index}><button class=${choice.idle ? "idle" : ""} title=${choice.idle ? "leads back to a state of this path" : ""} onClick=${() => choose(index)}>${choice.text}</button></li>`;
  return html`<section><h2>What happens next?</h2>${at.problem ? html`<p class="broken" role="status">✗ ${at.problem}</p>` : ""}
    ${Object.keys(at.nodes).map((id) => html`<div key=${id}>${own(Number(id)).length > 0 && html`<h3>node ${id}</h3>`}<ul class="choices">${own(Number(id)).map(entry)}</ul></div>`)}
    ${!at.problem && at.choices.length === 0 && html`<p>Nothing more can happen within the bounds, and no invariant broke.</p>`}
    <p class="left">Left: ${Object.entries(at.left).map(([name, count]) => `${count} ${name}`).join(", ")}</p></section>`;
}

function draw() {
  const { at, about, said } = state;
  if (!at || !about) return;
  show(html`<header><h1>Choose the next event${about.mutant ? html`, mutant ${about.mutant.name}` : ""}</h1><p>${at.path.length} moves</p>
      <p class=${at.problem ? "broken" : "pass"}>${at.problem ? `✗ ${at.problem}` : "every invariant holds so far"}</p></header>
    <p class="step">${about.bounds}</p>
    <nav class="bar"><button onClick=${() => go([])} disabled=${!at.path.length} title="Home">⇤ first state</button><button onClick=${back} disabled=${!at.path.length} title="p or ←">◀ take it back</button>
      ${about.path.length > 0 && html`<button onClick=${() => go(about.path)} title="v">violation ⇥</button>`}
      ${said && html`<span role="alert">${said}</span>`}</nav>
    ${about.mutant && at.problem && html`<section class="quiz"><p>${about.mutant.says} It breaks rule ${about.mutant.rule}:</p><blockquote>${about.mutant.text}</blockquote></section>`}
    <div class="debugger explorer"><div class="cards">${Object.entries(at.nodes).map(([id, view]) => html`<${Card} key=${id} id=${id} view=${view} changes=${at.changes[id]} />`)}
        <h2>On their way</h2><ul class="due">${at.queues.map(([from, to, frames]) => html`<li key=${`${from}-${to}`}><b>${from} → ${to}</b><ol>${frames.map((frame, index) => html`<li key=${index}>${frame}</li>`)}</ol></li>`)}
        ${at.queues.length === 0 && html`<li>no frame</li>`}</ul></div>
      <${Choices} at=${at} />
      <section><h2>So far</h2><ol class="done" reversed>${at.done.map((each, index) => html`<li key=${index}><a href=${`#${at.path.slice(0, index + 1).join(".")}`}>${each.text}</a>
        <ul>${each.lines.map((line, number) => html`<li key=${number}>${line}</li>`)}</ul></li>`).reverse()}</ol></section></div>`);
}

listen({ p: back, ArrowLeft: back, Home: () => go([]), v: () => state.about.path.length && go(state.about.path), d: theme });
addEventListener("hashchange", read);

async function start() {
  state.about = await ask("/api/start");
  page.replaceChildren();
  if (!location.hash && state.about.path.length) history.replaceState(null, "", `#${state.about.path.join(".")}`);
  await read();
}
start();
