// The pages that tell of a whole run. Each takes the content and returns elements.

const LOOKS = { done: ["✓", "good"], cached: ["≡", "soft"], failed: ["✗", "bad"], noted: ["▲", "warn"], skipped: ["-", "soft"] };

/** Notes, one card for what several arms of a step have in common: the first is told whole, of the others their figure. */
function noteCards(notes) {
  const base = (note) => note.step.split("@")[0];
  const shared = Map.groupBy(notes, (note) => `${base(note)} ${note.measure}`);
  const rows = (note) => (note.uids && note.uids.length ? el("p", { class: "name" }, "rows ", note.uids.map((uid, i) => [i ? ", " : "", rowLink(note.step, uid)])) : null);
  return [...shared.values()].map((found) => el("div", { class: "card" }, found.map((note, i) => [
    el("p", {}, i ? null : el("span", { class: "warn" }, "▲ "), el("b", {}, note.step), " ", i ? note.message.split(";")[0] : note.message), rows(note)])));
}

function rowLink(step, uid, text) {
  return el("a", { href: `#rows/${encodeURIComponent(step)}/${encodeURIComponent(uid)}` }, text || uid.slice(0, 12));
}

function overview({ run }) {
  const failed = run.steps.filter((step) => step.error);
  const noted = new Set(run.notes.map((note) => note.step));
  const { wide, picture } = edges(run.steps);
  const line = (step) => {
    const [sign, look] = LOOKS[noted.has(step.name) && ["done", "cached"].includes(step.status) ? "noted" : step.status] || ["·", "soft"];
    const rows = step.rows_out === null || step.rows_out === undefined ? "" : `${counted(step.rows_out)} rows`;
    const rest = ["cached", "dropped", "failed"].filter((name) => step[name]).map((name) => `${counted(step[name])} ${name}`);
    return el("div", { class: "line" }, el("span", { class: `step ${look}` }, `${sign} ${step.name}`), el("span", { class: "op soft" }, step.op),
      el("span", { class: "count" }, rows), el("span", { class: "time soft" }, step.taken),
      el("span", { class: "rest soft" }, [step.status === "done" ? "" : step.status, ...rest].filter(Boolean).join(", ")));
  };
  const lines = el("div", { class: "graph scroll" }, picture, run.steps.map(line));
  for (const row of lines.querySelectorAll(".line")) row.style.paddingLeft = `${wide}px`;
  return [
    failed.length || run.notes.length ? el("h2", {}, "What needs attention") : null,
    failed.map((step) => el("div", { class: "card" }, el("b", { class: "bad" }, `✗ ${step.name} `), step.error)), noteCards(run.notes),
    el("h2", {}, "Steps"), lines,
    el("h2", {}, "What each step says of itself"),
    run.steps.filter((step) => step.metrics.length).map((step) => el("details", {}, el("summary", {}, step.name), table(["figure", "value"], step.metrics, [1]))),
  ];
}

function figuresPage({ run, other }) {
  if (!run.figures.length) return [el("p", {}, "No step of this run measures anything.")];
  const before = new Map((other ? other.figures : []).map((found) => [found.step, found]));
  return run.figures.map((found) => [
    el("h2", {}, found.step),
    el("p", { class: "soft" }, "A line is the 95% interval. Two that are apart are a finding, on these prompts; two that overlap say nothing yet. Arms of a step are compared prompt by prompt."),
    el("div", { class: "charts" }, found.rates.map((set) => {
      const old = before.get(found.step)?.rates.find((one) => one.set === set.set && one.check === set.check);
      const both = old ? { ...set, rates: [...set.rates, ...old.rates.map((rate) => ({ ...rate, model: `${rate.model} (other)` }))] } : set;
      return el("figure", {}, el("figcaption", {}, el("b", {}, `${set.set}: ${set.check}`), set.means ? el("span", { class: "soft" }, ` · ${set.means}`) : null), intervals(both),
        Object.entries(set.arms).map(([name, told]) => el("p", { class: "soft" }, el("b", {}, name), ` ${told}`)));
    })),
    found.frontier && Object.keys(found.frontier.points || {}).length ? [el("h3", {}, "Helpfulness against harmlessness"), frontier(found.frontier)] : null,
    found.tables.map((one) => [el("h3", {}, one.title), table(one.columns, one.rows, one.columns.map((_, i) => i).slice(1))]),
  ]);
}

function trainingsPage({ run }) {
  if (!run.curves.length) return [el("p", {}, "No step of this run has a curve.")];
  return run.curves.map((found) => [el("h2", {}, found.step), el("div", { class: "charts" }, found.series.map(curve))]);
}

function healthPage({ run }) {
  if (!run.health.length) return [el("p", {}, "Nothing was read of what the steps made.")];
  const rows = run.health.filter((line) => !line.note).map((line) =>
    [line.step, line.measure, line.value, line.rows, line.uids.map((uid, i) => [i ? ", " : "", rowLink(line.step, uid)])]);
  return [el("p", { class: "soft" }, "What was looked for in the rows that each step made: copies, circles, flips, cut answers and the like."),
    noteCards(run.notes), rows.length ? el("details", { open: !run.notes.length }, el("summary", {}, el("span", { class: "good" }, `${counted(rows.length)} within bounds`)),
      table(["step", "measure", "value", "rows", "to look at"], rows, [2, 3])) : null];
}

function constitutionPage({ run }) {
  if (!run.principles.length) return [el("p", {}, "No step of this run draws principles.")];
  const share = (part, whole) => (whole ? `${counted(part)} of ${counted(whole)} (${percent(part / whole)}%)` : "");
  const gone = (one) => Object.values(one.dropped).reduce((sum, count) => sum + count, 0);
  const overviewTable = table(["principle", "drawn", "answers changed", "rows left out", "flips with the order", "to know"], run.principles.map((one) =>
    [el("a", { href: `#constitution/${encodeURIComponent(one.id)}` }, one.id), counted(one.drawn), share(one.changed, one.revised), counted(gone(one)), share(one.flips, one.judged), one.remarks.join("; ")]), [1, 2, 3, 4]);
  const cards = run.principles.map((one) => el("div", { class: "card", "data-principle": one.id }, el("h3", {}, one.id),
    Object.entries(one.text).filter(([name]) => !["id", "source"].includes(name)).map(([name, text]) => [el("div", { class: "name" }, name), el("p", {}, text)]),
    Object.keys(one.dropped).length ? el("p", {}, "left out: ", Object.entries(one.dropped).map(([why, count]) => `${why} ${counted(count)}`).join(", ")) : null,
    one.examples.length ? el("details", {}, el("summary", {}, `${one.examples.length} changed answers`), one.examples.map((found) =>
      el("div", {}, el("div", { class: "name" }, rowLink(found.step, found.uid)), el("div", { class: "text" }, marked(found.before, found.after))))) : null));
  return [overviewTable, cards];
}

function comparisonPage({ diff, other }) {
  if (!diff) return [el("p", {}, "Written for one run; caiflow report RUN --compare RUN shows two.")];
  const changes = (title, found) => (found.length ? [el("h2", {}, title), table(["what", "other", "this"], found.map((one) => [one.path, el("del", {}, text(one.old)), el("ins", {}, text(one.new))]))] : null);
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const rows = diff.rows.map((one) => [one.step, counted(one.same), counted(one.changed), counted(one.only_old), counted(one.only_new),
    one.flips === null ? "" : `${counted(one.flips)} of ${counted(one.pairs)}`]);
  const examples = diff.rows.flatMap((one) => one.examples.map((found) => el("div", { class: "card" }, el("div", { class: "name" }, one.step, " · ", found.column, " · ", rowLink(one.step, found.uid)),
    el("div", { class: "text" }, marked(found.old, found.new)))));
  return [el("p", { class: "soft" }, `other: ${other.folder}`), changes("Settings", diff.settings), changes("Prompts and principles", diff.prompts),
    rows.length ? [el("h2", {}, "Rows"), table(["step", "same", "changed", "only other", "only this", "flipped"], rows, [1, 2, 3, 4, 5]), examples] : null,
    changes("Figures", diff.metrics), changes("Notes", diff.notes),
    diff.one_sided.length ? [el("h2", {}, "Steps of one run alone"), table(["step", "made in", "in the other"], diff.one_sided.map((one) => [one.step, one.made_in === "new" ? "this" : "other", one.other || "absent"]))] : null];
}

function settingsPage({ run }) {
  const spent = run.steps.filter((step) => step.taken || step.calls).map((step) => [step.name, step.taken, counted(step.calls), counted(step.reused_calls), counted(step.prompt_tokens), counted(step.completion_tokens), step.memory, counted(step.gpu_hours)]);
  return [el("h2", {}, "Time and calls"), table(["step", "time", "calls asked", "found in the ledger", "tokens asked", "tokens answered", "most memory", "GPU-hours"], spent, [1, 2, 3, 4, 5, 6, 7]),
    el("h2", {}, "Spec"), el("pre", {}, run.settings.spec), el("h2", {}, "Lock"),
    el("details", {}, el("summary", {}, `${run.settings.lock.length} entries`), table(["what", "value"], run.settings.lock))];
}
