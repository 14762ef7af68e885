// The page of one run. The server sends the whole picture when it has changed, and the news one by one.
import { h, render } from "/static/preact.mjs";
import htm from "/static/htm.mjs";
import { Hands } from "/static/hands.js";

const html = htm.bind(h);
const page = document.getElementById("page");
const params = new URLSearchParams(location.search);
const stage = params.has("stage");
if (stage) document.documentElement.dataset.stage = "1";
const view = { picture: null, news: [], lost: false, over: false, hands: null };
const whole = (number) => number.toLocaleString("en");

// ---- the ring of nodes ------------------------------------------------------------------------------

const MARKS = { leader: "★", follower: "●", candidate: "?", down: "✕", paused: "❚❚", up: "○" };
const stateOf = (node) => (node.state === "up" ? node.role || "up" : node.state);

function place(index, count) {
  const angle = -Math.PI / 2 + (2 * Math.PI * index) / count;
  return [320 + 225 * Math.cos(angle), 235 + 150 * Math.sin(angle)];
}

// What makes a part of the drawing a button; nothing if nobody may press it.
function pressed(press, isChosen) {
  if (!press) return { role: "img" };
  const onKeyDown = (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    press();
  };
  return { role: "button", tabindex: 0, "aria-pressed": isChosen, onClick: press, onKeyDown };
}

function Ring({ nodes, rules }) {
  const hands = mayAct() ? view.hands : null;
  const at = Object.fromEntries(nodes.map((node, index) => [node.id, place(index, nodes.length)]));
  const most = Math.max(0, ...nodes.map((node) => node.delivered));
  const links = [];
  for (const a of nodes) {
    for (const b of nodes) {
      if (a.id >= b.id) continue;
      const rule = rules.find((each) => [each.from, each.to].includes(a.id) && [each.from, each.to].includes(b.id));
      const up = a.state === "up" && b.state === "up";
      const kind = rule ? "ruled" : !up ? "gone" : [a.role, b.role].includes("leader") ? "leads" : "";
      const [x1, y1] = at[a.id];
      const [x2, y2] = at[b.id];
      const label = `link of node ${a.id} and node ${b.id}: ${rule ? rule.text : up ? "whole" : "down"}`;
      const open = hands && (() => hands.openLink(a.id, b.id));
      const isOpen = hands?.link?.includes(a.id) && hands.link.includes(b.id);
      links.push(html`<g key=${`${a.id}-${b.id}`} class=${`link ${kind}`} aria-label=${label} ...${pressed(open, !!isOpen)}>
        <title>${label}</title><line x1=${x1} y1=${y1} x2=${x2} y2=${y2} />${hands && html`<line class="reach" x1=${x1} y1=${y1} x2=${x2} y2=${y2} />`}
        ${rule && html`<text x=${(x1 + x2) / 2} y=${(y1 + y2) / 2 + 8}>✂</text>`}</g>`);
    }
  }
  return html`<svg class="ring" viewBox="0 0 640 470" role="group" aria-label="Nodes">${links}${nodes.map((node) => {
    const [x, y] = at[node.id];
    const state = stateOf(node);
    const behind = most - node.delivered;
    const label = `node ${node.id}: ${state}, term ${node.term}, ${whole(node.delivered)} delivered`;
    const choose = hands && (() => hands.choose(node.id));
    return html`<g key=${node.id} class=${`node ${state}${hands?.node === node.id ? " chosen" : ""}`} aria-label=${label} ...${pressed(choose, hands?.node === node.id)}><title>${label}</title>
      <circle cx=${x} cy=${y} r="70" /><text x=${x} y=${y - 34} class="mark">${MARKS[state] || "●"}</text>
      <text x=${x} y=${y - 6} class="name">node ${node.id}</text><text x=${x} y=${y + 18}>${state}</text>
      <text x=${x} y=${y + 40} class="small">term ${node.term} · ${whole(node.delivered)}</text>
      ${behind > 50 && html`<text x=${x} y=${y + 92} class="small late">${whole(behind)} behind</text>`}</g>`;
  })}</svg>`;
}

// ---- curves -----------------------------------------------------------------------------------------

const WIDE = 620;
const HIGH = 150;
const LEFT = 56;

// Round numbers from 0 to a maximum, at most five.
function ticksUpTo(most) {
  const unit = 10 ** Math.floor(Math.log10(most / 2));
  const step = [1, 2, 5, 10].map((each) => each * unit).find((each) => most / each <= 4);
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, index) => index * step);
}

function Curve({ title, lines, picture, log }) {
  const { from_s: from, bucket_s: bucket } = picture.figures;
  const count = lines[0].values.length;
  const shown = lines.map((line) => line.values.map((value) => (log && value !== null ? Math.log10(Math.max(value, 0.01)) : value)));
  const values = shown.flat().filter((value) => value !== null);
  const low = log ? Math.floor(Math.min(0, ...values)) : 0;
  const high = log ? Math.ceil(Math.max(low + 1, ...values)) : Math.max(10, ...values) * 1.1;
  const X = (index) => LEFT + ((WIDE - LEFT) * index) / Math.max(1, count - 1);
  const Y = (value) => HIGH - 18 - ((HIGH - 30) * (value - low)) / (high - low);
  const at = (s) => X(Math.min(Math.max(0, (s - from) / bucket), Math.max(1, count - 1)));
  const ticks = log ? Array.from({ length: high - low + 1 }, (_, index) => low + index) : ticksUpTo(high);
  const paths = shown.map((line) => {
    let path = "";
    let broken = true;
    line.forEach((value, index) => {
      if (value !== null) path += `${broken ? "M" : "L"}${X(index).toFixed(1)} ${Y(value).toFixed(1)}`;
      broken = value === null;
    });
    return path;
  });
  return html`<figure><figcaption>${title}</figcaption>
    <svg viewBox=${`0 0 ${WIDE} ${HIGH}`} role="img" aria-label=${title}>
      ${picture.windows.map((window, index) => html`<g key=${index} class="window"><title>${window.text}</title>
        <rect x=${at(window.since)} y="4" width=${Math.max(2, at(window.until ?? picture.now) - at(window.since))} height=${HIGH - 22} />
        <text x=${at(window.since) + 3} y="14">${window.text}</text></g>`)}
      ${ticks.map((tick) => html`<g key=${tick} class="tick"><line x1=${LEFT} x2=${WIDE} y1=${Y(tick)} y2=${Y(tick)} />
        <text x=${LEFT - 6} y=${Y(tick) + 4}>${log ? 10 ** tick : whole(Math.round(tick))}</text></g>`)}
      ${paths.map((path, index) => html`<path key=${index} d=${path} class=${lines[index].name} />`)}
      <text class="axis" x=${LEFT} y=${HIGH - 2}>${from.toFixed(0)} s</text><text class="axis end" x=${WIDE} y=${HIGH - 2}>${(from + count * bucket).toFixed(0)} s</text>
    </svg></figure>`;
}

// ---- the last failover, slowly ----------------------------------------------------------------------

const CAUSES = ["kill", "pause", "link", "power_loss", "stop", "exit"];
const SHOWN = { leader_timeout: "suspects", election_started: "polls", became_candidate: "candidate", vote_granted: "votes", became_leader: "LEADER" };

function Failover({ nodes, news }) {
  const ids = nodes.map((node) => node.id);
  const leads = news.filter((item) => item.kind === "became_leader");
  for (const led of leads.reverse()) {
    const cause = news.filter((item) => CAUSES.includes(item.kind) && item.s <= led.s).pop();
    if (!cause || led.s - cause.s > 30) continue;
    const long = led.s - cause.s;
    const seen = new Set();
    const marks = news.filter((item) => item.s >= cause.s && item.s <= led.s && SHOWN[item.kind] && !seen.has(item.kind + item.node) && seen.add(item.kind + item.node));
    // A long silence before the first mark is cut out of the axis.
    const silence = marks[0].s - cause.s;
    const isCut = silence > 0.5 * long;
    const from = isCut ? 0.25 : 0;
    const at = (s) => (isCut ? (s <= cause.s ? 0 : from + ((1 - from) * (s - marks[0].s)) / (long - silence || 1)) : (s - cause.s) / (long || 1));
    const X = (s) => 100 + 440 * at(s);
    const Y = (id) => 34 + 52 * ids.indexOf(id);
    const high = 52 * ids.length + 20;
    const levels = [-9, 19, -24, 34];
    const placed = {};
    const levelOf = (item) => {
      const near = (placed[item.node] ||= []).filter((x) => X(item.s) - x < 68).length;
      placed[item.node].push(X(item.s));
      return levels[Math.min(near, 3)];
    };
    return html`<figure class="failover"><figcaption>The last failover: ${cause.text}; a new leader after <b>${(long * 1000).toFixed(1)} ms</b></figcaption>
      <svg viewBox=${`0 0 620 ${high}`} role="img" aria-label="The last failover">
        ${ids.map((id) => html`<g key=${id}><line class="lane" x1="64" x2="616" y1=${Y(id)} y2=${Y(id)} /><text x="4" y=${Y(id) + 5}>node ${id}</text></g>`)}
        <line class="cause" x1=${X(cause.s)} x2=${X(cause.s)} y1="4" y2=${high - 4} />
        ${isCut && html`<g class="cut"><rect x="116" width="74" y="2" height=${high - 4} /><text x="153" y=${high / 2 + 4}>${(silence * 1000).toFixed(0)} ms</text></g>`}
        ${marks.map((item) => html`<g key=${item.id} class=${item.kind}><circle cx=${X(item.s)} cy=${Y(item.node)} r="5" />
          <text x=${X(item.s)} y=${Y(item.node) + levelOf(item)}>${SHOWN[item.kind]}</text></g>`)}
      </svg></figure>`;
  }
  return null;
}

// ---- the page ---------------------------------------------------------------------------------------

function Logs({ nodes }) {
  return html`<section><h2>The logs</h2><div class="logs">${nodes.map((node) => html`<div key=${node.id}><h3>node ${node.id}</h3>
    <ol>${node.lines.map((line) => html`<li key=${line.seq_no}><b>${line.seq_no}</b> ${line.sender_id}: ${line.payload.slice(0, 60)}</li>`)}</ol></div>`)}</div></section>`;
}

const OUTCOMES = { pass: "PASS", broken: "FAIL: an invariant is broken", missed: "FAIL: an expectation was missed", undecided: "UNDECIDED" };

function draw() {
  const picture = view.picture;
  if (!picture || !picture.scenario) return;
  const { step, figures } = picture;
  const state = picture.outcome ? OUTCOMES[picture.outcome] : picture.ended ? "ended, being judged" : view.lost ? "the server does not answer: what you see is old" : "running";
  document.title = `${picture.scenario}: ${state}`;
  render(html`<header><h1><a href="/">Runs</a> / ${picture.scenario}</h1>
      <p class=${`state ${picture.outcome || (view.lost ? "lost" : "open")}`} role="status">${state}</p>
      <p>${picture.kind === "sim" ? "simulated" : "live"}, seed ${picture.seed} · ${picture.now.toFixed(1)} s · ${whole(figures.acked)} acknowledged, ${whole(figures.waiting)} waiting</p></header>
    ${picture.scenario === "by_hand" && picture.ended && html`<p><a href=${location.pathname.replace("/run/", "/by_hand/")} download>Save as a scenario</a>: what was done, to be run again with <code>run_lab.py by_hand.yml</code>, live or with <code>--sim</code></p>`}
    ${step.say && html`<p class="say" aria-live="polite">${step.say}</p>`}
    <p class="step">${step.text ? `Step ${step.index + 1}${step.of ? ` of ${step.of}` : ""}: ${step.text}` : "Starting"}</p>
    <div class="columns"><section aria-label="Cluster"><${Ring} ...${picture} />${mayAct() && view.hands.render(stage)}${figures.rate.length > 1 && !stage && html`
        <${Curve} title="Acknowledged messages a second" picture=${picture} lines=${[{ name: "rate", values: figures.rate }]} />
        <${Curve} title="Latency, ms: median (line) and 99th percentile (dashes)" log picture=${picture} lines=${[{ name: "p50", values: figures.p50 }, { name: "p99", values: figures.p99 }]} />`}</section>
      <section><${Failover} nodes=${picture.nodes} news=${view.news} />
        ${!stage && html`<${Logs} ...${picture} /><h2>What happens</h2>
        <ol class="news scroll" tabindex="0" reversed>${view.news.slice(-200).reverse().map((item) => html`<li key=${item.id} class=${item.kind}>
          <span>${item.s.toFixed(3)}</span> <span>${item.node ? `node ${item.node}` : ""}</span> <span>${item.text}</span></li>`)}</ol>`}</section></div>
    ${view.over && !stage && html`<nav aria-label="Replay">Replay: ${[0.1, 1, 5].map((speed) => html`<a key=${speed} href=${`?speed=${speed}`}>${speed}×</a> `)}</nav>`}`, page);
  document.body.dataset.ready = "1";
}

let due = false;
function soon() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => { due = false; draw(); });
}

const mayAct = () => view.hands && view.picture && !view.picture.ended;
fetch("/api/who").then((answer) => answer.json()).then((who) => {
  if (who.acts && who.session === location.pathname) view.hands = new Hands(soon, () => view.picture, who.orders);
  soon();
});
page.replaceChildren();
const source = new EventSource(location.pathname.replace("/run/", "/events/") + (params.has("speed") ? `?speed=${encodeURIComponent(params.get("speed"))}` : ""));
source.addEventListener("picture", (event) => { view.picture = JSON.parse(event.data); view.lost = false; soon(); });
source.addEventListener("news", (event) => {
  const known = new Set(view.news.map((item) => item.id));
  view.news.push(...JSON.parse(event.data).filter((item) => !known.has(item.id)));
  view.news.sort((a, b) => a.s - b.s || a.id - b.id);
  view.news.splice(0, view.news.length - 2000);
  soon();
});
source.addEventListener("over", () => { view.over = true; source.close(); soon(); });
source.onerror = () => { view.lost = true; soon(); };
addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.tagName === "INPUT") {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (mayAct() && view.hands.key(event.key)) event.preventDefault();
  else if (event.key === "d") document.documentElement.dataset.theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
});
