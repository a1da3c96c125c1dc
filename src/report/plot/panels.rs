//! The panels of a run, and those that compare runs.

use super::panel::{Best, Curve, Panel, Reference};
use super::read::{Metrics, Series, TaskMetrics, smooth, thin};
use super::scene::{BLUE, Color, GREEN, ORANGE, PURPLE};

/// Most points per curve: more would look the same and make the SVG large.
const MOST_POINTS: usize = 4000;

const NATS: &str = "cross-entropy (nats per token)";
const LEARNING_RATE: &str = "learning rate";
const SPEED: &str = "tokens per second";
const NORM: &str = "L2 norm, before clipping";
const FRACTION: &str = "fraction of examples answered correctly";

/// The accuracy of a guess at HellaSwag, for logs that do not tell it.
const HELLASWAG_CHANCE: f64 = 0.25;

/// Metrics with the values that GPT-2 and GPT-3 reach: the metric, a name, the value. The loss is
/// that on FineWeb's validation tokens, as in llm.c's plots.
pub fn baselines() -> [(&'static str, &'static str, f64); 3] {
    [
        ("val_loss", "GPT-2 124M, FineWeb: 3.2924", 3.2924),
        ("hellaswag_acc_norm", "GPT-2 124M: 0.2945", 0.2945),
        ("hellaswag_acc_norm", "GPT-3 124M: 0.337", 0.337),
    ]
}

fn references(metric: &str) -> impl Iterator<Item = Reference> {
    let of_metric = baselines().into_iter().filter(move |(known, ..)| *known == metric);
    of_metric.map(|(_, name, value)| Reference::new(name, value))
}

fn loss_references() -> Vec<Reference> {
    references("val_loss").collect()
}

/// The accuracies with which that of a task is compared.
fn task_references(task: &str, metrics: &[&TaskMetrics]) -> Vec<Reference> {
    let is_hellaswag = task == "hellaswag";
    let told = metrics.iter().find_map(|metrics| metrics.chance);
    let chance = told.or(is_hellaswag.then_some(HELLASWAG_CHANCE));
    let mut all: Vec<_> = chance
        .map(|chance| Reference::new(format!("chance: {}", super::axis::short(chance)), chance))
        .into_iter()
        .collect();
    all.extend(references(&format!("{task}_acc_norm")));
    all
}

/// Returns the panel of the overview with both training and validation loss.
pub(super) fn loss(m: &Metrics) -> Panel {
    let curves = [training(m), vec![validation(m)]].concat();
    Panel { log: true, references: loss_references(), ..Panel::new("loss", "Loss", NATS, curves) }
}

/// Returns the panels that have a file of their own, except those without points.
pub(super) fn singles(m: &Metrics) -> Vec<Panel> {
    let alone =
        |panel: Panel| Panel { log: true, in_overview: false, references: loss_references(), ..panel };
    let lr = vec![plain("learning rate", &m.lr, GREEN)];
    let speed = raw_and_smooth("tokens per second", &m.tok_per_s, PURPLE);
    let norm = raw_and_smooth("gradient norm", &m.norm, GREEN);
    let panels = [
        alone(Panel::new("training_loss", "Training loss", NATS, training(m))),
        alone(Panel::new("validation_loss", "Validation loss", NATS, vec![validation(m)])),
        Panel { from_zero: true, ..Panel::new("learning_rate", "Learning rate", LEARNING_RATE, lr) },
        Panel { from_zero: true, ..Panel::new("throughput", "Throughput", SPEED, speed) },
        Panel { log: true, ..Panel::new("gradient_norm", "Gradient norm", NORM, norm) },
    ];
    let tasks = m.tasks.iter().map(|(name, task)| accuracy(name, task));
    panels.into_iter().chain(tasks).filter(Panel::has_points).collect()
}

/// Returns the panel of a task: `acc_norm`, which is usually quoted, and `acc`.
fn accuracy(name: &str, task: &TaskMetrics) -> Panel {
    let highest = |curve: Curve| Curve { best: Some(Best::Highest), ..curve };
    let norm = highest(marked("acc_norm", &task.acc_norm, ORANGE));
    let curves = vec![norm, highest(marked("acc", &task.acc, BLUE))];
    Panel {
        references: task_references(name, &[task]),
        ..Panel::new(format!("{name}_accuracy"), title(name), FRACTION, curves)
    }
}

fn title(task: &str) -> &str {
    if task == "hellaswag" { "HellaSwag" } else { task }
}

/// Returns the panels that compare runs, one curve for each. `runs` have a color and metrics.
pub(super) fn comparison(runs: &[(Color, &Metrics)]) -> Vec<Panel> {
    type Of = fn(&Metrics) -> Series;
    let curves = |of: &dyn Fn(&Metrics) -> Series, best: Option<Best>| -> Vec<Curve> {
        let curve = |&(color, metrics): &(Color, &Metrics)| {
            let points = of(metrics);
            Curve { best, dots: points.len() <= 60 && best.is_some(), ..plain("", &points, color) }
        };
        runs.iter().map(curve).collect()
    };
    let smoothed = |series: &Series| match series.len() {
        0..20 => series.clone(),
        len => thin(&smooth(series, len as f64 / 50.0), MOST_POINTS),
    };
    let (lowest, highest) = (Some(Best::Lowest), Some(Best::Highest));
    let lr: Of = |m| thin(&m.lr, MOST_POINTS);
    let mut panels = vec![
        Panel {
            log: true,
            references: loss_references(),
            ..Panel::new("", "Validation loss", NATS, curves(&|m| m.val_loss.clone(), lowest))
        },
        Panel {
            log: true,
            references: loss_references(),
            ..Panel::new("", "Training loss, smoothed", NATS, curves(&|m| smoothed(&m.loss), None))
        },
        Panel {
            from_zero: true,
            ..Panel::new("", "Throughput, smoothed", SPEED, curves(&|m| smoothed(&m.tok_per_s), None))
        },
        Panel { from_zero: true, ..Panel::new("", "Learning rate", LEARNING_RATE, curves(&lr, None)) },
        Panel {
            log: true,
            ..Panel::new("", "Gradient norm, smoothed", NORM, curves(&|m| smoothed(&m.norm), None))
        },
    ];
    let mut tasks: Vec<&String> = runs.iter().flat_map(|(_, m)| m.tasks.keys()).collect();
    tasks.sort_unstable();
    tasks.dedup();
    for task in tasks {
        let of: Vec<_> = runs.iter().filter_map(|(_, m)| m.tasks.get(task)).collect();
        // Tasks without acc_norm are compared by acc.
        let normed = of.iter().any(|task| !task.acc_norm.is_empty());
        let series = |m: &Metrics| {
            let pick = |task: &TaskMetrics| if normed { task.acc_norm.clone() } else { task.acc.clone() };
            m.tasks.get(task).map(pick).unwrap_or_default()
        };
        let name = format!("{}, {}", title(task), if normed { "acc_norm" } else { "acc" });
        let references = task_references(task, &of);
        panels.push(Panel { references, ..Panel::new("", name, FRACTION, curves(&series, highest)) });
    }
    panels.iter_mut().for_each(|panel| panel.legend = false);
    panels.retain(Panel::has_points);
    panels
}

fn training(m: &Metrics) -> Vec<Curve> {
    let mut curves = raw_and_smooth("training loss", &m.loss, BLUE);
    curves[0].best = Some(Best::Lowest);
    curves
}

fn validation(m: &Metrics) -> Curve {
    Curve { best: Some(Best::Lowest), ..marked("validation loss", &m.val_loss, ORANGE) }
}

/// Returns the measured points, pale, and a running average over a fiftieth of them.
fn raw_and_smooth(name: &str, points: &Series, color: Color) -> Vec<Curve> {
    if points.len() < 20 {
        return vec![plain(name, points, color)];
    }
    let pale = plain(name, &thin(points, MOST_POINTS), color.with_opacity(0.3));
    let raw = Curve { width: 1.0, final_value: false, ..pale };
    let smoothed = smooth(points, points.len() as f64 / 50.0);
    vec![raw, plain("smoothed", &thin(&smoothed, MOST_POINTS), color)]
}

fn plain(name: &str, points: &Series, color: Color) -> Curve {
    Curve {
        name: name.into(),
        points: points.clone(),
        color,
        width: 2.0,
        dots: false,
        final_value: true,
        best: None,
    }
}

fn marked(name: &str, points: &Series, color: Color) -> Curve {
    Curve { dots: points.len() <= 60, ..plain(name, points, color) }
}
