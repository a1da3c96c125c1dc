//! A timeline in the Trace Event Format, which Perfetto and `chrome://tracing` open.
//!
//! The file is one JSON object. Times are microseconds since the start of the first step. The rows
//! are the threads of one process, which is the rank.

use anyhow::Result;
use serde_json::{Map, Value, json};
use std::io::Write;
use std::time::Duration;

/// A row of the timeline. Bars of one row do not overlap, unless one contains the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Row {
    /// Steps, and in them micro-steps, passes and layers.
    Step,
    Compute,
    Communication,
    Copies,
    /// Waits for the data loader, and work between steps.
    Host,
}

impl Row {
    const ALL: [Row; 5] = [Row::Step, Row::Compute, Row::Communication, Row::Copies, Row::Host];

    pub fn name(self) -> &'static str {
        match self {
            Row::Step => "step",
            Row::Compute => "compute",
            Row::Communication => "communication",
            Row::Copies => "copies",
            Row::Host => "host",
        }
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    pub row: Row,
    pub name: String,
    /// Since the start of the first step.
    pub start: Duration,
    pub end: Duration,
    /// Shown when the bar is selected.
    pub args: Map<String, Value>,
}

/// Writes the timeline of one rank, which `process` describes. Bars are written in the order of
/// their start, and those that contain others before these.
///
/// # Errors
/// Those of `out`.
pub fn write(out: &mut dyn Write, rank: usize, process: &str, bars: &[Bar]) -> Result<()> {
    let mut bars: Vec<&Bar> = bars.iter().collect();
    // The sort is stable, and a span is listed before what it contains.
    bars.sort_by_key(|bar| (bar.start, std::cmp::Reverse(bar.end)));
    let about = |kind: &str, tid: usize, args: Value| json!({"ph": "M", "name": kind, "ts": 0, "pid": rank, "tid": tid, "args": args});
    let mut events = vec![
        about("process_name", 0, json!({"name": format!("rank {rank}")})),
        about("process_labels", 0, json!({"labels": process})),
        about("process_sort_index", 0, json!({"sort_index": rank})),
    ];
    for row in Row::ALL {
        events.push(about("thread_name", row as usize, json!({"name": row.name()})));
        events.push(about("thread_sort_index", row as usize, json!({"sort_index": row as usize})));
    }
    let us = |time: Duration| time.as_nanos() as f64 / 1e3;
    events.extend(bars.into_iter().map(|Bar { row, name, start, end, args }| {
        let (ts, dur) = (us(*start), us(end.saturating_sub(*start)));
        let (pid, tid, cat) = (rank, *row as usize, row.name());
        json!({"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "pid": pid, "tid": tid, "args": args})
    }));
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    writeln!(out, "{{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n{}\n]}}", lines.join(",\n"))?;
    Ok(())
}
