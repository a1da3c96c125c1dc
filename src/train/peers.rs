//! This process among those that train together.

use crate::model::GPT2;
use crate::ops::{Ops, download_f32, upload_f32};
use crate::parallel::environment::Process;
use crate::parallel::{Collective, Communicator, Operation};
use crate::tensor::Tensor;
use anyhow::Result;

/// All ranks of a run, seen from one of them.
pub struct Peers {
    pub process: Process,
    /// `None` for a process alone.
    communicator: Option<Box<dyn Communicator>>,
}

impl Peers {
    pub fn alone() -> Self {
        Peers { process: Process::ALONE, communicator: None }
    }

    pub fn new(process: Process, communicator: Box<dyn Communicator>) -> Self {
        Peers { process, communicator: Some(communicator) }
    }

    /// How many there are, and how they are connected.
    pub fn describe(&self) -> Option<String> {
        let launcher = self.process.launcher.name();
        self.communicator.as_ref().map(|c| format!("{}, by {launcher}", c.describe()))
    }

    /// Begins to add up tensors over all ranks, each in its place.
    ///
    /// # Errors
    /// As [`Communicator::start`].
    pub fn start_sums(&mut self, dev: &mut dyn Ops, tensors: &[Tensor]) -> Result<()> {
        let Some(communicator) = &mut self.communicator else { return Ok(()) };
        let sum = |&tensor| Operation { collective: Collective::AllReduce, buffer: dev.buffer(tensor) };
        communicator.start(tensors.iter().map(sum).collect()).map(drop)
    }

    /// Waits until all sums are there.
    ///
    /// # Errors
    /// One line that names the rank that is gone or out of step.
    pub fn finish(&mut self) -> Result<()> {
        self.communicator.as_mut().map_or(Ok(()), |communicator| communicator.finish())
    }

    /// Adds up some numbers of the host's over all ranks.
    ///
    /// # Errors
    /// As [`Self::finish`].
    pub fn sum(&mut self, dev: &mut dyn Ops, model: &GPT2, values: &mut [f32]) -> Result<()> {
        if self.communicator.is_none() {
            return Ok(());
        }
        let scalars = model.acts.scalars.slice(0, values.len());
        upload_f32(dev, scalars, values)?;
        self.start_sums(dev, &[scalars])?;
        self.finish()?;
        download_f32(dev, values, scalars)
    }
}
