//! A panel: axes, curves, reference lines, a legend, and the last value next to each curve.

use super::axis::{Axis, short};
use super::read::{Metrics, Series, smooth, thin};
use super::scene::{Anchor, BLUE, Color, FAINT, GREEN, GRID, INK, ORANGE, PURPLE, Scene};

/// Place of a panel, including its margins.
#[derive(Clone, Copy)]
pub(super) struct Rect {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

#[derive(Clone)]
struct Curve {
    name: &'static str,
    points: Series,
    color: Color,
    width: f64,
    /// Marks points with dots, so that a single one is visible.
    dots: bool,
    /// Writes the last value at the end of the curve.
    final_value: bool,
}

/// A value reached by GPT-2 or GPT-3, drawn if it is within the axis.
#[derive(Clone)]
struct Reference {
    name: &'static str,
    value: f64,
}

impl Reference {
    /// Draws a dashed line at height `y`, labeled at the end that is farther from the curves'
    /// `places`.
    fn draw(&self, scene: &mut Scene, inner: Rect, y: f64, places: &[(f64, f64)]) {
        let (left, right) = (inner.x, inner.x + inner.width);
        scene.dashed(vec![(left, y), (right, y)], 1.2, FAINT);
        let label = 7.0 * self.name.len() as f64;
        let free = |from: f64, to: f64| {
            let near = places.iter().filter(|p| (from..=to).contains(&p.0));
            near.map(|p| (p.1 - (y - 9.0)).abs()).fold(f64::INFINITY, f64::min)
        };
        if free(left, left + label) >= free(right - label, right) {
            scene.text(left + 6.0, y - 5.0, Anchor::Start, FAINT, self.name);
        } else {
            scene.text(right - 6.0, y - 5.0, Anchor::End, FAINT, self.name);
        }
    }
}

#[derive(Clone)]
pub(super) struct Panel {
    /// File name without extension.
    pub file: &'static str,
    /// False for training and validation loss, which share a panel in the overview.
    pub in_overview: bool,
    title: &'static str,
    unit: &'static str,
    curves: Vec<Curve>,
    references: Vec<Reference>,
    log: bool,
    from_zero: bool,
}

/// Most points per curve: more would look the same and make the SVG large.
const MOST_POINTS: usize = 4000;

/// Loss of GPT-2 124M on FineWeb's validation tokens, as in llm.c's plots.
const GPT2_LOSS: Reference = Reference { name: "GPT-2 124M, FineWeb: 3.2924", value: 3.2924 };
const GPT2_HELLASWAG: Reference = Reference { name: "GPT-2 124M: 0.2945", value: 0.2945 };
const GPT3_HELLASWAG: Reference = Reference { name: "GPT-3 124M: 0.337", value: 0.337 };

/// Metrics with the values that GPT-2 and GPT-3 reach: the metric, a name, the value.
pub fn baselines() -> [(&'static str, &'static str, f64); 3] {
    let baselines = [
        ("val_loss", GPT2_LOSS),
        ("hellaswag_acc_norm", GPT2_HELLASWAG),
        ("hellaswag_acc_norm", GPT3_HELLASWAG),
    ];
    baselines.map(|(metric, Reference { name, value })| (metric, name, value))
}

impl Panel {
    fn new(file: &'static str, title: &'static str, unit: &'static str, curves: Vec<Curve>) -> Self {
        let references = Vec::new();
        Self { file, in_overview: true, title, unit, curves, references, log: false, from_zero: false }
    }

    /// Returns the panel of the overview with both training and validation loss.
    pub fn loss(m: &Metrics) -> Self {
        let curves =
            [raw_and_smooth("training loss", &m.loss, BLUE), vec![marked("validation loss", &m.val_loss)]];
        let curves = curves.concat();
        let panel = Self::new("loss", "Loss", "cross-entropy (nats per token)", curves);
        Self { log: true, references: vec![GPT2_LOSS], ..panel }
    }

    /// Returns the panels that have a file of their own, except those without points.
    pub fn singles(m: &Metrics) -> Vec<Self> {
        let nats = "cross-entropy (nats per token)";
        let training = raw_and_smooth("training loss", &m.loss, BLUE);
        let lr = vec![plain("learning rate", &m.lr, GREEN)];
        let speed = raw_and_smooth("tokens per second", &m.tok_per_s, PURPLE);
        let norm = raw_and_smooth("gradient norm", &m.norm, GREEN);
        let accuracy = vec![marked("accuracy, normalized", &m.hellaswag)];
        let panels = [
            Self {
                log: true,
                in_overview: false,
                references: vec![GPT2_LOSS],
                ..Self::new("training_loss", "Training loss", nats, training)
            },
            Self {
                log: true,
                in_overview: false,
                references: vec![GPT2_LOSS],
                ..Self::new(
                    "validation_loss",
                    "Validation loss",
                    nats,
                    vec![marked("validation loss", &m.val_loss)],
                )
            },
            Self { from_zero: true, ..Self::new("learning_rate", "Learning rate", "learning rate", lr) },
            Self { from_zero: true, ..Self::new("throughput", "Throughput", "tokens per second", speed) },
            Self {
                log: true,
                ..Self::new("gradient_norm", "Gradient norm", "L2 norm, before clipping", norm)
            },
            Self {
                references: vec![GPT2_HELLASWAG, GPT3_HELLASWAG],
                ..Self::new(
                    "hellaswag_accuracy",
                    "HellaSwag",
                    "fraction of examples answered correctly",
                    accuracy,
                )
            },
        ];
        panels.into_iter().filter(|p| p.curves.iter().any(|c| !c.points.is_empty())).collect()
    }

    pub fn draw(&self, scene: &mut Scene, rect: Rect) {
        let inner = Rect {
            x: rect.x + 78.0,
            y: rect.y + 62.0,
            width: rect.width - 156.0,
            height: rect.height - 120.0,
        };
        let points = || self.curves.iter().flat_map(|c| &c.points);
        let x_axis = Axis::steps(points().map(|p| p.0), (inner.width / 90.0) as usize);
        let log = if self.log { Axis::log(points().map(|p| p.1)) } else { None };
        let y_axis = log.unwrap_or_else(|| Axis::linear(points().map(|p| p.1), self.from_zero, 6));
        let to = |(step, value): (f64, f64)| {
            (inner.x + x_axis.place(step) * inner.width, inner.y + (1.0 - y_axis.place(value)) * inner.height)
        };
        self.frame(scene, rect, inner, &x_axis, &y_axis);
        let places: Vec<_> = points().copied().map(to).collect();
        for reference in self.references.iter().filter(|r| y_axis.contains(r.value)) {
            reference.draw(scene, inner, to((0.0, reference.value)).1, &places);
        }
        for curve in self.curves.iter().filter(|c| !c.points.is_empty()) {
            let places: Vec<_> = curve.points.iter().copied().map(to).collect();
            if curve.dots || places.len() == 1 {
                places.iter().for_each(|place| scene.dot(*place, 3.0, curve.color));
            }
            scene.line(places, curve.width, curve.color);
        }
        self.legend(scene, inner);
        self.final_values(scene, inner, &to);
    }

    /// Draws title, grid, ticks and labels of the axes.
    fn frame(&self, scene: &mut Scene, rect: Rect, inner: Rect, x_axis: &Axis, y_axis: &Axis) {
        let (right, bottom) = (inner.x + inner.width, inner.y + inner.height);
        scene.title(rect.x + 24.0, rect.y + 30.0, 17.0, self.title);
        for &tick in &y_axis.ticks {
            let y = inner.y + (1.0 - y_axis.place(tick)) * inner.height;
            scene.line(vec![(inner.x, y), (right, y)], 1.0, GRID);
            scene.text(inner.x - 9.0, y + 4.5, Anchor::End, INK, &short(tick));
        }
        for &tick in &x_axis.ticks {
            let x = inner.x + x_axis.place(tick) * inner.width;
            scene.line(vec![(x, bottom), (x, bottom + 5.0)], 1.0, FAINT);
            scene.text(x, bottom + 20.0, Anchor::Middle, INK, &short(tick));
        }
        scene.line(vec![(inner.x, bottom), (right, bottom)], 1.2, FAINT);
        scene.text(inner.x + inner.width / 2.0, bottom + 42.0, Anchor::Middle, FAINT, "step");
        let scale = if y_axis.log { ", log scale" } else { "" };
        scene.upright(rect.x + 24.0, inner.y + inner.height / 2.0, &format!("{}{scale}", self.unit));
    }

    /// Draws the legend in a row above the curves.
    fn legend(&self, scene: &mut Scene, inner: Rect) {
        let mut x = inner.x;
        let y = inner.y - 14.0;
        for curve in self.curves.iter().filter(|c| !c.points.is_empty()) {
            scene.line(vec![(x, y - 4.5), (x + 22.0, y - 4.5)], curve.width.max(2.0), curve.color);
            if curve.dots {
                scene.dot((x + 11.0, y - 4.5), 3.0, curve.color);
            }
            scene.text(x + 28.0, y, Anchor::Start, INK, curve.name);
            x += 28.0 + 6.2 * curve.name.len() as f64 + 20.0;
        }
    }

    /// Writes the last values into the right margin, moved apart where they would overlap.
    fn final_values(&self, scene: &mut Scene, inner: Rect, to: &dyn Fn((f64, f64)) -> (f64, f64)) {
        let shown = self.curves.iter().filter(|c| c.final_value);
        let mut labels: Vec<_> =
            shown.filter_map(|c| c.points.last().map(|p| (to(*p), p.1, c.color))).collect();
        labels.sort_by(|a, b| a.0.1.total_cmp(&b.0.1));
        let mut free = f64::NEG_INFINITY;
        for ((x, y), value, color) in labels {
            scene.dot((x, y), 3.6, color);
            let base_line = (y + 4.5).max(free);
            let text =
                if value.abs() < 1e-2 || value.abs() >= 100.0 { short(value) } else { format!("{value:.4}") };
            scene.text(inner.x + inner.width + 9.0, base_line, Anchor::Start, color, &text);
            free = base_line + 16.0;
        }
    }
}

/// Returns the measured points, pale, and a running average over a fiftieth of them.
fn raw_and_smooth(name: &'static str, points: &Series, color: Color) -> Vec<Curve> {
    if points.len() < 20 {
        return vec![plain(name, points, color)];
    }
    let pale = plain(name, &thin(points, MOST_POINTS), color.with_opacity(0.3));
    let raw = Curve { width: 1.0, final_value: false, ..pale };
    let smoothed = smooth(points, points.len() as f64 / 50.0);
    vec![raw, Curve { name: "smoothed", ..plain(name, &thin(&smoothed, MOST_POINTS), color) }]
}

fn plain(name: &'static str, points: &Series, color: Color) -> Curve {
    Curve { name, points: points.clone(), color, width: 2.0, dots: false, final_value: true }
}

fn marked(name: &'static str, points: &Series) -> Curve {
    Curve { dots: points.len() <= 60, ..plain(name, points, ORANGE) }
}
