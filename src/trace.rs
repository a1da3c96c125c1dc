//! A device that times the operations of a step, for a trace of it.
//!
//! [`Tracer`] observes another device. Between [`Tracer::begin`] and [`Tracer::end`]
//! it also queues a time stamp before and after each operation and copy, so that the times are the
//! device's own and the host waits no more than without it.

mod describe;
mod names;

pub use describe::{Description, describe};
pub use names::Names;

use crate::ops::{Call, Observed, Observer, Ops};
use crate::parallel::{Operation, Work, WorkTime};
use crate::report::chrome::{Bar, Row};
use crate::tensor::{MemoryPlan, Tensor};
use anyhow::Result;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// One thing that a device was asked for.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    Call(Box<Call>),
    Copy { dst: Tensor, src: Tensor },
    Upload { dst: Tensor },
    Download { src: Tensor },
}

/// The operations of a step on a device, and their times.
#[derive(Debug)]
pub struct StepTrace {
    begin: Instant,
    length: Duration,
    /// Each with its start and end, since `begin`.
    ops: Vec<(Op, Duration, Duration)>,
}

#[derive(Default)]
struct State {
    memory: MemoryPlan,
    /// The time at which the step began and its operations so far, while a step is traced.
    step: Option<(Instant, Vec<Op>)>,
}

/// Starts and ends the trace of its [`Traced`] device.
#[derive(Clone, Default)]
pub struct Tracer(Rc<RefCell<State>>);

impl Tracer {
    /// Returns a device that this traces.
    pub fn device(&self, inner: Box<dyn Ops>) -> Traced {
        Observed::new(inner, self.clone())
    }

    /// Waits for all queued work, and times operations from then on. `dev` is the traced device.
    pub fn begin(&self, dev: &mut dyn Ops) -> Result<()> {
        dev.synchronize()?;
        dev.stamp()?;
        self.0.borrow_mut().step = Some((Instant::now(), Vec::new()));
        Ok(())
    }

    /// Waits for all queued work, and times no more. `dev` is the traced device.
    ///
    /// # Panics
    /// If nothing was begun.
    pub fn end(&self, dev: &mut dyn Ops) -> Result<StepTrace> {
        let (begin, ops) = self.0.borrow_mut().step.take().expect("a step was begun");
        dev.stamp()?;
        let stamps = dev.take_stamps()?;
        let [_, around @ .., length] = &stamps[..] else { unreachable!("two stamps or more") };
        let timed = |(op, around): (Op, &[Duration])| (op, around[0], around[1]);
        Ok(StepTrace {
            begin,
            length: *length,
            ops: ops.into_iter().zip(around.chunks(2)).map(timed).collect(),
        })
    }

    /// The memory that was allocated on the device.
    pub fn memory(&self) -> MemoryPlan {
        self.0.borrow().memory.clone()
    }
}

impl StepTrace {
    /// The step as a timeline: its operations and copies, and the `work` of the communicator in it.
    pub fn bars(&self, name: String, names: &Names, work: Vec<WorkTime>) -> Vec<Bar> {
        let step = Bar { row: Row::Step, name, start: Duration::ZERO, end: self.length, args: Map::new() };
        let op = |(op, start, end): &(Op, Duration, Duration)| {
            let (row, name, args) = names.show(op);
            Bar { row, name, start: *start, end: *end, args }
        };
        let work = work.into_iter().map(|work| self.work(&work));
        [step].into_iter().chain(self.ops.iter().map(op)).chain(work).collect()
    }

    fn work(&self, work: &WorkTime) -> Bar {
        // The clocks of a GPU and of the host are some microseconds apart.
        let at = |time: Instant| time.saturating_duration_since(self.begin).min(self.length);
        let (row, name, args) = show_work(work.work, &work.operations);
        Bar { row, name, start: at(work.start), end: at(work.end), args }
    }
}

/// Returns the row, the name and the arguments with which collectives that start together are
/// shown.
pub fn show_work(work: Work, operations: &[Operation]) -> (Row, String, Map<String, Value>) {
    let name = operations.first().map_or_else(String::new, |first| first.collective.to_string());
    let lens: Vec<String> =
        operations.iter().map(|o| format!("{} {}", o.buffer.len, o.buffer.dtype)).collect();
    let bytes: usize = operations.iter().map(|o| o.buffer.size_bytes()).sum();
    let args = [("elements", json!(lens.join(", "))), ("bytes", json!(bytes)), ("work", json!(work.0))];
    (Row::Communication, name, args.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

/// A device that times its operations while its [`Tracer`] asks for it.
pub type Traced = Observed<Tracer>;

impl Tracer {
    fn run(
        &self,
        inner: &mut dyn Ops,
        op: impl FnOnce() -> Op,
        run: impl FnOnce(&mut dyn Ops) -> Result<()>,
    ) -> Result<()> {
        if self.0.borrow().step.is_none() {
            return run(inner);
        }
        inner.stamp()?;
        run(inner)?;
        inner.stamp()?;
        if let Some((_, ops)) = &mut self.0.borrow_mut().step {
            ops.push(op());
        }
        Ok(())
    }
}

impl Observer for Tracer {
    fn allocated(&self, plan: &MemoryPlan) {
        self.0.borrow_mut().memory = plan.clone();
    }

    fn is_watching(&self) -> bool {
        self.0.borrow().step.is_some()
    }

    fn call(&self, inner: &mut dyn Ops, call: &Call) -> Result<()> {
        self.run(inner, || Op::Call(Box::new(call.clone())), |inner| call.apply(inner))
    }

    fn upload(&self, inner: &mut dyn Ops, dst: Tensor, src: &[u8]) -> Result<()> {
        self.run(inner, || Op::Upload { dst }, |inner| inner.upload(dst, src))
    }

    fn download(&self, inner: &mut dyn Ops, dst: &mut [u8], src: Tensor) -> Result<()> {
        self.run(inner, || Op::Download { src }, |inner| inner.download(dst, src))
    }

    fn copy(&self, inner: &mut dyn Ops, dst: Tensor, src: Tensor) -> Result<()> {
        self.run(inner, || Op::Copy { dst, src }, |inner| inner.copy(dst, src))
    }
}
