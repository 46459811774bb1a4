// The row browser: search, filters and order over all rows of a step, one row's whole way through the steps, and its address.

const ROW_PX = 28;

class Browser {
  constructor(tables) {
    this.tables = tables;
    this.loaded = new Map();
    this.choice = el("select", { "aria-label": "step", onchange: () => this.open(this.tables[this.choice.value]) },
      tables.map((one, i) => el("option", { value: i }, label(one))));
    this.query = el("input", { type: "search", placeholder: "words to find, or column:words", "aria-label": "search", oninput: () => this.select() });
    this.principle = el("select", { "aria-label": "principle", onchange: () => this.select() });
    this.order = el("select", { "aria-label": "order", onchange: () => this.select() });
    this.told = el("span", { class: "soft", role: "status" });
    this.space = el("div", { class: "space" });
    this.list = el("div", { class: "list", role: "listbox", tabindex: 0, "aria-label": "rows", onscroll: () => this.draw(), onkeydown: (event) => this.key(event) }, this.space);
    this.way = el("div", { class: "way", "aria-live": "polite", tabindex: 0 });
    this.element = el("div", {}, el("div", { class: "tools" }, this.choice, this.query, this.principle, this.order, this.told),
      el("div", { class: "browser" }, this.list, this.way));
    this.found = [];
    this.at = -1;
  }

  /** Open the table of a step, and the row of this uid where it is there. */
  async show(step, uid) {
    const table = this.tables.find((one) => one.step === step && !one.run && (!uid || one.kind === "rows")) || this.tables[0];
    if (!table) return;
    if (this.table !== table) await this.open(table);
    if (!uid) return;
    const place = (row) => this.rows.uid && this.rows.uid[row] === uid;
    if (!this.found.some(place)) { this.query.value = ""; this.principle.value = ""; this.select(); }
    const at = this.found.findIndex(place);
    if (at >= 0) { this.list.scrollTop = Math.max(0, at * ROW_PX - this.list.clientHeight / 2); this.pick(at, false); }
    else this.way.replaceChildren(el("p", {}, `Row ${uid} isn't among the rows of ${step} in this file.`));
  }

  async columns(table) {
    if (!this.loaded.has(table)) this.loaded.set(table, unpacked(`table-${this.tables.indexOf(table)}`));
    return this.loaded.get(table);
  }

  async open(table) {
    this.table = table;
    this.choice.value = this.tables.indexOf(table);
    this.told.textContent = "unpacking ...";
    this.rows = await this.columns(table);
    const size = table.rows;
    this.texts = Array.from({ length: size }, (_, i) => table.columns.map((name) => plain(this.rows[name][i])).join("\n").toLowerCase());
    const drawn = this.rows.principle ? [...new Set(this.rows.principle)].filter((one) => one).sort() : [];
    this.principle.replaceChildren(el("option", { value: "" }, "all principles"), ...drawn.map((one) => el("option", { value: one }, one)));
    this.principle.hidden = !drawn.length;
    const ways = table.columns.filter((name) => ["number", "string", "boolean"].includes(typeof this.rows[name].find((value) => value !== null)));
    this.order.replaceChildren(el("option", { value: "" }, "in their order"),
      ...ways.flatMap((name) => [el("option", { value: `+${name}` }, `${name} ↑`), el("option", { value: `-${name}` }, `${name} ↓`)]));
    this.way.replaceChildren(el("p", { class: "soft" }, "Choose a row to see its way through the steps."));
    this.seen = this.told_by();
    this.select();
  }

  /** The columns that tell a row in the list: its prompt, and the texts that came last. */
  told_by() {
    const texts = this.table.columns.filter((name) => name !== "uid" && ["string", "object"].includes(typeof this.rows[name].find((value) => value !== null)));
    const last = texts.filter((name) => name !== "prompt").reverse();
    return texts.includes("prompt") ? ["prompt", ...last.slice(0, 2)] : (texts.length ? last : this.table.columns.filter((name) => name !== "uid")).slice(0, 3);
  }

  /** Find the rows that hold every word (of one column after `column:`), in the order chosen. */
  select() {
    const asked = this.query.value.toLowerCase().trim();
    const [name, rest] = [asked.slice(0, asked.indexOf(":")), asked.slice(asked.indexOf(":") + 1).trim()];
    const column = asked.includes(":") && this.rows[name] ? name : "";
    const words = (column ? rest : asked).split(/\s+/).filter(Boolean);
    const text = column ? (i) => plain(this.rows[column][i]).toLowerCase() : (i) => this.texts[i];
    const found = [];
    for (let i = 0; i < this.texts.length; i++) {
      if (this.principle.value && this.rows.principle[i] !== this.principle.value) continue;
      if (words.length) { const whole = text(i); if (!words.every((word) => whole.includes(word))) continue; }
      found.push(i);
    }
    if (this.order.value) {
      const [sign, values] = [this.order.value[0] === "-" ? -1 : 1, this.rows[this.order.value.slice(1)]];
      found.sort((a, b) => (values[a] === values[b] ? a - b : values[a] === null ? 1 : values[b] === null ? -1 : sign * (values[a] < values[b] ? -1 : 1)));
    }
    this.found = found;
    this.at = -1;
    const left = this.table.of > this.table.rows ? `; ${counted(this.table.of - this.table.rows)} more aren't in this file` : "";
    this.told.textContent = `${counted(found.length)} of ${counted(this.table.rows)} rows${left}`;
    this.space.style.height = `${found.length * ROW_PX}px`;
    this.list.scrollTop = 0;
    this.draw();
  }

  /** Draw the rows that are in sight. */
  draw() {
    const first = Math.max(0, Math.floor(this.list.scrollTop / ROW_PX) - 5);
    const last = Math.min(this.found.length, first + Math.ceil((this.list.clientHeight || 600) / ROW_PX) + 10);
    const seen = this.seen;
    this.space.replaceChildren(...this.found.slice(first, last).map((row, i) => {
      const at = first + i;
      const line = el("div", { class: "row", role: "option", "aria-selected": String(at === this.at), onclick: () => this.pick(at) },
        el("span", {}, plain((this.rows.uid || [])[row] ?? row).slice(0, 12)), seen.map((name) => el("span", { title: name }, said(this.rows[name][row]).slice(0, 160))));
      line.style.top = `${at * ROW_PX}px`;
      return line;
    }));
  }

  key(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 15, PageUp: -15 };
    if (!(event.key in steps) || !this.found.length) return;
    event.preventDefault();
    const at = Math.min(this.found.length - 1, Math.max(0, this.at + steps[event.key]));
    const top = at * ROW_PX;
    if (top < this.list.scrollTop) this.list.scrollTop = top;
    if (top + ROW_PX > this.list.scrollTop + this.list.clientHeight) this.list.scrollTop = top + ROW_PX - this.list.clientHeight;
    this.pick(at);
  }

  pick(at, tell = true) {
    this.at = at;
    this.draw();
    const uid = (this.rows.uid || [])[this.found[at]];
    if (uid === undefined) return;
    if (tell) history.replaceState(null, "", `#rows/${encodeURIComponent(this.table.step)}/${encodeURIComponent(uid)}`);
    this.drawn = this.walk(uid).then((cards) => { if (this.at === at) this.way.replaceChildren(...cards); });
  }

  /** One row in each step that has it: what is new there, and what changed, marked. */
  async walk(uid) {
    const cards = [el("p", { class: "name" }, uid)];
    let before = {};
    for (const table of this.tables) {
      const columns = await this.columns(table);
      const row = (columns.uid || []).findIndex((one) => one === uid || (one !== null && (uid.startsWith(`${one}/`) || one === uid.split("#")[0])));
      if (row < 0) continue;
      const here = Object.fromEntries(table.columns.map((name) => [name, columns[name][row]]));
      const news = table.columns.filter((name) => name !== "uid" && here[name] !== null && plain(here[name]) !== plain(before[name]));
      cards.push(el("div", { class: "card" }, el("h3", {}, label(table)), news.length ? news.map((name) => cell(name, here, before)) : el("p", { class: "soft" }, "as before")));
      if (!table.run) before = { ...before, ...here };
    }
    return cards;
  }
}

const label = (table) => `${table.run ? "other: " : ""}${table.step}${table.kind === "dropped" ? ", left out" : ""}`;

function cell(name, row, before) {
  const old = name === "revision" && typeof row.response === "string" && before.revision === undefined ? row.response : before[name];
  const words = typeof old === "string" && typeof row[name] === "string" ? marked(old, row[name]) : plain(row[name]);
  return el("div", {}, el("div", { class: "name" }, name), el("div", { class: "text" }, words));
}

/** A value in one line of the list: of a conversation what was said last. */
function said(value) {
  const turn = Array.isArray(value) ? value[value.length - 1] : null;
  return turn && typeof turn === "object" && "content" in turn ? plain(turn.content) : plain(value);
}

/** A value as text: turns of a conversation one below the other. */
function plain(value) {
  if (value === null || value === undefined) return "";
  if (Array.isArray(value) && value.length && value.every((turn) => turn && typeof turn === "object" && "content" in turn))
    return value.map((turn) => `${turn.role}: ${turn.content}`).join("\n");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
