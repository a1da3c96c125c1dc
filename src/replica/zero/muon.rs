//! Muon under ZeRO: it orthogonalizes whole matrices, of which each rank stores a part. Ranks
//! gather the directions of some layers at a time, orthogonalize each a share of the matrices, and
//! send the results to all.

use super::ZeroState;
use crate::ops::{NewtonSchulz, Ops};
use crate::optim::optimizer::{Optimizer, Update};
use crate::optim::segments::Matrix;
use crate::parallel::Collective;
use crate::sharding::{Partition, ZeroStage};
use anyhow::Result;

impl ZeroState {
    /// Whether the matrices that an optimizer orthogonalizes are divided among ranks.
    pub(super) fn divides_matrices(&self, optimizer: &Optimizer) -> bool {
        self.sharding.stored(ZeroStage::Zero1) != Partition::WHOLE && optimizer.options().muon.is_some()
    }

    /// Updates all layers, as many at a time as there is memory for full gradients.
    pub(super) fn update_layers_together(
        &mut self,
        dev: &mut dyn Ops,
        optimizer: &Optimizer,
        update: Update,
    ) -> Result<()> {
        let shared = self.grads.full.layout.shared_unit();
        let at_a_time = if self.grads.is_sharded() { 2 } else { shared };
        let trained: Vec<_> = (0..shared).filter(|unit| self.grads.full.layout.len(*unit) > 0).collect();
        trained.chunks(at_a_time).try_for_each(|units| self.update_together(dev, optimizer, units, update))
    }

    fn update_together(
        &mut self,
        dev: &mut dyn Ops,
        optimizer: &Optimizer,
        units: &[usize],
        update: Update,
    ) -> Result<()> {
        let partition = optimizer.partition();
        for &unit in units {
            // Still pending if no pass has run since the last update.
            self.await_part(dev, unit)?;
            let (params, grads) = (&self.params.shard, &self.grads.shard);
            optimizer.begin(dev, unit, params, grads, update)?;
            let full = self.grads.full.units()[unit];
            if self.grads.is_sharded() {
                dev.copy(self.grads.full.shard(unit, partition), grads.units()[unit])?;
            }
            self.grads.pending[unit] = self.peers.start(dev, &[(Collective::AllGather, full)])?;
        }
        let matrices: Vec<(usize, Matrix)> = units
            .iter()
            .flat_map(|&unit| optimizer.matrices(unit).map(move |matrix| (unit, matrix)))
            .collect();
        let owners = owners(&matrices, self.peers.process.world_size);
        for &unit in units {
            let work = self.grads.pending[unit].take();
            self.peers.wait(dev, work)?;
            for (&(of, matrix), &owner) in matrices.iter().zip(&owners) {
                if (of, owner) == (unit, self.peers.process.rank) {
                    optimizer.orthogonalize(dev, self.grads.full.units()[unit], matrix)?;
                }
            }
        }
        let broadcasts: Vec<_> = matrices
            .iter()
            .zip(owners)
            .map(|(&(unit, matrix), root)| {
                let tensor = self.grads.full.units()[unit].slice(matrix.start, matrix.size());
                (Collective::Broadcast { root }, tensor)
            })
            .collect();
        let work = self.peers.start(dev, &broadcasts)?;
        self.peers.wait(dev, work)?;
        for &unit in units {
            optimizer.apply(dev, unit, &self.params.shard, &self.grads.full, update)?;
            self.updated(dev, unit)?;
        }
        Ok(())
    }
}

/// The rank that orthogonalizes each matrix: the largest first, each by the rank with the least
/// work so far.
fn owners(matrices: &[(usize, Matrix)], ranks: usize) -> Vec<usize> {
    let flops = |index: &usize| {
        let Matrix { rows, columns, .. } = matrices[*index].1;
        NewtonSchulz::flops(rows, columns)
    };
    let mut largest_first: Vec<usize> = (0..matrices.len()).collect();
    largest_first.sort_by_key(|index| std::cmp::Reverse(flops(index)));
    let (mut work, mut owners) = (vec![0; ranks], vec![0; matrices.len()]);
    for index in largest_first {
        let owner = (0..ranks).min_by_key(|&rank| work[rank]).expect("there are ranks");
        work[owner] += flops(&index);
        owners[index] = owner;
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer's matrices: four of C x C, and two that take three times the work.
    fn layer() -> [Matrix; 6] {
        [(8, 8), (8, 8), (8, 8), (8, 8), (32, 8), (8, 32)].map(|(rows, columns)| Matrix {
            start: 0,
            rows,
            columns,
        })
    }

    #[test]
    fn work_is_divided_evenly() {
        let most = |layers: usize, ranks: usize| {
            let matrices: Vec<_> = (0..layers).flat_map(|unit| layer().map(|m| (unit, m))).collect();
            let mut work = vec![0; ranks];
            for ((_, m), owner) in matrices.iter().zip(owners(&matrices, ranks)) {
                work[owner] += NewtonSchulz::flops(m.rows, m.columns);
            }
            let all: usize = work.iter().sum();
            (work.into_iter().max().unwrap() * ranks) as f64 / all as f64
        };
        assert_eq!([most(1, 1), most(1, 2), most(12, 8)], [1.0; 3]);
        assert!(most(2, 4) <= 1.2 && most(2, 8) <= 1.2);
    }
}
