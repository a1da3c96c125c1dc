//! A step that was traced.

use super::{Names, Op, PREDICTED, add_rates, show_work};
use crate::ops::Span;
use crate::parallel::WorkTime;
use crate::report::chrome::{Bar, Row};
use serde_json::{Map, json};
use std::ops::Range;
use std::time::{Duration, Instant};

/// A span, and the operations in it by their place in the step.
#[derive(Debug)]
pub(super) struct SpanOfOps {
    pub span: Span,
    pub ops: Range<usize>,
}

/// An operation, its layer if it is part of one, and its time since the start of the step.
#[derive(Debug)]
struct TimedOp {
    op: Op,
    layer: Option<usize>,
    start: Duration,
    end: Duration,
}

/// The operations of a step on a device, and their times.
#[derive(Debug)]
pub struct StepTrace {
    begin: Instant,
    length: Duration,
    ops: Vec<TimedOp>,
    spans: Vec<SpanOfOps>,
}

impl StepTrace {
    /// `stamps` are those of the start, before and after each operation that succeeded, and of the
    /// end.
    pub(super) fn new(
        begin: Instant,
        ops: Vec<(Op, Option<usize>)>,
        spans: Vec<SpanOfOps>,
        stamps: &[Duration],
    ) -> Self {
        let [_, around @ .., length] = stamps else { unreachable!("two stamps or more") };
        let timed = |((op, layer), around): ((Op, _), &[Duration])| TimedOp {
            op,
            layer,
            start: around[0],
            end: around[1],
        };
        let ops: Vec<_> = ops.into_iter().zip(around.chunks_exact(2)).map(timed).collect();
        StepTrace { begin, length: *length, ops, spans }
    }

    /// The time at which the step began.
    pub fn begin(&self) -> Instant {
        self.begin
    }

    /// The step of that number on a timeline that begins at `origin`: the step and its parts, its
    /// operations and copies, and the `work` of the communicator in it. `predict` gives the
    /// microseconds that an operation was predicted to take, if any; it sees all of them in order.
    pub fn bars(
        &self,
        number: usize,
        names: &Names,
        work: Vec<WorkTime>,
        origin: Instant,
        mut predict: impl FnMut(&Op) -> Option<f64>,
    ) -> Vec<Bar> {
        let offset = self.begin.saturating_duration_since(origin);
        let args = Map::from_iter([("step".to_owned(), json!(number))]);
        let (name, end) = (Span::Step(number).to_string(), self.length);
        let step = Bar { row: Row::Step, name, start: Duration::ZERO, end, args };
        let spans = self.spans.iter().filter_map(|span| self.span(span));
        let ops = self.ops.iter().map(|op| op.bar(names, predict(&op.op)));
        let work = work.into_iter().map(|work| self.work(&work));
        let bars = [step].into_iter().chain(spans).chain(ops).chain(work);
        bars.map(|bar| Bar { start: offset + bar.start, end: offset + bar.end, ..bar }).collect()
    }

    /// The span from the start of its first operation to the end of its last; `None` without any.
    fn span(&self, SpanOfOps { span, ops }: &SpanOfOps) -> Option<Bar> {
        let (first, last) = (self.ops.get(ops.start)?, self.ops.get(ops.end.checked_sub(1)?)?);
        let shown = !ops.is_empty() && !span.is_of_host() && !matches!(span, Span::Step(_));
        shown.then(|| Bar {
            row: Row::Step,
            name: span.to_string(),
            start: first.start,
            end: last.end,
            args: Map::new(),
        })
    }

    fn work(&self, work: &WorkTime) -> Bar {
        // The clocks of a GPU and of the host are some microseconds apart.
        let at = |time: Instant| time.saturating_duration_since(self.begin).min(self.length);
        let (row, name, mut args) = show_work(work.work, &work.operations);
        let (start, end) = (at(work.start), at(work.end));
        add_rates(&mut args, end.saturating_sub(start));
        Bar { row, name, start, end, args }
    }
}

impl TimedOp {
    fn bar(&self, names: &Names, predicted_us: Option<f64>) -> Bar {
        let TimedOp { op, layer, start, end } = self;
        let (row, name, mut args) = names.show(op);
        if let Some(layer) = layer {
            args.insert("layer".to_owned(), json!(layer));
        }
        add_rates(&mut args, end.saturating_sub(*start));
        if let Some(us) = predicted_us {
            args.insert(PREDICTED.to_owned(), json!(us));
        }
        Bar { row, name, start: *start, end: *end, args }
    }
}
