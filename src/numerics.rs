//! The search for the first number that is not finite: a device that, while it is watched, reads
//! back every tensor that an operation wrote.

use crate::ops::{Access, Call, Observed, Observer, Ops, download_f32};
use crate::tensor::{Dtype, Tensor};
use anyhow::Result;
use std::cell::RefCell;
use std::rc::Rc;

/// Elements that are read back at a time.
const CHUNK: usize = 1 << 20;

/// Elements that hold nothing: those after the first `used` of every `width` elements of `tensor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    pub tensor: Tensor,
    pub width: usize,
    pub used: usize,
}

impl Padding {
    /// Whether it covers element `index` of `tensor`.
    fn covers(&self, tensor: Tensor, index: usize) -> bool {
        let at = tensor.offset + index * tensor.dtype.size();
        let same = (tensor.arena, tensor.dtype) == (self.tensor.arena, self.tensor.dtype);
        let element = at.checked_sub(self.tensor.offset).map(|bytes| bytes / self.tensor.dtype.size());
        same && element.is_some_and(|e| e < self.tensor.len && e % self.width >= self.used)
    }
}

/// The part of a step that an operation belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Forward,
    Backward,
    /// The norm of the gradient, and the update.
    Update,
}

/// The first number that is not finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The operation that wrote it.
    pub call: Call,
    pub tensor: Tensor,
    /// The place of the number in the tensor.
    pub index: usize,
    pub value: f32,
    /// A tensor that the operation read and that was not finite already: of all that was read, it
    /// alone was not written by an operation since the start of the watch.
    pub source: Option<Tensor>,
    pub phase: Phase,
    /// The micro-step, from 1.
    pub micro_step: usize,
}

#[derive(Default)]
struct State {
    on: bool,
    padding: Vec<Padding>,
    phase: Phase,
    micro_step: usize,
    finding: Option<Finding>,
}

/// Starts and ends the watch over its device.
#[derive(Clone, Default)]
pub struct Watch(Rc<RefCell<State>>);

impl Watch {
    /// Returns a device that this watches.
    pub fn device(&self, inner: Box<dyn Ops>) -> Observed<Watch> {
        Observed::new(inner, self.clone())
    }

    /// Checks operations from now on, except for `padding`.
    pub fn begin(&self, padding: Vec<Padding>) {
        *self.0.borrow_mut() = State { on: true, padding, ..State::default() };
    }

    /// Returns what was found since the watch began, or since the last call.
    pub fn take(&self) -> Option<Finding> {
        self.0.borrow_mut().finding.take()
    }

    /// Checks no more.
    pub fn end(&self) {
        self.0.borrow_mut().on = false;
    }
}

impl State {
    /// Takes note of the place of `call` in its step.
    fn follow(&mut self, call: &Call) {
        match call {
            Call::EncoderForward { .. } => {
                self.phase = Phase::Forward;
                self.micro_step += 1;
            }
            Call::Classifier(args) if args.dloss.is_some() => self.phase = Phase::Backward,
            Call::NormSquared { .. } | Call::AdamW(_) | Call::MuonMomentum(_) => self.phase = Phase::Update,
            _ => {}
        }
    }

    fn check(&mut self, inner: &mut dyn Ops, call: &Call) -> Result<()> {
        let tensors = call.tensors();
        let of = |reads: bool| tensors.iter().filter(move |(_, a)| (*a == Access::Read) == reads);
        for &(tensor, _) in of(false) {
            if let Some((index, value)) = self.first_not_finite(inner, tensor)? {
                let mut source = None;
                for &(read, _) in of(true) {
                    if source.is_none() && self.first_not_finite(inner, read)?.is_some() {
                        source = Some(read);
                    }
                }
                let (call, phase, micro_step) = (call.clone(), self.phase, self.micro_step);
                self.finding = Some(Finding { call, tensor, index, value, source, phase, micro_step });
                return Ok(());
            }
        }
        Ok(())
    }

    /// The first number of a tensor that is not finite, and its index.
    fn first_not_finite(&self, inner: &mut dyn Ops, tensor: Tensor) -> Result<Option<(usize, f32)>> {
        if tensor.dtype == Dtype::I32 {
            return Ok(None);
        }
        let mut values = vec![0.0; CHUNK.min(tensor.len)];
        for start in (0..tensor.len).step_by(CHUNK) {
            let values = &mut values[..CHUNK.min(tensor.len - start)];
            download_f32(inner, values, tensor.slice(start, values.len()))?;
            let padded = |index| self.padding.iter().any(|padding| padding.covers(tensor, index));
            let found = (start..).zip(values.iter()).find(|&(index, v)| !v.is_finite() && !padded(index));
            if let Some((index, &value)) = found {
                return Ok(Some((index, value)));
            }
        }
        Ok(None)
    }
}

impl Observer for Watch {
    fn is_watching(&self) -> bool {
        self.0.borrow().on
    }

    fn call(&self, inner: &mut dyn Ops, call: &Call) -> Result<()> {
        call.apply(inner)?;
        let state = &mut *self.0.borrow_mut();
        if !state.on {
            return Ok(());
        }
        state.follow(call);
        if state.finding.is_none() { state.check(inner, call) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::device::cpu::matmul::Precision;
    use crate::ops::{Device, upload_f32};
    use crate::tensor::MemoryPlan;

    /// A watched CPU, and two tensors of 6 elements on it.
    fn watched() -> (Watch, Observed<Watch>, [Tensor; 2]) {
        let mut plan = MemoryPlan::new();
        let tensors = ["a", "b"].map(|name| plan.add("arena", name, Dtype::F32, 6));
        let watch = Watch::default();
        let mut dev = watch.device(Box::new(Cpu::new(Precision::F32).unwrap()));
        dev.allocate(&plan).unwrap();
        (watch, dev, tensors)
    }

    #[test]
    fn the_first_number_is_found_and_its_source() {
        let (watch, mut dev, [a, b]) = watched();
        upload_f32(&mut dev, b, &[0.0, 1.0, f32::INFINITY, f32::NAN, 0.0, 0.0]).unwrap();
        dev.add(a, b).unwrap();
        assert_eq!(watch.take(), None, "before the watch begins");
        dev.fill(a, 1.0).unwrap();
        watch.begin(Vec::new());
        dev.fill(a, 2.0).unwrap();
        dev.add(a, b).unwrap();
        dev.fill(a, f32::NAN).unwrap();
        let found = watch.take().unwrap();
        assert_eq!((found.tensor, found.index, found.value), (a, 2, f32::INFINITY));
        assert_eq!((found.call, found.source), (Call::Add { dst: a, src: b }, Some(b)));
        watch.end();
        dev.fill(a, f32::NAN).unwrap();
        assert_eq!(watch.take(), None);
    }

    #[test]
    fn padding_is_not_looked_at() {
        let (watch, mut dev, [a, _]) = watched();
        // Rows of three elements, of which two count.
        let found = |dev: &mut Observed<Watch>, at: usize| {
            watch.begin(vec![Padding { tensor: a, width: 3, used: 2 }]);
            dev.fill(a, 0.0).unwrap();
            dev.fill(a.slice(at, 1), f32::NAN).unwrap();
            watch.take().is_some()
        };
        assert_eq!([0, 1, 2, 3, 4, 5].map(|at| found(&mut dev, at)), [true, true, false, true, true, false]);
    }
}
