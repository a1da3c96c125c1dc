//! Work of rank 0 in which the other ranks take part: passes of its own, and downloads of tensors
//! that are sharded.

use super::ZeroState;
use crate::model::GPT2;
use crate::model::hooks::{LayerHooks, Pass};
use crate::ops::{Ops, download_f32};
use crate::parallel::Collective;
use crate::sharding::{ParamBuffer, Partition, Piece};
use crate::tensor::Tensor;
use anyhow::Result;
use std::ops::Range;

/// The number of elements of a shard that are broadcast at a time.
pub(super) const STAGING_LEN: usize = 1 << 16;

impl ZeroState {
    /// Whether parameters are sharded, so that all ranks take part in each pass.
    pub fn gathers_params(&self) -> bool {
        self.params.is_sharded()
    }

    /// Runs `passes` on rank 0. Under ZeRO-3 the other ranks join the all-gathers of every pass.
    ///
    /// # Errors
    /// Those of `passes`, and as [`Peers::wait`](crate::replica::peers::Peers::wait).
    pub fn on_rank0(
        &mut self,
        dev: &mut dyn Ops,
        model: &GPT2,
        passes: impl FnOnce(&mut dyn Ops, &mut dyn LayerHooks) -> Result<()>,
    ) -> Result<()> {
        let sharded = self.gathers_params();
        if self.peers.process.is_rank0() {
            let result = passes(dev, &mut Rank0Hooks { zero: self, model, sharded });
            let end = if sharded { self.peers.sum(dev, model, &mut [0.0]) } else { Ok(()) };
            return result.and(end);
        }
        if !sharded {
            return Ok(());
        }
        loop {
            let mut another = [0.0];
            self.peers.sum(dev, model, &mut another)?;
            if another == [0.0] {
                return Ok(());
            }
            model.participate(dev, self)?;
        }
    }

    /// Downloads elements of `tensors` from `start` on, in the order of files, to the host of rank
    /// 0. Where these lack elements that are frozen, they come from `frozen`, and without it they
    /// are 0. All ranks must make the same calls; `out` is filled on rank 0 alone.
    ///
    /// # Errors
    /// As [`Peers::wait`](crate::replica::peers::Peers::wait).
    pub fn download(
        &mut self,
        dev: &mut dyn Ops,
        tensors: &ParamBuffer,
        frozen: Option<&ParamBuffer>,
        start: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let (mut rest, mut at) = (out, start);
        for Piece { len, place } in tensors.layout.pieces(start..start + rest.len()) {
            let piece;
            (piece, rest) = rest.split_at_mut(len);
            at += len;
            let Some((unit, range)) = place else {
                match frozen {
                    Some(frozen) => self.download(dev, frozen, None, at - len, piece)?,
                    None => piece.fill(0.0),
                }
                continue;
            };
            if tensors.partition == Partition::WHOLE {
                if self.peers.process.is_rank0() {
                    let (_, stored) = tensors.overlap(unit, range).expect("elements that are stored");
                    download_f32(dev, piece, stored)?;
                }
                continue;
            }
            for index in 0..tensors.partition.of {
                let theirs = tensors.layout.overlap(unit, Partition { index, ..tensors.partition }, &range);
                for at in theirs.clone().step_by(STAGING_LEN) {
                    let chunk = at..theirs.end.min(at + STAGING_LEN);
                    let out = &mut piece[chunk.start - range.start..chunk.end - range.start];
                    self.download_from(dev, tensors, (unit, chunk), index, out)?;
                }
            }
        }
        Ok(())
    }

    /// Downloads elements of a unit that rank `root` stores.
    fn download_from(
        &mut self,
        dev: &mut dyn Ops,
        tensors: &ParamBuffer,
        (unit, range): (usize, Range<usize>),
        root: usize,
        out: &mut [f32],
    ) -> Result<()> {
        let staging = self.staging.expect("planned where anything is sharded");
        let staging = Tensor { len: range.len(), dtype: tensors.dtype(), ..staging };
        if let Some((_, shard)) = tensors.overlap(unit, range) {
            dev.copy(staging, shard)?;
        }
        // A broadcast, though only rank 0 needs it: checkpoints are rare, and the links between
        // GPUs are fast compared with the disk.
        let work = self.peers.start(dev, &[(Collective::Broadcast { root }, staging)])?;
        self.peers.wait(dev, work)?;
        if self.peers.process.is_rank0() { download_f32(dev, out, staging) } else { Ok(()) }
    }
}

/// The hooks of rank 0 in passes of its own. Before each pass it calls the other ranks to join.
struct Rank0Hooks<'a> {
    zero: &'a mut ZeroState,
    model: &'a GPT2,
    sharded: bool,
}

impl LayerHooks for Rank0Hooks<'_> {
    fn before(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        if self.sharded && unit == self.model.weights.params.layout.shared_unit() {
            self.zero.peers.sum(dev, self.model, &mut [1.0])?;
        }
        self.zero.before(dev, pass, unit)
    }

    fn after(&mut self, dev: &mut dyn Ops, pass: Pass, unit: usize) -> Result<()> {
        self.zero.after(dev, pass, unit)
    }
}
