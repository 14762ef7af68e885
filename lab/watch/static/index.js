// The list of all runs. The filter is part of the address.
import { h, render } from "/static/preact.mjs";
import htm from "/static/htm.mjs";

const html = htm.bind(h);
const page = document.getElementById("page");
const MARKS = { pass: "✓", broken: "✗", missed: "✗", undecided: "?" };
const figure = (value, digits = 0) => (value === null ? "" : value.toLocaleString("en", { maximumFractionDigits: digits }));
let runs = [];
let who = { acts: false, session: "" };
let problem = "";

// Start a session by hand, and go to its page.
async function begin(event) {
  event.preventDefault();
  const [nodes, rate, button] = event.target.elements;
  button.disabled = true;
  const body = JSON.stringify({ nodes: +nodes.value, rate: +rate.value });
  const answer = await fetch("/api/session", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  const said = await answer.json();
  if (said.run) location.href = said.run;
  problem = said.problem || "";
  button.disabled = false;
  draw();
}

function Session() {
  if (!who.acts) return null;
  if (who.session) return html`<p>A <a href=${who.session}>session by hand</a> is under way.</p>`;
  return html`<form onSubmit=${begin}>A session by hand: <label>nodes <input type="number" min="1" max="9" value="3" required /></label>
    ${" "}<label>messages a second <input type="number" min="1" max="100000" value="100" required /></label> <button>Start</button> <span role="status">${problem}</span></form>`;
}

const filter = () => decodeURIComponent(location.hash.slice(1));

function row(run) {
  const address = `/run/${encodeURIComponent(run.scenario)}/${encodeURIComponent(run.run)}`;
  return html`<tr key=${run.scenario + run.run}>
    <td><a href=${address}>${run.scenario}</a></td>
    <td>${run.started_utc.slice(0, 19).replace("T", " ")}</td><td>${run.world}</td><td class="number">${run.seed}</td>
    <td class=${run.outcome.replace(" ", "-")}>${MARKS[run.outcome] || "…"} ${run.outcome}</td>
    <td class="number">${figure(run.acknowledged_per_s)}</td><td class="number">${figure(run.p99_ms, 1)}</td>
    <td class="number">${figure(run.gap_s, 3)}</td><td class="number">${figure(run.elections)}</td><td>${run.cause}</td>
  </tr>`;
}

function draw() {
  const wanted = filter().toLowerCase();
  const shown = runs.filter((run) => Object.values(run).join(" ").toLowerCase().includes(wanted));
  render(html`<h1>Runs</h1><${Session} />
    <p><label>Filter <input value=${filter()} onInput=${(e) => history.replaceState(null, "", `#${encodeURIComponent(e.target.value)}`) || draw()} /></label>
      ${" "}${shown.length} of ${runs.length}</p>
    <div class="scroll" tabindex="0" role="region" aria-label="Runs"><table>
      <thead><tr><th scope="col">scenario</th><th scope="col">started (UTC)</th><th scope="col">world</th><th scope="col">seed</th><th scope="col">outcome</th><th scope="col">acks/s</th><th scope="col">p99, ms</th><th scope="col">longest gap, s</th><th scope="col">elections</th><th scope="col">why not</th></tr></thead>
      <tbody>${shown.map(row)}</tbody></table></div>`, page);
  document.body.dataset.ready = "1";
}

async function read() {
  const answers = await Promise.all(["/api/runs", "/api/who"].map((path) => fetch(path)));
  [runs, who] = await Promise.all(answers.map((answer) => answer.json()));
  draw();
}

addEventListener("hashchange", draw);
page.replaceChildren();
read();
setInterval(read, 2000);
