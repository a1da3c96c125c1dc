// Curves on canvases, which share their range of the horizontal axis and a cursor.

const view = { axis: "step", logX: false, smooth: 0.8, range: null, cursor: null };

const MARGIN = { left: 62, right: 14, top: 10, bottom: 26 };

class Chart {
  // Metrics in `noisy` have a value per step, and are smoothed.
  constructor({ id, title, unit, metrics, noisy = [], log = false, first = false }) {
    Object.assign(this, { id, title, unit, metrics, noisy, log });
    this.figure = make("figure", { className: first ? "first" : "" });
    const caption = make("figcaption");
    caption.append(make("h3", { textContent: title, id: `title-${id}` }), make("span", { className: "unit", textContent: unit }));
    const label = make("label");
    this.logBox = make("input", { type: "checkbox", checked: log });
    label.append(this.logBox, " logarithmic");
    caption.append(label);
    this.canvas = make("canvas", { id: `chart-${id}`, tabIndex: 0 });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-describedby", "keys");
    this.readout = make("span", { className: "readout" });
    this.figure.append(caption, this.canvas, this.readout);
    this.logBox.addEventListener("change", () => { this.log = this.logBox.checked; this.draw(); });
    this.listen();
  }

  // The curves of the runs that are shown: the values as they are, and smoothed if there are many.
  curves() {
    const curves = [];
    for (const run of runs.filter((run) => run.visible)) {
      this.metrics.forEach((metric, index) => {
        const series = run.series[metric];
        if (!series) return;
        const noisy = this.noisy.includes(metric);
        const curve = { run, metric, x: series[view.axis], y: series.value, dashed: index > 0, dots: series.value.length < 200 };
        if (noisy && view.smooth > 0) {
          curves.push({ ...curve, faint: true }, { ...curve, y: smoothed(series.value, view.smooth) });
        } else {
          curves.push(curve);
        }
      });
    }
    return curves;
  }

  get inner() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    return { left: MARGIN.left, top: MARGIN.top, width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  }

  // Functions from values to pixels, or nothing if there is nothing to show.
  scales(curves) {
    const x = xRange();
    if (!x) return null;
    let [low, high] = [Infinity, -Infinity];
    for (const { x: xs, y: ys, faint } of curves) {
      const usable = (y, i) => xs[i] >= x[0] && xs[i] <= x[1] && Number.isFinite(y) && (!this.log || y > 0);
      const inRange = ys.filter(usable).sort((a, b) => a - b);
      // Single spikes must not flatten all else.
      const left = faint ? Math.floor(inRange.length / 50) : 0;
      const ends = [inRange[left], inRange[inRange.length - 1 - left]].filter((end) => end !== undefined);
      [low, high] = [Math.min(low, ...ends), Math.max(high, ...ends)];
    }
    if (low > high) return null;
    const y = padded(low, high, this.log);
    const inner = this.inner;
    const toX = scale(x, [inner.left, inner.left + inner.width], view.logX);
    const toY = scale(y, [inner.top + inner.height, inner.top], this.log);
    return { x, y, toX, toY };
  }

  draw() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    if (width === 0) return;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    const g = this.canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.font = "12px system-ui, sans-serif";
    const curves = this.curves();
    this.scale = this.scales(curves);
    this.drawn = curves.filter((curve) => !curve.faint);
    this.canvas.setAttribute("aria-label", this.summary());
    if (!this.scale) {
      g.fillStyle = color("--faint");
      g.fillText("no points in this range", MARGIN.left, height / 2);
      return;
    }
    this.drawAxes(g);
    g.save();
    const inner = this.inner;
    g.beginPath();
    g.rect(inner.left, inner.top, inner.width, inner.height);
    g.clip();
    this.drawBaselines(g);
    curves.forEach((curve) => this.drawCurve(g, curve));
    g.restore();
    this.drawCursor(g);
    this.drawSelection(g);
  }

  drawAxes(g) {
    const { x, y, toX, toY } = this.scale;
    const inner = this.inner;
    g.strokeStyle = color("--line");
    g.fillStyle = color("--faint");
    g.lineWidth = 1;
    g.textAlign = "right";
    g.textBaseline = "middle";
    const levels = ticks(y, this.log, 6);
    for (const value of levels) {
      line(g, inner.left, toY(value), inner.left + inner.width, toY(value));
      g.fillText(short(value, gap(levels)), inner.left - 6, toY(value));
    }
    g.textAlign = "center";
    g.textBaseline = "top";
    const places = ticks(x, view.logX, 7);
    for (const value of places) {
      line(g, toX(value), inner.top, toX(value), inner.top + inner.height);
      g.fillText(short(value, gap(places)), toX(value), inner.top + inner.height + 6);
    }
  }

  drawBaselines(g) {
    const inner = this.inner;
    g.setLineDash([5, 4]);
    g.strokeStyle = g.fillStyle = color("--faint");
    g.textAlign = "left";
    g.textBaseline = "bottom";
    for (const { name, value } of baselines.filter((baseline) => this.metrics.includes(baseline.metric))) {
      const y = this.scale.toY(value);
      line(g, inner.left, y, inner.left + inner.width, y);
      g.fillText(name, inner.left + 5, y - 2);
    }
    g.setLineDash([]);
  }

  drawCurve(g, { run, x, y, dashed, dots, faint }) {
    const { toX, toY } = this.scale;
    g.strokeStyle = g.fillStyle = colorOf(run);
    g.globalAlpha = faint ? 0.3 : 1;
    g.lineWidth = faint ? 1 : 1.8;
    g.setLineDash(dashed && !faint ? [7, 4] : []);
    g.beginPath();
    let pen = false;
    for (const [px, py] of thinned(x, y, toX, (value) => (this.log && value <= 0 ? NaN : toY(value)))) {
      if (Number.isNaN(py)) {
        pen = false;
        continue;
      }
      if (pen) g.lineTo(px, py);
      else g.moveTo(px, py);
      pen = true;
      if (dots) g.fillRect(px - 2.5, py - 2.5, 5, 5);
    }
    g.stroke();
    g.setLineDash([]);
    g.globalAlpha = 1;
  }

  drawCursor(g) {
    this.readout.textContent = "";
    if (view.cursor === null) return;
    const { x, toX, toY } = this.scale;
    if (view.cursor < x[0] || view.cursor > x[1]) return;
    const inner = this.inner;
    g.strokeStyle = color("--faint");
    line(g, toX(view.cursor), inner.top, toX(view.cursor), inner.top + inner.height);
    for (const { run, x: xs, y: ys } of this.drawn) {
      const at = nearest(xs, view.cursor);
      if (at < 0 || !Number.isFinite(ys[at])) continue;
      g.fillStyle = colorOf(run);
      g.beginPath();
      g.arc(toX(xs[at]), toY(ys[at]), 3.5, 0, 7);
      g.fill();
    }
    this.readout.textContent = this.atCursor();
  }

  drawSelection(g) {
    if (!this.drag) return;
    const inner = this.inner;
    const [from, to] = this.drag;
    g.globalAlpha = 0.2;
    g.fillStyle = color("--accent");
    g.fillRect(Math.min(from, to), inner.top, Math.abs(to - from), inner.height);
    g.globalAlpha = 1;
  }

  // The values at the cursor, in words.
  atCursor() {
    const parts = this.drawn.map(({ run, metric, x, y }) => {
      const at = nearest(x, view.cursor);
      return at < 0 ? null : `${nameOf(run)} ${metric} ${short(y[at])}`;
    });
    return `${axisName()} ${short(view.cursor)}: ${parts.filter(Boolean).join(", ")}`;
  }

  // The curves in words, for those who do not see them.
  summary() {
    const parts = (this.drawn ?? []).map(({ run, metric, y }) => {
      const finite = y.filter(Number.isFinite);
      const lowest = finite.reduce((least, value) => Math.min(least, value), Infinity);
      return `${nameOf(run)} ${metric}: ${y.length} points, last ${short(y[y.length - 1])}, lowest ${short(lowest)}`;
    });
    return `${this.title}, ${this.unit}. ${parts.join(". ") || "No points"}.`;
  }

  listen() {
    const at = (event) => event.clientX - this.canvas.getBoundingClientRect().left;
    this.canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.scale) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.drag = [at(event), at(event)];
    });
    this.canvas.addEventListener("pointermove", (event) => {
      if (!this.scale) return;
      if (this.drag) this.drag[1] = at(event);
      setCursor(this.scale.toX.inverse(at(event)));
    });
    this.canvas.addEventListener("pointerup", () => {
      const [from, to] = (this.drag ?? []).sort((a, b) => a - b);
      this.drag = null;
      if (to - from > 5) setRange([from, to].map(this.scale.toX.inverse));
      else drawAll();
    });
    this.canvas.addEventListener("pointerleave", () => { if (!this.drag) setCursor(null); });
    this.canvas.addEventListener("dblclick", () => setRange(null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const moves = { "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => setRange(null) };
    if (way && event.shiftKey) pan(way);
    else if (way) this.moveCursor(way);
    else if (moves[event.key]) moves[event.key]();
    else return;
    event.preventDefault();
    if (this.scale && view.cursor !== null) document.getElementById("cursor").textContent = this.atCursor();
  }

  // Moves the cursor by a fiftieth of the range, and at least to another point.
  moveCursor(way) {
    if (!this.scale) return;
    const { x, toX } = this.scale;
    const inner = this.inner;
    const start = view.cursor === null ? inner.left + (way > 0 ? 0 : inner.width) : toX(view.cursor);
    const moved = toX.inverse(start + way * inner.width / 50);
    setCursor(Math.min(Math.max(moved, x[0]), x[1]));
  }
}

// The range of the horizontal axis: what was zoomed into, or all points of all charts.
function xRange() {
  if (view.range) return view.range;
  let [low, high] = [Infinity, -Infinity];
  for (const run of runs.filter((run) => run.visible)) {
    for (const series of Object.values(run.series)) {
      for (const value of series[view.axis]) {
        if (Number.isFinite(value) && (!view.logX || value > 0)) [low, high] = [Math.min(low, value), Math.max(high, value)];
      }
    }
  }
  if (low > high) return null;
  return low === high ? [low * 0.99, high * 1.01 + 1e-9] : [low, high];
}

// A function from values to pixels, with its inverse.
function scale([low, high], [from, to], log) {
  const flat = log ? Math.log : (value) => value;
  const back = log ? Math.exp : (value) => value;
  const [a, b] = [flat(low), flat(high)];
  const function_ = (value) => from + ((flat(value) - a) / (b - a)) * (to - from);
  function_.inverse = (pixel) => back(a + ((pixel - from) / (to - from)) * (b - a));
  return function_;
}

function padded(low, high, log) {
  if (log) {
    const factor = Math.max((high / low) ** 0.06, 1.001);
    return [low / factor, high * factor];
  }
  const room = (high - low) * 0.06 || Math.abs(high) * 0.01 || 1;
  return [low - room, high + room];
}

// Round values on an axis.
function ticks([low, high], log, about) {
  if (log && high / low > 30) {
    const values = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++) {
      for (const digit of high / low > 2000 ? [1] : [1, 2, 5]) values.push(digit * 10 ** power);
    }
    return values.filter((value) => value >= low && value <= high);
  }
  const raw = (high - low) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= raw);
  const values = [];
  for (let n = Math.ceil(low / step); n * step <= high; n++) values.push(n * step);
  return values;
}

// The smallest difference of ticks.
function gap(values) {
  return Math.min(...values.slice(1).map((value, index) => value - values[index]));
}

// An exponential moving average, corrected for its start. What is not finite is passed over.
function smoothed(values, keep) {
  let [sum, weight] = [0, 0];
  return values.map((value) => {
    if (!Number.isFinite(value)) return NaN;
    sum = keep * sum + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return sum / weight;
  });
}

// Points in pixels: of those in one column, the first, the least, the greatest and the last.
function* thinned(x, y, toX, toY) {
  let column = null;
  const flush = () => (column ? [column.first, column.least, column.greatest, column.last] : []);
  for (let i = 0; i < x.length; i++) {
    const point = [toX(x[i]), toY(y[i])];
    const pixel = Math.round(point[0]);
    if (!column || column.pixel !== pixel || Number.isNaN(point[1])) {
      yield* flush();
      column = Number.isNaN(point[1]) ? null : { pixel, first: point, least: point, greatest: point, last: point };
      if (!column) yield point;
      continue;
    }
    if (point[1] < column.least[1]) column.least = point;
    if (point[1] > column.greatest[1]) column.greatest = point;
    column.last = point;
  }
  yield* flush();
}

// The index of the value nearest to `value` in ascending numbers, or -1.
function nearest(values, value) {
  let [low, high] = [0, values.length - 1];
  if (high < 0) return -1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low > 0 && value - values[low - 1] < values[low] - value ? low - 1 : low;
}

function line(g, x0, y0, x1, y1) {
  g.beginPath();
  g.moveTo(x0, y0);
  g.lineTo(x1, y1);
  g.stroke();
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}
