//! `--trace`: the predicted step as a timeline, in the format of the trainers' own.

use super::Plan;
use super::timeline::Played;
use crate::recorder::Event;
use crate::report::chrome::{self, Bar, Row};
use crate::roofline::record::Records;
use crate::trace::{Names, Op, add_rates, show_work};
use anyhow::{Context, Result};
use serde_json::Map;
use std::io::Write;
use std::time::Duration;

impl Plan<'_> {
    /// Writes the step of rank 0 in the first row that has times. It is the second step of two, as
    /// in a trace of a trainer. `records` are those of the plan.
    ///
    /// # Errors
    /// If no row has times, and those of `out`.
    pub fn write_trace(&self, records: &Records, out: &mut dyn Write) -> Result<()> {
        let timed = self.rows.iter().find_map(|row| Some((row, row.outcome.as_ref().ok()?)));
        let (row, outcome) = timed
            .context("expected a row with times, found none; change -b, -d or --gpus as the table says")?;
        let (question, gpus) = (&self.question, row.gpus);
        let budget = question.budget(outcome.micro_steps, records);
        let mut recording = question.recording(row.stage, gpus, &budget.step);
        let mut played = Vec::new();
        let times = question.play(&mut recording, gpus, &budget, Some(&mut played));
        let names = recording.names();
        let step = Bar {
            row: Row::Step,
            name: "step 2".to_owned(),
            start: Duration::ZERO,
            end: duration(times.step_ms),
            args: Map::new(),
        };
        let bars: Vec<_> =
            [step].into_iter().chain(played.into_iter().map(|event| bar(event, &names))).collect();
        let gpu = question.gpu.full_name;
        let about = format!("predicted, ZeRO {}, {gpus} x {gpu}", row.stage as usize);
        chrome::write(out, 0, &about, &bars)
    }
}

fn bar(Played { event, start_ms, end_ms }: Played, names: &Names) -> Bar {
    let (row, name, mut args) = match event {
        Event::Call(call) => names.show(&Op::Call(Box::new(call))),
        Event::Copy { dst, src } => names.show(&Op::Copy { dst, src }),
        Event::Start { work, operations } => show_work(work, &operations),
        _ => unreachable!("only calls, copies and collectives take time"),
    };
    let (start, end) = (duration(start_ms), duration(end_ms));
    add_rates(&mut args, end.saturating_sub(start));
    Bar { row, name, start, end, args }
}

fn duration(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
}
