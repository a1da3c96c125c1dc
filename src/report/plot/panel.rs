//! A panel: axes, curves, reference lines, a legend, and the last value next to each curve.

use super::axis::{Axis, short};
use super::read::Series;
use super::scene::{Anchor, Color, FAINT, GRID, INK, PAPER, Scene};

/// Place of a panel, including its margins.
#[derive(Clone, Copy)]
pub(super) struct Rect {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

#[derive(Clone)]
pub(super) struct Curve {
    pub name: String,
    pub points: Series,
    pub color: Color,
    pub width: f64,
    /// Marks points with dots, so that a single one is visible.
    pub dots: bool,
    /// Writes the last value at the end of the curve.
    pub final_value: bool,
    /// The point to name, if any.
    pub best: Option<Best>,
}

/// Which point of a curve is its best.
#[derive(Clone, Copy)]
pub(super) enum Best {
    Lowest,
    Highest,
}

impl Curve {
    /// Returns the best point, the first of equals.
    pub fn best_point(&self) -> Option<(f64, f64)> {
        let better = |a: (f64, f64), b: (f64, f64)| match self.best {
            Some(Best::Highest) => b.1 > a.1,
            _ => b.1 < a.1,
        };
        self.best?;
        self.points.iter().copied().reduce(|best, point| if better(best, point) { point } else { best })
    }
}

/// A value to compare with, such as one that GPT-2 reached. The axis is wide enough for it.
#[derive(Clone)]
pub(super) struct Reference {
    pub name: String,
    pub value: f64,
}

impl Reference {
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Reference { name: name.into(), value }
    }
    /// Draws a dashed line at height `y`, labeled at the end that is farther from the curves'
    /// `places`.
    fn draw(&self, scene: &mut Scene, inner: Rect, y: f64, places: &[(f64, f64)]) {
        let (left, right) = (inner.x, inner.x + inner.width);
        scene.dashed(vec![(left, y), (right, y)], 1.2, FAINT);
        // Above the line, unless the legend is there.
        let base_line = if y < inner.y + 14.0 { y + 14.0 } else { y - 5.0 };
        let label = 7.0 * self.name.len() as f64;
        let free = |from: f64, to: f64| {
            let near = places.iter().filter(|p| (from..=to).contains(&p.0));
            near.map(|p| (p.1 - (base_line - 4.0)).abs()).fold(f64::INFINITY, f64::min)
        };
        if free(left, left + label) >= free(right - label, right) {
            scene.text(left + 6.0, base_line, Anchor::Start, FAINT, &self.name);
        } else {
            scene.text(right - 6.0, base_line, Anchor::End, FAINT, &self.name);
        }
    }
}

#[derive(Clone)]
pub(super) struct Panel {
    /// File name without extension.
    pub file: String,
    /// False for training and validation loss, which share a panel in the overview.
    pub in_overview: bool,
    pub title: String,
    pub unit: &'static str,
    pub curves: Vec<Curve>,
    pub references: Vec<Reference>,
    pub log: bool,
    pub from_zero: bool,
    /// Whether a legend names the curves.
    pub legend: bool,
}

impl Panel {
    pub fn new(
        file: impl Into<String>,
        title: impl Into<String>,
        unit: &'static str,
        curves: Vec<Curve>,
    ) -> Self {
        Self {
            file: file.into(),
            in_overview: true,
            title: title.into(),
            unit,
            curves,
            references: Vec::new(),
            log: false,
            from_zero: false,
            legend: true,
        }
    }

    pub fn has_points(&self) -> bool {
        self.curves.iter().any(|curve| !curve.points.is_empty())
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
        let values = || points().map(|p| p.1).chain(self.references.iter().map(|r| r.value));
        let log = if self.log { Axis::log(values()) } else { None };
        let y_axis = log.unwrap_or_else(|| Axis::linear(values(), self.from_zero, 6));
        let to = |(step, value): (f64, f64)| {
            (inner.x + x_axis.place(step) * inner.width, inner.y + (1.0 - y_axis.place(value)) * inner.height)
        };
        self.frame(scene, rect, inner, &x_axis, &y_axis);
        let places: Vec<_> = points().copied().map(to).collect();
        for reference in &self.references {
            reference.draw(scene, inner, to((0.0, reference.value)).1, &places);
        }
        for curve in self.curves.iter().filter(|c| !c.points.is_empty()) {
            let places: Vec<_> = curve.points.iter().copied().map(to).collect();
            if curve.dots || places.len() == 1 {
                places.iter().for_each(|place| scene.dot(*place, 3.0, curve.color));
            }
            scene.line(places, curve.width, curve.color);
            if let Some(best) = curve.best_point() {
                scene.dot(to(best), 5.0, curve.color);
                scene.dot(to(best), 2.6, PAPER);
            }
        }
        if self.legend {
            self.legend(scene, inner);
            scene.note(rect.x + rect.width - 24.0, rect.y + 30.0, &self.best());
        }
        self.final_values(scene, inner, &to);
    }

    /// Draws title, grid, ticks and labels of the axes.
    fn frame(&self, scene: &mut Scene, rect: Rect, inner: Rect, x_axis: &Axis, y_axis: &Axis) {
        let (right, bottom) = (inner.x + inner.width, inner.y + inner.height);
        scene.title(rect.x + 24.0, rect.y + 30.0, 17.0, &self.title);
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

    /// Names the best points: `lowest validation loss 3.2841 at step 1200`.
    fn best(&self) -> String {
        let mut before = "";
        let mut named = Vec::new();
        for curve in &self.curves {
            let Some((step, value)) = curve.best_point() else { continue };
            let word = if matches!(curve.best, Some(Best::Highest)) { "highest " } else { "lowest " };
            let shown = if word == before { "" } else { word };
            named.push(format!("{shown}{} {} at step {step}", curve.name, precise(value)));
            before = word;
        }
        named.join(", ")
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
            scene.text(x + 28.0, y, Anchor::Start, INK, &curve.name);
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
            scene.text(inner.x + inner.width + 9.0, base_line, Anchor::Start, color, &precise(value));
            free = base_line + 16.0;
        }
    }
}

/// Formats a value that is read off: with four decimals, where they say something.
pub(super) fn precise(value: f64) -> String {
    if value.abs() < 1e-2 || value.abs() >= 100.0 { short(value) } else { format!("{value:.4}") }
}
