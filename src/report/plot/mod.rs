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
mod panels;
mod png;
mod read;
mod scene;
mod svg;

use crate::files;
use anyhow::{Result, ensure};
use panel::{Panel, Rect, precise};
pub use panels::baselines;
use read::Metrics;
use scene::{Anchor, Color, INK, RUNS, Scene};
use std::fs;
use std::path::{Path, PathBuf};

/// Size of a panel in SVG units. A PNG has [`png::SCALE`] pixels per unit.
const PANEL_WIDTH: f64 = 640.0;
const PANEL_HEIGHT: f64 = 400.0;
/// Height of the header above all panels.
const HEADER: f64 = 56.0;
/// Height of a line of the legend in it.
const LEGEND: f64 = 22.0;

/// Draws all panels of `dir/metrics.jsonl`, as a PNG.
///
/// # Errors
/// If the metrics are missing or have no points.
pub fn overview_png(dir: &Path) -> Result<Vec<u8>> {
    let metrics = read::read(&dir.join("metrics.jsonl"))?;
    png::paint(&overview(dir, &metrics, &panels::singles(&metrics)))
}

/// Draws `dir/metrics.jsonl` into `dir`: `plot` with all panels, and one file per panel that has
/// points (`training_loss`, `validation_loss`, `learning_rate`, `throughput`, `gradient_norm`,
/// `hellaswag_accuracy` and those of other tasks), each as `.svg` and `.png`. Returns the paths
/// written.
///
/// # Errors
/// If the metrics are missing or have no points, or a file cannot be written.
pub fn plot_run(dir: &Path) -> Result<Vec<PathBuf>> {
    let metrics = read::read(&dir.join("metrics.jsonl"))?;
    let singles = panels::singles(&metrics);
    let mut written = Vec::new();
    write(&dir.join("plot"), &overview(dir, &metrics, &singles), &mut written)?;
    for panel in &singles {
        let mut scene = Scene::new(PANEL_WIDTH, PANEL_HEIGHT);
        panel.draw(&mut scene, Rect { x: 0.0, y: 0.0, width: PANEL_WIDTH, height: PANEL_HEIGHT });
        write(&dir.join(&panel.file), &scene, &mut written)?;
    }
    Ok(written)
}

/// Draws several runs into one picture, `to` with the extensions `.svg` and `.png`: one curve for
/// each run in every panel. Returns the paths written.
///
/// # Errors
/// If there are more runs than colors, the metrics of one are missing or have no points, or a file
/// cannot be written.
pub fn compare_runs(dirs: &[PathBuf], to: &Path) -> Result<Vec<PathBuf>> {
    let (found, most) = (dirs.len(), RUNS.len());
    ensure!(found <= most, "plot: expected at most {most} runs in one picture, found {found}");
    let runs = dirs.iter().map(|dir| read::read(&dir.join("metrics.jsonl"))).collect::<Result<Vec<_>>>()?;
    let colored: Vec<_> = RUNS.into_iter().zip(&runs).collect();
    let panels = panels::comparison(&colored);
    let mut scene = grid(&panels, HEADER + LEGEND * dirs.len() as f64);
    let files: Vec<_> = dirs.iter().map(|dir| name_of(dir)).collect();
    let unique = files.iter().all(|name| files.iter().filter(|other| *other == name).count() == 1);
    scene.title(24.0, 36.0, 20.0, "Comparison");
    for (i, ((color, metrics), dir)) in colored.iter().zip(dirs).enumerate() {
        let name = if unique { files[i].clone() } else { dir.display().to_string() };
        legend(
            &mut scene,
            HEADER + LEGEND * (i as f64 + 0.4),
            *color,
            &format!("{name}{}", best_of(metrics)),
        );
    }
    let mut written = Vec::new();
    write(to, &scene, &mut written)?;
    Ok(written)
}

/// The name of a directory.
fn name_of(dir: &Path) -> String {
    let name = fs::canonicalize(dir).ok().and_then(|d| Some(d.file_name()?.to_string_lossy().into_owned()));
    name.unwrap_or_else(|| "run".into())
}

/// The lowest loss of a run, on validation text if it has any.
fn best_of(metrics: &Metrics) -> String {
    let (what, series) = match metrics.val_loss.is_empty() {
        true => ("training", &metrics.loss),
        false => ("validation", &metrics.val_loss),
    };
    let lowest = series.iter().min_by(|a, b| a.1.total_cmp(&b.1));
    lowest.map_or_else(String::new, |(step, loss)| {
        format!(":  lowest {what} loss {} at step {step}  |  {}", precise(*loss), metrics.summary())
    })
}

fn legend(scene: &mut Scene, y: f64, color: Color, text: &str) {
    scene.line(vec![(24.0, y - 4.5), (46.0, y - 4.5)], 2.0, color);
    scene.text(54.0, y, Anchor::Start, INK, text);
}

/// Lays out the panels of a run.
fn overview(dir: &Path, metrics: &Metrics, singles: &[Panel]) -> Scene {
    let mut panels = vec![panels::loss(metrics)];
    panels.extend(singles.iter().filter(|p| p.in_overview).cloned());
    let mut scene = grid(&panels, HEADER);
    scene.title(24.0, 36.0, 20.0, &name_of(dir));
    scene.note(scene.width - 24.0, 36.0, &metrics.summary());
    scene
}

/// Lays out panels below a header, two per row. If their number is odd, the first fills its row.
fn grid(panels: &[Panel], header: f64) -> Scene {
    let columns = panels.len().min(2);
    let rows = panels.len().div_ceil(2);
    let mut scene = Scene::new(PANEL_WIDTH * columns as f64, header + PANEL_HEIGHT * rows as f64);
    let wide_first = panels.len() % 2 == 1;
    for (i, panel) in panels.iter().enumerate() {
        let cell = if wide_first && i > 0 { i + 1 } else { i };
        let columns_wide = if wide_first && i == 0 { columns } else { 1 };
        let rect = Rect {
            x: PANEL_WIDTH * (cell % 2) as f64,
            y: header + PANEL_HEIGHT * (cell / 2) as f64,
            width: PANEL_WIDTH * columns_wide as f64,
            height: PANEL_HEIGHT,
        };
        panel.draw(&mut scene, rect);
    }
    scene
}

fn write(to: &Path, scene: &Scene, written: &mut Vec<PathBuf>) -> Result<()> {
    for (extension, bytes) in [("svg", svg::write(scene).into_bytes()), ("png", png::paint(scene)?)] {
        let path = to.with_extension(extension);
        files::write(&path, |out| Ok(out.write_all(&bytes)?))?;
        written.push(path);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
