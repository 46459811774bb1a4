// The pages and their addresses: #overview, #figures, ..., #constitution/PRINCIPLE, #rows/STEP/UID.

const PAGES = { overview: ["Overview", overview], figures: ["Figures", figuresPage], trainings: ["Trainings", trainingsPage], health: ["Health", healthPage],
  constitution: ["Constitution", constitutionPage], rows: ["Rows", null], comparison: ["Two runs", comparisonPage], settings: ["Settings", settingsPage] };

async function begin() {
  const said = await unpacked("content");
  const { run } = said;
  document.getElementById("head").append(el("h1", {}, run.name), el("p", { class: "soft" },
    el("span", { class: run.status === "done" ? "good" : "bad" }, run.status), run.taken ? ` in ${run.taken}` : "", run.variant ? `, with ${run.variant}` : "",
    run.started ? ` · begun ${new Date(run.started * 1000).toLocaleString()}` : "", ` · seed ${run.seed} · caiflow ${run.caiflow} · ${run.folder}`));
  const browser = new Browser(said.tables);
  const sections = new Map(Object.entries(PAGES).filter(([name]) => name !== "comparison" || said.diff).map(([name, [, made]]) =>
    [name, el("section", { hidden: true, "data-page": name }, made ? made(said) : browser.element)]));
  document.getElementById("main").replaceChildren(...sections.values());
  document.getElementById("nav").append(...[...sections.keys()].map((name) => el("a", { href: `#${name}` }, PAGES[name][0])));
  const go = async () => {
    const [name, ...rest] = location.hash.slice(1).split("/").map(decodeURIComponent);
    const page = sections.has(name) ? name : "overview";
    for (const [other, section] of sections) section.hidden = other !== page;
    for (const link of document.querySelectorAll("nav a")) {
      if (link.hash === `#${page}`) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (page === "rows") await browser.show(rest[0], rest.slice(1).join("/"));
    if (page === "constitution" && rest[0]) [...document.querySelectorAll("[data-principle]")].find((one) => one.dataset.principle === rest[0])?.scrollIntoView();
  };
  addEventListener("hashchange", go);
  await go();
  window.caiflow = { browser };
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => document.getElementById("main").replaceChildren(el("p", { class: "bad" }, `This report can't be opened: ${error}`)));
