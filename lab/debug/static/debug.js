// The page of the debugger. The address says where it is: #event, or #branch:event.
import { Card, ask, html, listen, page, show, theme } from "/static/parts.js";

const ms = (s) => (s < 1 ? `${(s * 1000).toFixed(s < 0.1 ? 1 : 0)} ms` : `${s.toFixed(2)} s`);
const state = { run: null, at: null, stop: "", said: "", quiz: null, step: "kill: leader", delay: "50" };
const branch = () => state.run.branches[state.at.branch];

// ---- where ------------------------------------------------------------------------------------------

async function go(where, number = state.at ? state.at.branch : 0) {
  try {
    state.at = await ask(`/api/at?branch=${number}&${where}`);
    state.said = "";
    history.replaceState(null, "", `#${number ? `${number}:` : ""}${state.at.event}`);
  } catch (error) {
    state.said = error.message;
  }
  draw();
}

const rows = () => branch().rows;
const goRow = (row) => (row < 0 ? go("event=0") : go(`row=${Math.min(row, rows() - 1)}`));
const limit = () => (state.quiz ? state.quiz.limit : rows() - 1);
const next = () => goRow(Math.min(state.at.row + 1, limit()));
const back = () => goRow(state.at.event > 0 && state.at.news.length === 0 && state.at.row >= 0 ? state.at.row : state.at.row - 1);
const end = () => goRow(limit());

async function find(backwards) {
  if (!state.stop.trim()) return (backwards ? go("event=0") : end());
  const query = `branch=${state.at.branch}&row=${state.at.row + 1}&text=${encodeURIComponent(state.stop)}${backwards ? "&back" : ""}`;
  try {
    const found = await ask(`/api/find?${query}`);
    await goRow(Math.min(found.row, limit()));
    if (!found.found) state.said = `no ${backwards ? "earlier" : "later"} row contains “${state.stop}”`;
  } catch (error) {
    state.said = error.message;
  }
  draw();
}

// ---- changing the run -------------------------------------------------------------------------------

async function fork(change) {
  try {
    state.said = "the branch is simulated to its end…";
    draw();
    const made = await ask("/api/fork", { branch: state.at.branch, change: { event: state.at.event, ...change } });
    state.run.branches = made.branches;
    await go(`event=${state.at.event}`, made.branch);
    state.said = `branch ${made.branch}: ${branch().failure || "nothing broke"}`;
  } catch (error) {
    state.said = error.message;
  }
  draw();
}

function Due({ at }) {
  const late = Number(state.delay) / 1000;
  const act = (text, label, change) => html`<button aria-label=${label} onClick=${() => fork(change)}>${text}</button>`;
  return html`<section><h2>On their way (${at.waiting[0]})</h2>${at.frames.length > 0 && html`<label>delay by
      <input class="ms" type="number" min="1" value=${state.delay} onInput=${(e) => { state.delay = e.target.value; draw(); }} /> ms</label>`}
    <ul class="due">${at.frames.map((each) => html`<li key=${each.number}><span>${each.what}</span> <i>in ${ms(each.wait_s)}</i>${" "}
      <span class="acts">${act("now", `deliver now: ${each.what}`, { frame: each.number, now: true })}
      ${act("drop", `drop: ${each.what}`, { frame: each.number, drop: true })}
      ${act(`+${state.delay} ms`, `delay: ${each.what}`, { frame: each.number, late_s: late })}</span></li>`)}</ul>
    <h2>Due (${at.waiting[1]})</h2>
    <ul class="due">${at.timers.map((each) => html`<li key=${each.number}>${each.what} <i>in ${ms(each.wait_s)}</i></li>`)}</ul></section>`;
}

function Branches() {
  const say = (each) => (each.parent === null ? "the run" : `${each.did}, at event ${each.event} of ${each.parent}`);
  const steps = (each) => each && (each.parent === null || (each.is_step && steps(state.run.branches[each.parent])));
  return html`<section><h2>Branches</h2><ol class="branches" start="0">${state.run.branches.map((each) => html`<li key=${each.number}>
      <button aria-current=${each.number === state.at.branch} onClick=${() => go(`event=${Math.min(state.at.event, each.events)}`, each.number)}>${each.number}: ${say(each)}</button>
      ${html` <span class=${each.failure ? "broken" : "pass"}>${each.failure ? `✗ ${each.failure}` : "✓ nothing broke"}</span>`}
      ${each.parent !== null && steps(each) && html` <a href=${`/api/scenario?branch=${each.number}`} download>save as a scenario</a>`}</li>`)}</ol>
    <form onSubmit=${(e) => { e.preventDefault(); fork({ step: state.step }); }}><label>At this event, do
      <input value=${state.step} onInput=${(e) => { state.step = e.target.value; }} placeholder="a step, such as kill: leader" /></label>
      <button>fork</button></form></section>`;
}

// ---- the diagram ------------------------------------------------------------------------------------

const LANE = 76;
const ROW = 21;

function Diagram({ at }) {
  const ids = Object.keys(at.nodes).map(Number);
  const lines = state.quiz ? at.lines.filter((line) => !line.later) : at.lines;
  const X = (id) => 44 + LANE * ids.indexOf(id);
  const Y = (index) => 44 + ROW * index;
  const left = 44 + LANE * ids.length - 20;
  const now = lines.filter((line) => !line.later).length;
  const high = Y(Math.max(lines.length, 4)) + 6;
  const draw = (line, index) => {
    const y = Y(index) + (line.later ? ROW / 2 : 0);
    const label = line.kind ? `${line.source} → ${line.to} ${line.kind} ${line.text}${line.lost ? " (lost)" : ""}` : `node ${line.node}: ${line.text}`;
    const x2 = line.lost ? X(line.source) + 0.4 * (X(line.to) - X(line.source)) : X(line.to);
    const side = Math.sign(x2 - X(line.source));
    return html`<g key=${index} class=${`${line.later ? "later" : ""} ${line.lost ? "lost" : ""} ${line.kind ? "frame" : "note"}`}><title>${label}</title>
      ${line.kind ? html`<line x1=${X(line.source)} y1=${y - 9} x2=${x2 - side * 7} y2=${y - 1} />
        ${line.lost ? html`<text class="cross" x=${x2} y=${y + 4}>✕</text>` : html`<path d=${`M${x2} ${y} l${-side * 9} -5.5 l0 9 z`} />`}`
      : html`<circle cx=${X(line.node)} cy=${y - 4} r="5" />`}
      <text x=${left} y=${y}>${line.kind ? html`<tspan class="kind">${line.kind}</tspan> ${line.text}` : line.text}</text></g>`;
  };
  return html`<svg class="steps" viewBox=${`0 0 ${left + 390} ${high}`} role="img" aria-label="What happened around this event">
    ${ids.map((id) => html`<g key=${id}><text class="lane" x=${X(id)} y="16">node ${id}</text><line class="rail" x1=${X(id)} x2=${X(id)} y1="24" y2=${high} /></g>`)}
    ${lines.map(draw)}<line class="now" x1="0" x2=${left + 390} y1=${Y(now) - 9} y2=${Y(now) - 9} /></svg>`;
}

// ---- predict, then reveal ---------------------------------------------------------------------------

async function predict() {
  state.quiz = { number: -1, right: 0, chosen: null, limit: 0 };
  state.said = "";
  await ask_next();
}

async function ask_next() {
  const quiz = state.quiz;
  quiz.number += 1;
  quiz.chosen = null;
  const question = state.run.questions[quiz.number];
  quiz.limit = question ? Math.max(question.asked, quiz.limit) : state.run.branches[0].rows - 1;
  await (question && question.asked < 0 ? go("event=0", 0) : go(`row=${quiz.limit}`, 0));
}

async function choose(index) {
  const question = state.run.questions[state.quiz.number];
  state.quiz.chosen = index;
  state.quiz.right += index === question.right;
  state.quiz.limit = Math.max(question.answered, state.quiz.limit);
  await go(`row=${question.answered}`, 0);
}

function Quiz() {
  const { number, chosen, right } = state.quiz;
  const { questions, mutant } = state.run;
  const question = questions[number];
  const leave = html`<button onClick=${() => { state.quiz = null; draw(); }}>leave</button>`;
  if (!question) {
    return html`<section class="quiz" aria-live="polite"><p><b>${right} of ${questions.length} predicted.</b> ${state.run.branches[0].failure || "Nothing broke."}</p>
      ${mutant && html`<p>The planted bug is <b>${mutant.name}</b>: ${mutant.says} It breaks rule ${mutant.rule}:</p><blockquote>${mutant.text}</blockquote>`}${leave}</section>`;
  }
  const open = chosen === null;
  return html`<section class="quiz" aria-live="polite"><p><b>${number + 1} of ${questions.length}: ${question.text}</b> ${open && "Step back to look at the past; the future is hidden."}</p>
    <p>${question.choices.map((choice, index) => html`<button key=${index} disabled=${!open} class=${open ? "" : index === question.right ? "right" : index === chosen ? "wrong" : ""} onClick=${() => choose(index)}>${choice}${!open && index === question.right ? " ✓" : ""}${!open && index === chosen && index !== question.right ? " ✗" : ""}</button> `)}</p>
    ${open ? leave : html`<p><b>${chosen === question.right ? "Right." : `No: ${question.choices[question.right]}.`}</b> <button onClick=${ask_next}>go on</button> ${leave}</p>`}</section>`;
}

// ---- the page ---------------------------------------------------------------------------------------

function draw() {
  const { run, at } = state;
  if (!run || !at) return;
  const here = branch();
  const hidden = state.quiz && state.quiz.number < run.questions.length;
  const name = hidden && run.mutant ? "A run with a planted bug" : run.name; // A story has the name of its mutant.
  document.title = `${name}, event ${at.event}`;
  show(html`<header><h1>${name}${!hidden && run.mutant ? html`, mutant <span title=${run.mutant.says}>${run.mutant.name}</span>` : ""}</h1><p>seed ${run.seed}</p>
      ${!hidden && html`<p class=${here.failure ? "broken" : "pass"} role="status">${here.failure ? `✗ ${here.failure}` : "✓ nothing broke"}</p>`}</header>
    <nav class="bar" aria-label="Steps"><button onClick=${() => go("event=0")} title="Home">⇤ first</button><button onClick=${back} title="p or ←">◀ back</button>
      <button onClick=${next} title="n or →">next ▶</button><button onClick=${end} title="v or End">${here.failure ? "violation ⇥" : "last ⇥"}</button>
      <input type="range" aria-label="event" min="0" max=${state.quiz ? Math.max(at.event, 1) : here.events} value=${at.event} disabled=${!!state.quiz} onChange=${(e) => go(`event=${e.target.value}`)} />
      <output>event ${at.event}${state.quiz ? "" : ` of ${here.events}`}, row ${at.row + 1}${state.quiz ? "" : ` of ${here.rows}`}, ${at.t_s.toFixed(4)} s</output></nav>
    <form class="bar" onSubmit=${(e) => { e.preventDefault(); find(false); }}><label>Stop at rows with <input value=${state.stop} onInput=${(e) => { state.stop = e.target.value; }} placeholder="voted for, node 2 role, LEADER …" /></label>
      <button title="c">continue ▶</button><button type="button" title="b" onClick=${() => find(true)}>◀ back to it</button>
      ${run.questions.length > 0 && !state.quiz && html`<button type="button" class="predict" onClick=${predict}>predict, then reveal</button>`}
      ${state.said && html`<span role="alert">${state.said}</span>`}</form>
    ${state.quiz && html`<${Quiz} />`}
    <p class="what"><b>${at.what}</b>${at.news.filter((line) => line.includes(" says ")).map((line, index) => html` <span key=${index}>${line}</span>`)}</p>
    <div class="debugger"><div class="cards">${Object.entries(at.nodes).map(([id, view]) => html`<${Card} key=${id} id=${id} view=${view} changes=${at.changes[id]} />`)}</div>
      <${Diagram} at=${at} /><aside>${!state.quiz && html`<${Branches} /><${Due} at=${at} />`}</aside></div>`);
}

listen({
  n: next, ArrowRight: next, p: back, ArrowLeft: back, v: end, End: end, Home: () => go("event=0"),
  c: () => find(false), b: () => find(true), d: theme, "/": () => page.querySelector("form input").focus(),
});

async function start() {
  const [, number, event] = /^#(?:(\d+):)?(\d+)$/.exec(location.hash) || [];
  state.run = await ask("/api/run");
  const first = state.run.branches[0];
  page.replaceChildren();
  if (event !== undefined) await go(`event=${event}`, Number(number || 0));
  if (!state.at) await go(first.failure && first.rows ? `row=${first.rows - 1}` : "event=0", 0);
}

addEventListener("hashchange", () => {
  const [, number, event] = /^#(?:(\d+):)?(\d+)$/.exec(location.hash) || [];
  if (event !== undefined) go(`event=${event}`, Number(number || 0));
});
start();
