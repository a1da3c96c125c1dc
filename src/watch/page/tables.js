// The tables of runs, evaluations and settings, and the samples.

function make(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}

// The name of a run; that of its directory where two would be equal.
function nameOf(run) {
  return runs.filter((other) => other.name === run.name).length > 1 ? run.dir : run.name;
}

// A name with its color, which is no information of its own.
function named(run) {
  const span = make("span");
  const swatch = make("span", { className: "swatch" });
  swatch.style.background = colorOf(run);
  swatch.setAttribute("aria-hidden", "true");
  span.append(swatch, nameOf(run));
  return span;
}

// Replaces the rows of a table. The first row is the head, the first cell of each row its name.
function fill(table, rows) {
  const cells = (row, head) => {
    const tr = make("tr", { className: row.className ?? "" });
    row.cells.forEach((content, index) => {
      const cell = make(head || index === 0 ? "th" : "td");
      if (head || index === 0) cell.scope = head ? "col" : "row";
      if (typeof content === "number" || row.numbers?.[index]) cell.className = "number";
      cell.append(typeof content === "number" ? short(content) : content);
      tr.append(cell);
    });
    return tr;
  };
  const [head, ...rest] = rows;
  const [thead, tbody] = [make("thead"), make("tbody")];
  thead.append(cells(head, true));
  tbody.append(...rest.map((row) => cells(row, false)));
  table.replaceChildren(thead, tbody);
}

const RUN_COLUMNS = [
  ["loss", "Loss"], ["val_loss", "Validation loss"], ["lr", "Learning rate"], ["ms", "ms per step"],
  ["tok_per_s", "Tokens per second"], ["tokens", "Tokens"], ["rss_mib", "Memory (MiB)"],
];

function showRuns() {
  const table = document.getElementById("runs");
  const focused = document.activeElement?.dataset?.dir;
  const numbers = [false, false, false, ...RUN_COLUMNS.map(() => true)];
  const head = { cells: ["Shown", "Run", "State", "Steps", ...RUN_COLUMNS.map(([, title]) => title)], numbers };
  const now = Date.now() / 1000;
  const rows = runs.map((run) => {
    const box = make("input", { type: "checkbox", checked: run.visible });
    box.dataset.dir = run.dir;
    box.setAttribute("aria-label", `Show ${nameOf(run)}`);
    box.addEventListener("change", () => { run.visible = box.checked; showAll(); });
    const values = RUN_COLUMNS.map(([name]) => run.last[name] ?? "–");
    return { cells: [box, named(run), exported ? run.end ?? "not ended" : stateOf(run, now), stepsOf(run), ...values], numbers };
  });
  fill(table, [head, ...rows]);
  if (focused) [...table.querySelectorAll("input")].find((box) => box.dataset.dir === focused)?.focus();
}

// Metrics of evaluations: those in lines without a training loss.
function evaluationMetrics() {
  const training = ["loss", "norm", "lr", "ms", "tok_per_s", "tokens", "rss_mib", "peak_rss_mib", "gpu_mib", "gpu_used_mib"];
  const all = runs.flatMap((run) => Object.keys(run.series));
  return [...new Set(all)].filter((name) => !training.includes(name));
}

// Whether a smaller value of a metric is better.
function lowerIsBetter(metric) {
  return /loss|perplexity/.test(metric);
}

function showEvaluation() {
  const shown = runs.filter((run) => run.visible);
  const rows = [];
  for (const metric of evaluationMetrics()) {
    const pick = lowerIsBetter(metric) ? Math.min : Math.max;
    const best = shown.map((run) => (run.series[metric]?.value ?? []).filter(Number.isFinite).reduce((a, b) => pick(a, b), startOf(pick)));
    rows.push({ cells: [`${metric}, best`, ...best.map((value) => (Number.isFinite(value) ? value : "–"))] });
    rows.push({ cells: [`${metric}, last`, ...shown.map((run) => run.last[metric] ?? "–")] });
    for (const baseline of baselines.filter((baseline) => baseline.metric === metric)) {
      const difference = best.map((value) => comparison(value, baseline.value, metric));
      rows.push({ cells: [`best against ${baseline.name}`, ...difference] });
    }
  }
  const numbers = [false, ...shown.map(() => true)];
  rows.forEach((row) => { row.numbers = numbers; });
  const head = { cells: ["Metric", ...shown.map(named)], numbers };
  const table = document.getElementById("evaluation");
  if (rows.length) fill(table, [head, ...rows]);
  else table.replaceChildren(make("caption", { className: "empty", textContent: "No evaluation yet." }));
}

// The start of a search for the least or the greatest value.
function startOf(pick) {
  return pick === Math.min ? Infinity : -Infinity;
}

// A value against a baseline: the difference, and whether it is better, in words and not in color alone.
function comparison(value, baseline, metric) {
  if (!Number.isFinite(value)) return "–";
  const better = lowerIsBetter(metric) ? value <= baseline : value >= baseline;
  const sign = value >= baseline ? "+" : "−";
  const text = `${sign}${short(Math.abs(value - baseline))} (${better ? "better" : "worse"})`;
  return make("span", { textContent: text, className: better ? "better" : "" });
}

// The steps before which any run that is shown drew samples.
function sampleSteps() {
  const steps = runs.filter((run) => run.visible).flatMap((run) => [...run.samples.keys()]);
  return [...new Set(steps)].sort((a, b) => a - b);
}

let sampleChoice = null; // a step, or null for the newest

function showSamples() {
  const steps = sampleSteps();
  const slider = document.getElementById("sample-step");
  const place = document.getElementById("samples");
  slider.max = Math.max(steps.length - 1, 0);
  slider.disabled = steps.length < 2;
  const chosen = sampleChoice === null ? steps.length - 1 : Math.max(steps.findLastIndex((step) => step <= sampleChoice), 0);
  slider.value = Math.max(chosen, 0);
  const step = steps[chosen];
  const text = step === undefined ? "–" : String(step);
  document.getElementById("sample-value").textContent = text;
  slider.setAttribute("aria-valuetext", `step ${text}`);
  const articles = runs.filter((run) => run.visible && run.samples.size).flatMap((run) => {
    // Each run shows its newest samples up to the step, which need not be one of its own.
    const own = [...run.samples.keys()].findLast((other) => other <= step);
    return (run.samples.get(own) ?? []).map((sample) => sampleOf(run, own, sample));
  });
  place.replaceChildren(...(articles.length ? articles : [make("p", { className: "empty", textContent: "No samples yet." })]));
}

function sampleOf(run, step, { index, text }) {
  const article = make("article");
  const title = make("h3");
  title.append(named(run), `, step ${step}${index ? `, sample ${index}` : ""}`);
  article.append(title, make("pre", { textContent: text }));
  return article;
}

function showSettings() {
  const shown = runs.filter((run) => run.visible);
  const maps = shown.map((run) => new Map(run.settings?.settings ?? []));
  const names = [...new Set(maps.flatMap((map) => [...map.keys()]))];
  const only = document.getElementById("differences").checked;
  const rows = names.map((name) => {
    const values = maps.map((map) => map.get(name) ?? "–");
    return { name, values, differs: new Set(values).size > 1 };
  });
  const wanted = rows.filter((row) => row.differs || !only);
  const body = wanted.map(({ name, values, differs }) => ({
    cells: [differs ? `${name} (differs)` : name, ...values], className: differs ? "differs" : "",
  }));
  const table = document.getElementById("settings");
  if (body.length) fill(table, [{ cells: ["Setting", ...shown.map(named)] }, ...body]);
  else table.replaceChildren(make("caption", { className: "empty", textContent: names.length ? "Nothing differs." : "No settings." }));
}
