// A session by hand: buttons, keys and text fields, each of which orders one step in the words of a scenario file.
import { h } from "/static/preact.mjs";
import htm from "/static/htm.mjs";

const html = htm.bind(h);
const CHAT_CLIENT = 9999;
const SURE_MS = 1000;

// What may be done to a node: [word on the button, key, states of the node in which it has an effect, step].
const ACTS = [
  ["Kill", "k", ["up", "paused"], (node) => `kill: ${node}`],
  ["Pause", "p", ["up"], (node) => `pause: ${node}`],
  ["Resume", "r", ["paused"], (node) => `resume: ${node}`],
  ["Start", "s", ["down"], (node) => `start: ${node}`],
  ["Cut off", "c", ["up", "paused"], (node) => `partition: {kind: isolate, node: ${node}}`],
  ["Power loss", "w", ["up"], (node) => `power_loss: {target: ${node}, mid_write: true}`],
];
const HEAL = ["Heal all", "h", "heal: all"];
const HARMFUL = "kpcw";

// What may be done to a link of the leader; the other end is a node's id.
const LINK_ACTS = [
  ["Cut both ways", (node) => `cut: {from: leader, to: ${node}, both: true}`],
  ["Cut from the leader", (node) => `cut: {from: leader, to: ${node}}`],
  ["Cut to the leader", (node) => `cut: {from: ${node}, to: leader}`],
  ["Delay 200 ms", (node) => `link: {from: leader, to: ${node}, delay: 200ms}`],
  ["Lose 20 %", (node) => `link: {from: leader, to: ${node}, loss: 0.2}`],
  ["Heal the links", () => "heal: links"],
];

export class Hands {
  // redraw: draws the page. picture: returns what it shows.
  constructor(redraw, picture) {
    Object.assign(this, { redraw, picture, node: 0, link: null, said: "", refused: false, help: false, sure: "", leftTextAt: -Infinity });
  }

  async post(path, body) {
    try {
      const answer = await fetch(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
      const isJson = (answer.headers.get("Content-Type") || "").startsWith("application/json");
      return isJson ? await answer.json() : { problem: await answer.text() };
    } catch (error) {
      return { problem: `the server does not answer: ${error.message}` };
    }
  }

  async order(step) {
    this.say(`${step} …`);
    const answer = await this.post("/api/step", { step });
    const done = `${answer.step || step}: done in ${answer.took_ms || 0} ms`;
    this.say(answer.problem || (answer.warning ? `${done}, but ${answer.warning}` : done), !!(answer.problem || answer.warning));
  }

  async end() {
    const answer = await this.post("/api/end", {});
    this.say(answer.problem || "the session ends: the run is healed and judged", !!answer.problem);
  }

  say(text, refused = false) {
    Object.assign(this, { said: text, refused });
    this.redraw();
  }

  choose(node) {
    Object.assign(this, { node, link: null });
    this.redraw();
  }

  openLink(a, b) {
    this.link = [a, b];
    this.redraw();
    document.querySelector(".link-menu button:not(:disabled)")?.focus();
  }

  chosen() {
    return this.picture().nodes.find((node) => node.id === this.node);
  }

  // Why an act on the chosen node would have no effect; "": it may have one.
  whyNot([, , states]) {
    const node = this.chosen();
    if (!node) return "choose a node first";
    return states.includes(node.state) ? "" : `node ${node.id} is ${node.state}`;
  }

  act(act) {
    const why = this.whyNot(act);
    if (why) this.say(`${act[0]}: ${why}`, true);
    else this.order(act[3](this.node));
  }

  // Just after typing, a key may have been meant for the text: ask again before it does harm.
  isMeant(key, what) {
    const meant = this.sure === key || !HARMFUL.includes(key) || performance.now() - this.leftTextAt > SURE_MS;
    this.sure = meant ? "" : key;
    if (!meant) this.say(`press ${key.toUpperCase()} again: ${what}`);
    return meant;
  }

  // Returns whether the key has a meaning.
  key(key) {
    const act = ACTS.find((each) => each[1] === key);
    if (/^[1-9]$/.test(key) && this.picture().nodes.some((node) => node.id === +key)) this.choose(+key);
    else if (act) this.isMeant(key, act[0]) && this.act(act);
    else if (key === HEAL[1]) this.order(HEAL[2]);
    else if (key === "l") this.nextLink();
    else if (key === "/") document.getElementById("say").focus();
    else if (key === "?") this.toggleHelp();
    else if (key === "Escape") this.close();
    else return false;
    return true;
  }

  nextLink() {
    const leader = this.picture().nodes.find((node) => node.role === "leader");
    if (!leader) return this.say("links: no node leads", true);
    const others = this.picture().nodes.map((node) => node.id).filter((id) => id !== leader.id);
    const now = this.link?.includes(leader.id) ? others.findIndex((id) => this.link.includes(id)) : -1;
    if (others.length) this.openLink(leader.id, others[(now + 1) % others.length]);
  }

  toggleHelp() {
    this.help = !this.help;
    this.redraw();
  }

  close() {
    Object.assign(this, { link: null, help: false });
    this.redraw();
  }

  submit(event, step) {
    event.preventDefault();
    const field = event.target.elements[0];
    if (field.value.trim()) this.order(step(field.value));
    field.value = "";
  }

  render(isStage) {
    const text = (id, label, placeholder, step) => html`<form onSubmit=${(event) => this.submit(event, step)}>
      <label for=${id}>${label}</label> <input id=${id} autocomplete="off" maxlength="2000" placeholder=${placeholder}
        onBlur=${() => { this.leftTextAt = performance.now(); }} /> <button>${id === "say" ? "Send" : "Do"}</button></form>`;
    return html`<div class="hands">
      <div role="toolbar" aria-label="Faults"><span>${this.node ? `node ${this.node}` : "choose a node: 1–9"}</span>
        ${ACTS.map((act) => html`<button key=${act[1]} disabled=${!!this.whyNot(act)} title=${this.whyNot(act)} onClick=${() => this.act(act)}>${act[0]} <kbd>${act[1].toUpperCase()}</kbd></button>`)}
        <button onClick=${() => this.order(HEAL[2])}>${HEAL[0]} <kbd>H</kbd></button>
        <button onClick=${() => this.nextLink()}>Links <kbd>L</kbd></button>
        <button aria-expanded=${this.help} onClick=${() => this.toggleHelp()}>Keys <kbd>?</kbd></button>
        <button onClick=${() => this.end()}>End the session</button></div>
      ${this.link && this.linkMenu()}
      ${this.help && html`<p class="keys"><kbd>1</kbd>–<kbd>9</kbd> choose a node · letters: the buttons' · <kbd>/</kbd> chat · <kbd>L</kbd> next link of the leader · <kbd>D</kbd> dark or light · <kbd>Esc</kbd> close, leave a text</p>`}
      <pre role="status" class=${this.refused ? "said refused" : "said"}>${this.said}</pre>
      ${!isStage && text("say", "Chat", "a message of client 9999", chat)}
      ${!isStage && text("step", "Any step", "disk: {on: 2, slow: 100ms}", (words) => words)}</div>`;
  }

  linkMenu() {
    const [a, b] = this.link;
    const roles = Object.fromEntries(this.picture().nodes.map((node) => [node.id, node.role]));
    const other = roles[a] === "leader" ? b : roles[b] === "leader" ? a : 0;
    return html`<div role="group" class="link-menu" aria-label=${`Link of node ${a} and node ${b}`}><span>Link ${a}–${b}</span>
      ${LINK_ACTS.map(([name, step], index) => html`<button key=${name} disabled=${!other && index < LINK_ACTS.length - 1} onClick=${() => this.order(step(other))}>${name}</button>`)}
      <button onClick=${() => this.close()}>Close</button>
      ${!other && html`<span>No node of this link leads. Followers send each other nothing, so a fault would have no effect.</span>`}</div>`;
  }
}

// A message as a step. JSON is YAML, but for a few characters that YAML takes for line breaks or refuses.
function chat(message) {
  const text = JSON.stringify(message).replace(/[\u007f-\u009f\u2028\u2029\ufeff]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return `send: {client: ${CHAT_CLIENT}, messages: [${text}], wait: false}`;
}
