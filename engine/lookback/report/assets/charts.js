// Pictures of figures: intervals, the frontier, curves, and the graph of steps.

const percent = (rate, digits = 0) => (100 * rate).toFixed(digits);
const rateText = (rate) =>
  `${percent(rate.rate)}% [${percent(rate.low)}, ${percent(rate.high)}]` + (rate.n ? ` of ${counted(rate.n)}` : "");

/** One check on one set: each model's rate with its interval, on one axis from 0 to 100%. */
function intervals(set) {
  const [left, wide, high] = [150, 270, 24];
  const height = 20 + high * set.rates.length;
  const at = (rate) => left + wide * rate;
  const lines = set.rates.map((rate, i) => {
    const y = 14 + high * i;
    const known = rate.rate !== null && rate.low !== null && rate.low !== undefined;
    return svg("g", {},
      svg("text", { x: left - 10, y: y + 4, "text-anchor": "end" }, rate.model.length > 22 ? rate.model.slice(0, 21) + "…" : rate.model),
      known && svg("line", { class: "whisker", x1: at(rate.low), x2: at(rate.high), y1: y, y2: y }) || null,
      rate.rate !== null && svg("circle", { class: "dot", cx: at(rate.rate), cy: y, r: 4 }) || null,
      svg("text", { x: left + wide + 12, y: y + 4 }, known ? rateText(rate) : "no answers"));
  });
  const grid = [0, 0.25, 0.5, 0.75, 1].map((rate) => svg("g", {},
    svg("line", { class: "axis", x1: at(rate), x2: at(rate), y1: 0, y2: height - 16 }),
    svg("text", { class: "soft", x: at(rate), y: height - 3, "text-anchor": "middle" }, percent(rate) + "%")));
  const label = `${set.check} on ${set.set}: ` + set.rates.map((rate) => `${rate.model} ${rate.rate === null ? "none" : rateText(rate)}`).join(", ");
  return svg("svg", { class: "chart", width: 576, viewBox: `0 0 576 ${height}`, role: "img", "aria-label": shown(label) }, grid, lines);
}

/** From values to places on an axis, with some room beyond; `ends` are the least and the greatest value. */
function scale(values, from, to) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || Math.abs(high) || 1;
  const [bottom, top] = high === low ? [low - span / 2, high + span / 2] : [low - span * 0.06, high + span * 0.06];
  return Object.assign((value) => from + ((value - bottom) / (top - bottom)) * (to - from), { ends: low === high ? [low] : [low, high] });
}

function few(value) {
  if (Math.abs(value) >= 100) return value.toFixed(0);
  return value && Math.abs(value) < 0.001 ? value.toExponential(1).replace(".0", "") : Number(value.toPrecision(3)).toString();
}

/** Helpfulness against harmlessness, each model with both intervals. */
function frontier(found) {
  const points = Object.entries(found.points);
  const spread = (name) => points.flatMap(([, p]) => [p[name], ...(p[`${name}_interval`] || [])]).filter((v) => v !== null && isFinite(v));
  const [x, y] = [scale(spread("helpfulness"), 60, 540), scale(spread("harmlessness"), 300, 16)];
  const marks = points.map(([model, p]) => {
    const [cx, cy] = [x(p.helpfulness), y(p.harmlessness)];
    const [a, b] = [p.helpfulness_interval, p.harmlessness_interval];
    return svg("g", { opacity: p.on_frontier ? 1 : 0.55 },
      a && svg("line", { class: "whisker", x1: x(a[0]), x2: x(a[1]), y1: cy, y2: cy }) || null,
      b && svg("line", { class: "whisker", x1: cx, x2: cx, y1: y(b[0]), y2: y(b[1]) }) || null,
      svg("circle", { class: "dot", cx, cy, r: p.on_frontier ? 6 : 4 }), svg("text", { x: cx + 9, y: cy - 8 }, model));
  });
  return svg("svg", { class: "chart", width: 640, viewBox: "0 0 640 345", role: "img", "aria-label": "helpfulness against harmlessness" },
    svg("line", { class: "axis", x1: 60, x2: 540, y1: 300, y2: 300 }), svg("line", { class: "axis", x1: 60, x2: 60, y1: 16, y2: 300 }),
    svg("text", { x: 300, y: 335, "text-anchor": "middle" }, `helpfulness: ${found.helpfulness}`),
    svg("text", { x: 18, y: 158, "text-anchor": "middle", transform: "rotate(-90 18 158)" }, `harmlessness: ${found.harmlessness}`),
    x.ends.map((value) => svg("text", { class: "soft", x: x(value), y: 316, "text-anchor": "middle" }, few(value))),
    y.ends.map((value) => svg("text", { class: "soft", x: 54, y: y(value) + 4, "text-anchor": "end" }, few(value))), marks);
}

/** One figure of a training over its steps. */
function curve(series) {
  const x = scale(series.points.map((p) => p[0]), 50, 300);
  const y = scale(series.points.map((p) => p[1]), 110, 12);
  const path = series.points.map((p, i) => `${i ? "L" : "M"}${x(p[0]).toFixed(1)} ${y(p[1]).toFixed(1)}`).join("");
  const [first, last] = [series.points[0], series.points[series.points.length - 1]];
  return el("figure", { style: null, class: "curve" }, el("figcaption", {}, `${series.name}: ${few(first[1])} → ${few(last[1])}`),
    svg("svg", { class: "chart", width: 320, viewBox: "0 0 320 130", role: "img", "aria-label": shown(`${series.name} over ${last[0]} steps`) },
      svg("line", { class: "axis", x1: 50, x2: 300, y1: 112, y2: 112 }),
      y.ends.map((value) => svg("text", { class: "soft", x: 46, y: y(value) + 4, "text-anchor": "end" }, few(value))),
      svg("text", { class: "soft", x: 300, y: 127, "text-anchor": "end" }, `step ${counted(last[0])}`),
      svg("path", { class: "curve", d: path })));
}

/** The lines between steps, drawn beside a list whose lines are 28 px high. */
function edges(steps) {
  const place = new Map(steps.map((step, i) => [step.name, [10 + 14 * step.lane, 14 + 28 * i]]));
  const wide = 20 + 14 * Math.max(0, ...steps.map((step) => step.lane));
  const lines = steps.flatMap((step) => step.inputs.filter((name) => place.has(name)).map((name) => {
    const [[x1, y1], [x2, y2]] = [place.get(name), place.get(step.name)];
    const bend = (y) => `C${x1} ${y + 14} ${x2} ${y + 14} ${x2} ${y + 28}`;
    const path = x2 > x1 ? `${bend(y1)}V${y2}` : x2 < x1 ? `V${y2 - 28}${bend(y2 - 28)}` : `V${y2}`;
    return svg("path", { class: "edge", d: `M${x1} ${y1}${path}` });
  }));
  const dots = steps.map((step) => svg("circle", { class: "dot", cx: place.get(step.name)[0], cy: place.get(step.name)[1], r: 4.5 }));
  return { wide, picture: svg("svg", { width: wide, height: 28 * steps.length, "aria-hidden": "true" }, lines, dots) };
}
