// The page: controls, and the loop that updates it.

const POLL_MS = 2000;

// The data of an exported page; null while a server has them.
const exported = JSON.parse(document.getElementById("data").textContent);

const CHARTS = [
  { id: "loss", title: "Loss", unit: "nats per token; validation dashed", metrics: ["loss", "val_loss"], noisy: ["loss"], log: true, first: true },
  { id: "norm", title: "Gradient norm", unit: "before clipping", metrics: ["norm"], noisy: ["norm"], log: true },
  { id: "lr", title: "Learning rate", unit: "", metrics: ["lr"] },
  { id: "ms", title: "Step time", unit: "milliseconds", metrics: ["ms"], noisy: ["ms"] },
  { id: "tok_per_s", title: "Throughput", unit: "tokens per second", metrics: ["tok_per_s"], noisy: ["tok_per_s"] },
  { id: "rss_mib", title: "Memory", unit: "MiB, of the first process; on its GPU dashed", metrics: ["rss_mib", "gpu_mib"] },
];
const charts = [];

// Adds a chart for each metric that has none yet.
function addCharts() {
  const known = new Set(charts.flatMap((chart) => chart.metrics));
  const missing = evaluationMetrics().filter((metric) => !known.has(metric) && !["val_loss", "val_perplexity"].includes(metric));
  const others = missing.map((metric) => ({ id: metric, title: metric, unit: "evaluation", metrics: [metric] }));
  const has = (metrics) => runs.some((run) => metrics.some((metric) => run.series[metric]));
  for (const of of [...CHARTS, ...others]) {
    if (of.metrics.some((metric) => known.has(metric)) || !has(of.metrics)) continue;
    const chart = new Chart(of);
    charts.push(chart);
    document.getElementById("charts").append(chart.figure);
  }
}

let drawing = false;
function drawAll() {
  if (drawing) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    charts.forEach((chart) => chart.draw());
  });
}

function showAll() {
  addCharts();
  showRuns();
  showEvaluation();
  showSamples();
  showSettings();
  drawAll();
}

function setCursor(value) {
  view.cursor = value;
  drawAll();
}

function setRange(range) {
  view.range = range;
  drawAll();
}

// Zooms around the cursor, or the middle.
function zoom(factor) {
  const range = xRange();
  if (!range) return;
  const to = scale(range, [0, 1], view.logX);
  const inside = view.cursor !== null && view.cursor >= range[0] && view.cursor <= range[1];
  const center = inside ? to(view.cursor) : 0.5;
  const wanted = [center - center * factor, center + (1 - center) * factor].map(to.inverse);
  view.range = null;
  const all = xRange();
  const cut = [Math.max(wanted[0], all[0]), Math.min(wanted[1], all[1])];
  setRange(cut[0] <= all[0] && cut[1] >= all[1] ? null : cut);
}

// Moves the range by a fifth of it.
function pan(way) {
  if (!view.range) return;
  const to = scale(view.range, [0, 1], view.logX);
  setRange([0.2 * way, 1 + 0.2 * way].map(to.inverse));
}

function axisName() {
  return { step: "step", tokens: "tokens", time: "hours" }[view.axis];
}

// The browser's memory of a page. One that was opened as a file may have none.
function remember(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(`warpsmith.${name}`, value);
    return localStorage.getItem(`warpsmith.${name}`);
  } catch {
    return null;
  }
}

function setTheme(theme) {
  const dark = theme === "dark" || (theme === "auto" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  showAll();
}

function connectControls() {
  const on = (id, event, work) => {
    const element = document.getElementById(id);
    element.addEventListener(event, () => work(element));
    return element;
  };
  on("axis", "change", (axis) => { view.axis = axis.value; view.cursor = null; setRange(null); });
  on("log-x", "change", (box) => { view.logX = box.checked; setRange(null); });
  const showSmooth = (range) => {
    view.smooth = Number(range.value);
    document.getElementById("smooth-value").textContent = range.value;
    drawAll();
  };
  showSmooth(on("smooth", "input", showSmooth));
  on("zoom-in", "click", () => zoom(0.5));
  on("zoom-out", "click", () => zoom(2));
  on("zoom-reset", "click", () => setRange(null));
  on("differences", "change", showSettings);
  on("sample-step", "input", (slider) => {
    const steps = sampleSteps();
    const newest = Number(slider.value) === steps.length - 1;
    sampleChoice = newest ? null : steps[Number(slider.value)];
    showSamples();
  });
  const theme = on("theme", "change", (select) => { remember("theme", select.value); setTheme(select.value); });
  theme.value = remember("theme") ?? "auto";
  setTheme(theme.value);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(theme.value));
  new ResizeObserver(drawAll).observe(document.getElementById("charts"));
}

// Says something in the header, and only if it is new, as a screen reader reads it aloud.
function say(text) {
  const state = document.getElementById("state");
  if (state.textContent !== text) state.textContent = text;
}

async function follow() {
  if (document.getElementById("live").checked) {
    try {
      if (await poll()) showAll();
      else showRuns();
      say(runs.length === 1 ? "1 run" : `${runs.length} runs`);
    } catch (error) {
      say(`no news: ${error.message.trim()}`);
    }
  }
  setTimeout(follow, POLL_MS);
}

connectControls();
if (exported) {
  takeRuns(exported);
  runs.forEach((run, index) => takeLines(run, exported.logs[index], true));
  document.getElementById("live").parentElement.remove();
  say(`${runs.length === 1 ? "1 run" : `${runs.length} runs`}, as exported`);
  showAll();
} else {
  follow();
}
