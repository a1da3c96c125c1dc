//! Plots of a run: reads `metrics.jsonl` and draws loss, learning rate, throughput, gradient norm
//! and accuracy as SVG and PNG.
//!
//! Each panel is laid out once, as a list of shapes ([`scene`]), which is then written as SVG and
//! painted as PNG, so that both look the same. The font is part of the program, so a machine
//! without fonts draws the same picture.
//!
//! The `plotters` crate was tried in place of the drawing code. It places everything at whole
//! pixels, and its bitmaps fill a wide, noisy polyline as one self-intersecting polygon: the curve
//! of a long run gets holes and spikes beyond its axes.

mod axis;
mod panel;
mod png;
mod read;
mod scene;
mod svg;

use crate::files;
use anyhow::Result;
pub use panel::baselines;
use panel::{Panel, Rect};
use read::Metrics;
use scene::Scene;
use std::fs;
use std::path::{Path, PathBuf};

/// Size of a panel in SVG units. A PNG has [`png::SCALE`] pixels per unit.
const PANEL_WIDTH: f64 = 640.0;
const PANEL_HEIGHT: f64 = 400.0;
/// Height of the header above all panels.
const HEADER: f64 = 56.0;

/// Draws all panels of `dir/metrics.jsonl`, as a PNG.
///
/// # Errors
/// If the metrics are missing or have no points.
pub fn overview_png(dir: &Path) -> Result<Vec<u8>> {
    let metrics = read::read(&dir.join("metrics.jsonl"))?;
    png::paint(&overview(dir, &metrics, &Panel::singles(&metrics)))
}

/// Draws `dir/metrics.jsonl` into `dir`: `plot` with all panels, and one file per panel that has
/// points (`training_loss`, `validation_loss`, `learning_rate`, `throughput`, `gradient_norm`,
/// `hellaswag_accuracy`), each as `.svg` and `.png`. Returns the paths written.
///
/// # Errors
/// If the metrics are missing or have no points, or a file cannot be written.
pub fn plot_run(dir: &Path) -> Result<Vec<PathBuf>> {
    let metrics = read::read(&dir.join("metrics.jsonl"))?;
    let singles = Panel::singles(&metrics);
    let mut written = Vec::new();
    write(dir, "plot", &overview(dir, &metrics, &singles), &mut written)?;
    for panel in &singles {
        let mut scene = Scene::new(PANEL_WIDTH, PANEL_HEIGHT);
        panel.draw(&mut scene, Rect { x: 0.0, y: 0.0, width: PANEL_WIDTH, height: PANEL_HEIGHT });
        write(dir, panel.file, &scene, &mut written)?;
    }
    Ok(written)
}

/// Lays out the panels of a run, two per row. If their number is odd, the first fills its row.
fn overview(dir: &Path, metrics: &Metrics, singles: &[Panel]) -> Scene {
    let mut panels = vec![Panel::loss(metrics)];
    panels.extend(singles.iter().filter(|p| p.in_overview).cloned());
    let name = fs::canonicalize(dir).ok().and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
    let columns = panels.len().min(2);
    let rows = panels.len().div_ceil(2);
    let width = PANEL_WIDTH * columns as f64;
    let mut scene = Scene::new(width, HEADER + PANEL_HEIGHT * rows as f64);
    scene.title(24.0, 36.0, 20.0, name.as_deref().unwrap_or("run"));
    scene.note(width - 24.0, 36.0, &metrics.summary());
    let wide_first = panels.len() % 2 == 1;
    for (i, panel) in panels.iter().enumerate() {
        let cell = if wide_first && i > 0 { i + 1 } else { i };
        let columns_wide = if wide_first && i == 0 { columns } else { 1 };
        let rect = Rect {
            x: PANEL_WIDTH * (cell % 2) as f64,
            y: HEADER + PANEL_HEIGHT * (cell / 2) as f64,
            width: PANEL_WIDTH * columns_wide as f64,
            height: PANEL_HEIGHT,
        };
        panel.draw(&mut scene, rect);
    }
    scene
}

fn write(dir: &Path, name: &str, scene: &Scene, written: &mut Vec<PathBuf>) -> Result<()> {
    for (extension, bytes) in [("svg", svg::write(scene).into_bytes()), ("png", png::paint(scene)?)] {
        let path = dir.join(name).with_extension(extension);
        files::write(&path, |out| Ok(out.write_all(&bytes)?))?;
        written.push(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
