// A session by hand: buttons, keys and text fields, each of which orders one step in the words of a scenario file.
import { h } from "/static/preact.mjs";
import htm from "/static/htm.mjs";

const html = htm.bind(h);
const SURE_MS = 1000;

export class Hands {
  // redraw: draws the page. picture: returns what it shows. orders: see lab/watch/orders.py.
  constructor(redraw, picture, orders) {
    Object.assign(this, { redraw, picture, ...orders, node: 0, link: null, said: "", refused: false, help: false, sure: "", leftTextAt: -Infinity });
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

  // what: { step } in the words of a scenario file, with NODE for `node`, or { say: message }.
  async order(what, node = 0) {
    const asked = what.say ? { say: what.say } : { step: node ? what.step.replaceAll("NODE", node) : what.step };
    const words = asked.step || asked.say;
    this.say(`${words} …`);
    const answer = await this.post("/api/step", asked);
    const done = `${answer.step || words}: done in ${answer.took_ms || 0} ms`;
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
  whyNot(act) {
    const node = this.chosen();
    if (!node) return "choose a node first";
    return act.states.includes(node.state) ? "" : `node ${node.id} is ${node.state}`;
  }

  act(act) {
    const why = this.whyNot(act);
    if (why) this.say(`${act.word}: ${why}`, true);
    else this.order(act, this.node);
  }

  // Just after typing, a key may have been meant for the text: ask again before it does harm.
  isMeant({ key, word, harmful }) {
    const meant = this.sure === key || !harmful || performance.now() - this.leftTextAt > SURE_MS;
    this.sure = meant ? "" : key;
    if (!meant) this.say(`press ${key.toUpperCase()} again: ${word}`);
    return meant;
  }

  // Returns whether the key has a meaning.
  key(key) {
    const act = this.acts.find((each) => each.key === key);
    if (/^[1-9]$/.test(key) && this.picture().nodes.some((node) => node.id === +key)) this.choose(+key);
    else if (act) this.isMeant(act) && this.act(act);
    else if (key === "h") this.order(this.heal);
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

  submit(event, name) {
    event.preventDefault();
    const field = event.target.elements[0];
    if (field.value.trim()) this.order({ [name]: field.value });
    field.value = "";
  }

  render(isStage) {
    const text = (id, label, placeholder) => html`<form onSubmit=${(event) => this.submit(event, id)}>
      <label for=${id}>${label}</label> <input id=${id} autocomplete="off" maxlength="2000" placeholder=${placeholder}
        onBlur=${() => { this.leftTextAt = performance.now(); }} /> <button>${id === "say" ? "Send" : "Do"}</button></form>`;
    return html`<div class="hands">
      <div role="toolbar" aria-label="Faults"><span>${this.node ? `node ${this.node}` : "choose a node: 1–9"}</span>
        ${this.acts.map((act) => html`<button key=${act.key} disabled=${!!this.whyNot(act)} title=${this.whyNot(act)} onClick=${() => this.act(act)}>${act.word} <kbd>${act.key.toUpperCase()}</kbd></button>`)}
        <button onClick=${() => this.order(this.heal)}>${this.heal.word} <kbd>H</kbd></button>
        <button onClick=${() => this.nextLink()}>Links <kbd>L</kbd></button>
        <button aria-expanded=${this.help} onClick=${() => this.toggleHelp()}>Keys <kbd>?</kbd></button>
        <button onClick=${() => this.end()}>End the session</button></div>
      ${this.link && this.linkMenu()}
      ${this.help && html`<p class="keys"><kbd>1</kbd>–<kbd>9</kbd> choose a node · letters: the buttons' · <kbd>/</kbd> chat · <kbd>L</kbd> next link of the leader · <kbd>D</kbd> dark or light · <kbd>Esc</kbd> close, leave a text</p>`}
      <pre role="status" class=${this.refused ? "said refused" : "said"}>${this.said}</pre>
      ${!isStage && text("say", "Chat", "a message of client 9999")}
      ${!isStage && text("step", "Any step", "disk: {on: 2, slow: 100ms}")}</div>`;
  }

  linkMenu() {
    const [a, b] = this.link;
    const roles = Object.fromEntries(this.picture().nodes.map((node) => [node.id, node.role]));
    const other = roles[a] === "leader" ? b : roles[b] === "leader" ? a : 0;
    return html`<div role="group" class="link-menu" aria-label=${`Link of node ${a} and node ${b}`}><span>Link ${a}–${b}</span>
      ${this.links.map((each) => html`<button key=${each.word} disabled=${!other && each.step.includes("NODE")} onClick=${() => this.order(each, other)}>${each.word}</button>`)}
      <button onClick=${() => this.close()}>Close</button>
      ${!other && html`<span>No node of this link leads. Followers send each other nothing, so a fault would have no effect.</span>`}</div>`;
  }
}
