// The runs, and the lines of their logs as they come.

// Colors that those who do not see all of them can tell apart, on light and on dark paper.
const COLORS = {
  light: ["#0072b2", "#c04a00", "#007a59", "#a3417f", "#8a6100", "#6639ba", "#57606a", "#b3262e"],
  dark: ["#58b4f0", "#ff8f4d", "#2fc79a", "#e699c6", "#e3b341", "#b89bff", "#a5adb6", "#ff8182"],
};

// The runs by their directory, which stays when others appear.
const runs = [];
let baselines = [];
// Those that runs told: the accuracy of a guess.
const chances = [];

function newRun(shown) {
  return { ...shown, hue: runs.length % COLORS.light.length, visible: true, place: null, ...emptyLog() };
}

function colorOf(run) {
  return COLORS[document.documentElement.dataset.theme][run.hue];
}

function emptyLog() {
  return { series: {}, samples: new Map(), end: null, last: {}, firstTime: null, lastTime: null, tokens: 0 };
}

// Updates the list of runs. A run keeps its color and its data.
function takeRuns(overview) {
  baselines = [...overview.baselines, ...chances];
  const old = new Map(runs.map((run) => [run.dir, run]));
  overview.runs.forEach((shown) => {
    const run = old.get(shown.dir);
    if (run) Object.assign(run, shown);
    else runs.push(newRun(shown));
  });
  const order = new Map(overview.runs.map((shown, index) => [shown.dir, index]));
  runs.forEach((run) => { run.number = order.get(run.dir) ?? null; });
}

function parsed(line) {
  try {
    const object = JSON.parse(line);
    return object !== null && Number.isInteger(object.step) ? object : null;
  } catch {
    return null; // a note of somebody's
  }
}

// Takes complete lines of a run's log.
function takeLines(run, text, fromStart) {
  if (fromStart) Object.assign(run, emptyLog());
  for (const line of text.split("\n")) {
    const object = line === "" ? null : parsed(line);
    if (object) takeLine(run, object);
  }
}

function takeLine(run, object) {
  const { step, time } = object;
  run.firstTime ??= time ?? null;
  run.lastTime = time ?? run.lastTime;
  run.tokens = object.tokens ?? run.tokens;
  run.end = object.end ?? null;
  if (typeof object.text === "string") {
    if (!run.samples.has(step)) run.samples.set(step, []);
    run.samples.get(step).push({ index: object.sample, text: object.text });
    return;
  }
  const hours = time === undefined ? NaN : (time - run.firstTime) / 3600;
  for (const [field, number] of Object.entries(object)) {
    if (typeof number !== "number" || field === "step" || field === "time") continue;
    if (field.endsWith("_chance")) {
      takeChance(field.slice(0, -"_chance".length), number);
      continue;
    }
    const isMemory = field.endsWith("_bytes");
    const [name, value] = isMemory ? [field.replace("_bytes", "_mib"), Math.round(number / 2 ** 20)] : [field, number];
    run.series[name] ??= { step: [], tokens: [], time: [], value: [] };
    const series = run.series[name];
    series.step.push(step);
    series.tokens.push(run.tokens);
    series.time.push(hours);
    series.value.push(value);
    run.last[name] = value;
  }
}

// Makes the accuracy of a guess a baseline of a task.
function takeChance(task, value) {
  for (const metric of [`${task}_acc`, `${task}_acc_norm`]) {
    const name = `chance: ${value}`;
    if (chances.some((known) => known.metric === metric && known.name === name)) continue;
    chances.push({ metric, name, value });
    baselines.push({ metric, name, value });
  }
}

// The number of steps that a run has done.
function stepsOf(run) {
  const steps = (run.series.loss ?? { step: [] }).step;
  return steps.length ? steps[steps.length - 1] + 1 : 0;
}

// The state of a run in words. `now` is in seconds.
function stateOf(run, now) {
  if (run.end) return run.end;
  if (run.lastTime === null) return stepsOf(run) ? "unknown" : "no line yet";
  const silent = now - run.lastTime;
  const patience = Math.max(120, 20 * (run.last.ms ?? 0) / 1000);
  return silent > patience ? `silent for ${duration(silent)}` : "running";
}

function duration(seconds) {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

// A number in few characters: 0.00031, 3.2924, 12,345, 4.2M. Numbers that differ by `gap` look different.
function short(value, gap = Infinity) {
  if (value === undefined || value === null || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  for (const [unit, name] of [[1e12, "T"], [1e9, "B"], [1e6, "M"]]) {
    if (size >= unit) return `${trimmed(value / unit, Math.max(2, Math.ceil(-Math.log10(gap / unit))))}${name}`;
  }
  const maximumFractionDigits = Math.max(0, Math.ceil(-Math.log10(gap)));
  if (size >= 1000) return value.toLocaleString("en-US", { maximumFractionDigits });
  if (size >= 1) return trimmed(value, 4);
  return size < 1e-4 && size > 0 ? value.toExponential(2) : trimmed(value, 5);
}

function trimmed(value, digits) {
  return String(Number(value.toFixed(digits)));
}

// Asks the server for the runs and for the lines that are new. Returns whether anything was.
async function poll() {
  const answer = async (path) => {
    const response = await fetch(path);
    if (!response.ok) throw new Error(await response.text());
    return response;
  };
  takeRuns(await (await answer("/api/runs")).json());
  let news = false;
  for (const run of runs.filter((run) => run.number !== null)) {
    let more = true;
    while (more) {
      const place = run.place ? "&" + new URLSearchParams(run.place) : "";
      const text = await (await answer(`/api/log?run=${run.number}${place}`)).text();
      const end = text.indexOf("\n");
      const head = JSON.parse(text.slice(0, end));
      const lines = text.slice(end + 1);
      run.place = head.place;
      more = lines !== "";
      if (more || head.from_start) takeLines(run, lines, head.from_start);
      news ||= more || head.from_start;
    }
  }
  return news;
}
