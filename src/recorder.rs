//! A device and a communicator that record the operations they are asked for instead of running
//! them.
//!
//! Real code that runs on them yields its own list of operations, copies, collectives and waits, in
//! order: [`crate::roofline`] predicts times from it. Tensors are handles and nothing is allocated,
//! so a model of any size and any number of ranks can be recorded.

use crate::ops::{Buffer, Call, CallDevice, Device, Place};
use crate::parallel::{Communicator, Operation, Work};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::sync::{Arc, Mutex};

/// One thing that a [`Recorder`] or a communicator of its [`Log`] was asked for.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "most events are calls")]
pub enum Event {
    Call(Call),
    Copy {
        dst: Tensor,
        src: Tensor,
    },
    Upload {
        dst: Tensor,
        bytes: Vec<u8>,
    },
    /// The host waits for `src`.
    Download {
        src: Tensor,
    },
    /// The host waits for all queued work.
    Synchronize,
    Lend(Tensor),
    Reclaim(Tensor),
    /// Collectives start after all work that is queued so far. Their buffers have the type and
    /// length of the tensors lent just before; addresses mean nothing.
    Start {
        work: Work,
        operations: Vec<Operation>,
    },
    /// Work that is queued from now on waits for all collectives up to and including this one.
    Wait(Work),
}

/// The events of a [`Recorder`] and of its communicator, in order. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Log(Arc<Mutex<Vec<Event>>>);

impl Log {
    /// Removes and returns all events so far.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut self.0.lock().expect("no thread panics while it records"))
    }

    fn push(&self, event: Event) {
        self.0.lock().expect("no thread panics while it records").push(event);
    }

    /// Returns a device that records here, whose floating-point type is `float_dtype`.
    pub fn device(&self, float_dtype: Dtype) -> Recorder {
        Recorder { log: self.clone(), float_dtype }
    }

    /// Returns a communicator that records here, for one rank of `world_size`. Its collectives
    /// complete at once.
    pub fn communicator(&self, rank: usize, world_size: usize) -> impl Communicator + 'static {
        Rank { log: self.clone(), rank, world_size, started: Work(0) }
    }
}

/// A device that records. Downloads yield zeros.
#[derive(Clone, Debug)]
pub struct Recorder {
    log: Log,
    float_dtype: Dtype,
}

impl CallDevice for Recorder {
    fn call(&mut self, call: Call) -> Result<()> {
        self.log.push(Event::Call(call));
        Ok(())
    }
}

impl Device for Recorder {
    fn describe(&self) -> String {
        format!("a recorder, {}", self.float_dtype)
    }

    fn float_dtype(&self) -> Dtype {
        self.float_dtype
    }

    fn allocate(&mut self, _plan: &MemoryPlan) -> Result<()> {
        Ok(())
    }

    fn upload(&mut self, dst: Tensor, src: &[u8]) -> Result<()> {
        assert_eq!(src.len(), dst.size_bytes());
        self.log.push(Event::Upload { dst, bytes: src.to_vec() });
        Ok(())
    }

    fn download(&mut self, dst: &mut [u8], src: Tensor) -> Result<()> {
        assert_eq!(dst.len(), src.size_bytes());
        dst.fill(0);
        self.log.push(Event::Download { src });
        Ok(())
    }

    fn synchronize(&mut self) -> Result<()> {
        self.log.push(Event::Synchronize);
        Ok(())
    }

    fn copy(&mut self, dst: Tensor, src: Tensor) -> Result<()> {
        self.log.push(Event::Copy { dst, src });
        Ok(())
    }

    fn lend(&mut self, tensor: Tensor) -> Buffer {
        self.log.push(Event::Lend(tensor));
        Buffer { address: tensor.offset as u64, len: tensor.len, dtype: tensor.dtype, place: Place::Host }
    }

    fn reclaim(&mut self, tensor: Tensor) {
        self.log.push(Event::Reclaim(tensor));
    }
}

struct Rank {
    log: Log,
    rank: usize,
    world_size: usize,
    /// The latest work.
    started: Work,
}

impl Communicator for Rank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn describe(&self) -> String {
        format!("{} recorded processes", self.world_size)
    }

    fn start(&mut self, operations: Vec<Operation>) -> Result<Work> {
        self.started.0 += 1;
        self.log.push(Event::Start { work: self.started, operations });
        Ok(self.started)
    }

    fn wait(&mut self, work: Work) -> Result<()> {
        self.log.push(Event::Wait(work));
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.wait(self.started)
    }
}

#[cfg(test)]
mod tests;
