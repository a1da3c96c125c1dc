//! The observer of a device.

use super::Op;
use super::names::Names;
use super::step::{SpanOfOps, StepTrace};
use crate::nvtx::Tool;
use crate::ops::{Call, Observed, Observer, Ops, Span};
use crate::tensor::Tensor;
use anyhow::Result;
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

/// A span of the host's time.
#[derive(Clone, Copy, Debug)]
pub struct HostTime {
    pub span: Span,
    pub start: Instant,
    pub end: Instant,
}

/// The steps that are traced, one after the other.
#[derive(Default)]
struct Profile {
    /// The spans that have not ended: their time, and their place in the step's list.
    open: Vec<(Span, Instant, Option<usize>)>,
    host: Vec<HostTime>,
    step: Option<Recording>,
}

/// A step that is being traced.
struct Recording {
    begin: Instant,
    /// Each with its layer, if it is part of one.
    ops: Vec<(Op, Option<usize>)>,
    spans: Vec<SpanOfOps>,
}

#[derive(Default)]
struct State {
    names: Option<Names>,
    /// The tool that is told of ranges.
    tool: Option<Tool>,
    /// Whether operations are queued one by one, so that the tool sees all of them.
    one_by_one: bool,
    profile: Option<Profile>,
}

/// Names and times the operations of its [`Traced`] device.
#[derive(Clone, Default)]
pub struct Tracer(Rc<RefCell<State>>);

/// A device whose [`Tracer`] looks at what it is asked for.
pub type Traced = Observed<Tracer>;

impl Tracer {
    /// Returns a tracer that also tells `tool` of all spans, and of operations that it sees: all if
    /// they are queued `one_by_one`, otherwise those outside of graphs and in traced steps.
    pub fn new(tool: Option<Tool>, one_by_one: bool) -> Self {
        let one_by_one = one_by_one && tool.is_some();
        Tracer(Rc::new(RefCell::new(State { tool, one_by_one, ..State::default() })))
    }

    /// Returns a device that this observes.
    pub fn device(&self, inner: Box<dyn Ops>) -> Traced {
        Observed::new(inner, self.clone())
    }

    /// Sets the names of the device's tensors, once they are planned.
    pub fn set_names(&self, names: Names) {
        self.0.borrow_mut().names = Some(names);
    }

    /// Waits for all queued work, and times operations from then on. `dev` is the observed device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn begin_step(&self, dev: &mut dyn Ops) -> Result<()> {
        dev.synchronize()?;
        // A step that was not ended, because the run went back to a checkpoint, has left some.
        dev.take_stamps()?;
        dev.stamp()?;
        let begin = Instant::now();
        let recording = Recording { begin, ops: Vec::new(), spans: Vec::new() };
        self.0.borrow_mut().profile.get_or_insert_default().step = Some(recording);
        Ok(())
    }

    /// Waits for all queued work, and times no more. `dev` is the observed device.
    ///
    /// # Panics
    /// If no step was begun, or no names were set.
    pub fn end_step(&self, dev: &mut dyn Ops) -> Result<StepTrace> {
        let profile = &mut self.0.borrow_mut().profile;
        let step = profile.as_mut().and_then(|profile| profile.step.take());
        let Recording { begin, ops, spans } = step.expect("a step was begun");
        dev.stamp()?;
        Ok(StepTrace::new(begin, ops, spans, &dev.take_stamps()?))
    }

    /// Ends the profile, and returns the spans of the host since its first step.
    pub fn end_profile(&self) -> Vec<HostTime> {
        self.0.borrow_mut().profile.take().map_or_else(Vec::new, |profile| profile.host)
    }

    /// Calls `f` with the names of tensors.
    ///
    /// # Panics
    /// If no names were set.
    pub fn with_names<T>(&self, f: impl FnOnce(&Names) -> T) -> T {
        f(self.0.borrow().names.as_ref().expect("the tensors of the device are planned"))
    }

    fn run(
        &self,
        inner: &mut dyn Ops,
        op: impl FnOnce() -> Op,
        run: impl FnOnce(&mut dyn Ops) -> Result<()>,
    ) -> Result<()> {
        if !self.0.borrow().looks_at_operations() {
            return run(inner);
        }
        let timed = self.0.borrow_mut().begin_op(op());
        let ran = (|| {
            if timed {
                inner.stamp()?;
            }
            run(inner)?;
            if timed { inner.stamp() } else { Ok(()) }
        })();
        self.0.borrow().pop();
        ran
    }
}

impl State {
    fn looks_at_operations(&self) -> bool {
        self.tool.is_some() || self.is_timing()
    }

    fn is_timing(&self) -> bool {
        self.profile.as_ref().is_some_and(|profile| profile.step.is_some())
    }

    /// Takes note of an operation, and returns whether it is timed.
    fn begin_op(&mut self, op: Op) -> bool {
        if let Some(tool) = &self.tool {
            tool.push(&self.names.as_ref().map_or_else(|| op.verb().to_owned(), |names| names.name(&op)));
        }
        let Some(Profile { open, step: Some(step), .. }) = &mut self.profile else { return false };
        let layer = open.iter().rev().find_map(|(span, ..)| match span {
            Span::Layer(layer) => Some(*layer),
            _ => None,
        });
        step.ops.push((op, layer));
        true
    }

    fn pop(&self) {
        if let Some(tool) = &self.tool {
            tool.pop();
        }
    }

    fn enter(&mut self, span: Span) {
        if let Some(tool) = &self.tool {
            tool.push(&span.to_string());
        }
        let Some(Profile { open, step, .. }) = &mut self.profile else { return };
        let place = step.as_mut().map(|Recording { ops, spans, .. }| {
            spans.push(SpanOfOps { span, ops: ops.len()..ops.len() });
            spans.len() - 1
        });
        open.push((span, Instant::now(), place));
    }

    fn leave(&mut self) {
        self.pop();
        let Some(Profile { open, host, step }) = &mut self.profile else { return };
        let Some((span, start, place)) = open.pop() else { return };
        if span.is_of_host() {
            host.push(HostTime { span, start, end: Instant::now() });
        }
        if let (Some(Recording { ops, spans, .. }), Some(place)) = (step, place) {
            spans[place].ops.end = ops.len();
        }
    }
}

impl Observer for Tracer {
    fn library(&self) -> Option<(&'static str, String)> {
        self.0.borrow().tool.as_ref().map(|tool| ("NVTX", tool.library().display().to_string()))
    }

    fn is_watching(&self) -> bool {
        let state = self.0.borrow();
        state.one_by_one || state.is_timing()
    }

    fn enter(&self, inner: &mut dyn Ops, span: Span) {
        self.0.borrow_mut().enter(span);
        inner.enter(span);
    }

    fn leave(&self, inner: &mut dyn Ops) {
        inner.leave();
        self.0.borrow_mut().leave();
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
