//! How parameters lie on a device, and how ranks shard them.
//!
//! Parameters are grouped into *units*, each gathered, reduced and updated as one: one unit per
//! layer, then the *shared unit* of those that exist once (`wte wpe lnfw lnfb`).
//!
//! A unit holds its matrices first, which decay and which an update takes as one, then its vectors,
//! then padding, so that it divides into equal partitions, one per rank. Files keep llm.c's order
//! instead: [`ParamLayout`].

use crate::config::ModelConfig;
use crate::ops::{Ops, upload_f32};
use crate::params::{PARAMS, Param, ParamLayout, ParamSpec};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::ops::Range;

/// The length of a partition is a multiple of this many elements: 256 bytes of the narrowest type,
/// the alignment of tensors in a plan.
const PARTITION_ALIGN: usize = 128;

/// One of the equal partitions of every unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    pub index: usize,
    pub of: usize,
}

impl Partition {
    pub const WHOLE: Partition = Partition { index: 0, of: 1 };
}

/// The state that ranks shard instead of replicating (ZeRO: Rajbhandari et al. 2020). Each stage
/// includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum ZeroStage {
    /// Nothing: gradients are all-reduced, and every rank does the same update.
    #[value(name = "0")]
    Zero0,
    /// Master weights and moments: each rank updates its partition, then parameters are gathered.
    #[value(name = "1")]
    Zero1,
    /// Gradients: each micro-step leaves the reduced gradients of one partition on each rank.
    #[value(name = "2")]
    Zero2,
    /// Parameters: a layer's are gathered just before each pass needs them.
    #[value(name = "3")]
    Zero3,
}

impl ZeroStage {
    pub const ALL: [ZeroStage; 4] = [ZeroStage::Zero0, ZeroStage::Zero1, ZeroStage::Zero2, ZeroStage::Zero3];
}

/// The ZeRO stage of a run and the partition of this rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharding {
    pub stage: ZeroStage,
    pub partition: Partition,
}

impl Sharding {
    pub const NONE: Sharding = Sharding { stage: ZeroStage::Zero0, partition: Partition::WHOLE };

    /// The partition this rank stores of state that is sharded from `stage` on.
    pub fn stored(&self, stage: ZeroStage) -> Partition {
        if self.stage >= stage { self.partition } else { Partition::WHOLE }
    }
}

/// The place of each parameter in its unit.
#[derive(Clone, Debug)]
pub struct UnitLayout {
    config: ModelConfig,
    partitions: usize,
    /// By [`Param`], in elements from the start of the unit.
    starts: [usize; 16],
    layer: Extent,
    shared: Extent,
}

/// Numbers of elements in one unit.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    matrices: usize,
    used: usize,
    padded: usize,
}

impl UnitLayout {
    /// Units that divide into any number of partitions that divides `partitions`.
    pub fn new(config: &ModelConfig, partitions: usize) -> Self {
        let mut starts = [0; 16];
        let mut extent = |per_layer: bool| {
            let mut extent = Extent::default();
            for spec in in_unit(per_layer) {
                starts[spec.param as usize] = extent.used;
                extent.used += spec.len_per_layer(config);
                if spec.is_matrix {
                    extent.matrices = extent.used;
                }
            }
            extent.padded = extent.used.next_multiple_of(partitions * PARTITION_ALIGN);
            extent
        };
        let (layer, shared) = (extent(true), extent(false));
        UnitLayout { config: *config, partitions, starts, layer, shared }
    }

    /// The number of units: one per layer, and the shared unit.
    pub fn count(&self) -> usize {
        self.shared_unit() + 1
    }

    /// The index of the shared unit, which follows those of the layers.
    pub fn shared_unit(&self) -> usize {
        self.config.L
    }

    fn extent(&self, unit: usize) -> &Extent {
        if unit == self.shared_unit() { &self.shared } else { &self.layer }
    }

    /// Elements of a unit, padding included.
    pub fn len(&self, unit: usize) -> usize {
        self.extent(unit).padded
    }

    /// Elements at the front of a unit: its matrices.
    pub fn matrices(&self, unit: usize) -> usize {
        self.extent(unit).matrices
    }

    /// The parameters of a unit and their elements of it, in memory order.
    pub fn tensors(&self, unit: usize) -> impl Iterator<Item = (Param, Range<usize>)> + use<'_> {
        in_unit(unit != self.shared_unit()).map(|spec| (spec.param, self.range(spec.param)))
    }

    /// Rows and columns of one layer's tensor.
    pub fn shape(&self, param: Param) -> (usize, usize) {
        (param.spec().shape)(&self.config)
    }

    /// The index of a unit's first element among all parameters, padding not counted.
    pub fn first(&self, unit: usize) -> usize {
        unit * self.layer.used
    }

    /// The unit that holds layer `l` of a parameter.
    pub fn unit_of(&self, param: Param, l: usize) -> usize {
        if param.spec().per_layer { l } else { self.shared_unit() }
    }

    /// The elements of a unit that are this parameter.
    pub fn range(&self, param: Param) -> Range<usize> {
        let start = self.starts[param as usize];
        start..start + param.spec().len_per_layer(&self.config)
    }

    /// The elements of a unit that are in `partition`.
    pub fn partition(&self, unit: usize, partition: Partition) -> Range<usize> {
        let Partition { index, of } = partition;
        assert!(self.partitions.is_multiple_of(of), "units for {} partitions cut into {of}", self.partitions);
        let len = self.len(unit) / of;
        index * len..(index + 1) * len
    }

    /// The elements of a unit that are both in `partition` and in `range`; may be empty.
    pub fn overlap(&self, unit: usize, partition: Partition, range: &Range<usize>) -> Range<usize> {
        intersection(&self.partition(unit, partition), range)
    }

    /// Splits elements `range` of a file in llm.c's order into pieces, each a unit and the elements
    /// of it, in the order of the file.
    pub fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<'_> {
        let files = ParamLayout::new(&self.config);
        let tensors = PARAMS.iter().flat_map(|spec| (0..spec.layers(&self.config)).map(move |l| (spec, l)));
        tensors.filter_map(move |(spec, l)| {
            let len = spec.len_per_layer(&self.config);
            let start = files.range(spec.param).start + l * len;
            let overlap = intersection(&range, &(start..start + len));
            let shift = |at: usize| at - start + self.starts[spec.param as usize];
            let unit = self.unit_of(spec.param, l);
            (!overlap.is_empty()).then(|| (unit, shift(overlap.start)..shift(overlap.end)))
        })
    }
}

fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// The parameters of a unit, in memory order.
fn in_unit(per_layer: bool) -> impl Iterator<Item = &'static ParamSpec> {
    let of =
        move |is_matrix| PARAMS.iter().filter(move |s| s.per_layer == per_layer && s.is_matrix == is_matrix);
    of(true).chain(of(false))
}

/// One value per parameter (weights, gradients, m, v or master weights): all units, or one
/// partition of each.
#[derive(Clone, Debug)]
pub struct ParamBuffer {
    pub layout: UnitLayout,
    /// The partition of each unit that is stored here.
    pub partition: Partition,
    /// The elements of each unit that are stored here: those of the partition, unless some have no
    /// use.
    held: Vec<Range<usize>>,
    all: Tensor,
    units: Vec<Tensor>,
}

impl ParamBuffer {
    /// Plans `partition` of each unit, one after the other.
    pub fn plan(
        layout: &UnitLayout,
        partition: Partition,
        dtype: Dtype,
        names: (&'static str, &'static str),
        plan: &mut MemoryPlan,
    ) -> Self {
        Self::plan_used(layout, partition, |unit| 0..layout.len(unit), dtype, names, plan)
    }

    /// Plans those elements of `partition` of each unit that are in its range `used`.
    pub fn plan_used(
        layout: &UnitLayout,
        partition: Partition,
        used: impl Fn(usize) -> Range<usize>,
        dtype: Dtype,
        (arena, name): (&'static str, &'static str),
        plan: &mut MemoryPlan,
    ) -> Self {
        let held = |unit| {
            let Range { start, end } = layout.overlap(unit, partition, &used(unit));
            start..end.max(start)
        };
        let held: Vec<Range<usize>> = (0..layout.count()).map(held).collect();
        let all = plan.add(arena, name, dtype, held.iter().map(Range::len).sum());
        let mut end = 0;
        let cut = |held: &Range<usize>| {
            end += held.len();
            all.slice(end - held.len(), held.len())
        };
        let units = held.iter().map(cut).collect();
        ParamBuffer { layout: layout.clone(), partition, held, all, units }
    }

    /// Plans full units that are resident only while a pass uses them: the shared unit, and two
    /// buffers that even and odd layers alternate between.
    pub fn plan_double_buffered(
        layout: &UnitLayout,
        dtype: Dtype,
        (arena, name): (&'static str, &'static str),
        plan: &mut MemoryPlan,
    ) -> Self {
        let layers = layout.shared_unit();
        let [len, shared] = [0, layers].map(|unit| layout.len(unit));
        let all = plan.add(arena, name, dtype, layers.min(2) * len + shared);
        let layer = |l: usize| all.slice(shared + l % 2 * len, len);
        let units = (0..layers).map(layer).chain([all.slice(0, shared)]).collect();
        let held = (0..layout.count()).map(|unit| 0..layout.len(unit)).collect();
        ParamBuffer { layout: layout.clone(), partition: Partition::WHOLE, held, all, units }
    }

    pub fn dtype(&self) -> Dtype {
        self.units[0].dtype
    }

    /// The whole buffer, one unit after the other.
    pub fn all(&self) -> Tensor {
        self.all
    }

    /// The tensor of each unit, or of the partition of it that is stored here.
    pub fn units(&self) -> &[Tensor] {
        &self.units
    }

    /// Layer `l` of a parameter; 0 for those that exist once.
    ///
    /// # Panics
    /// If only a partition is stored here.
    pub fn get(&self, param: Param, l: usize) -> Tensor {
        assert_eq!(self.partition, Partition::WHOLE, "a full tensor of a sharded buffer");
        let range = self.layout.range(param);
        self.units[self.layout.unit_of(param, l)].slice(range.start, range.len())
    }

    /// The unit that `tensor` is part of, and the index of its first element in it.
    pub fn place_of(&self, tensor: Tensor) -> Option<(usize, usize)> {
        self.units.iter().enumerate().find_map(|(unit, all)| {
            let inside = all.arena == tensor.arena && all.dtype == tensor.dtype;
            let start = tensor.offset.checked_sub(all.offset)? / all.dtype.size();
            (inside && start + tensor.len <= all.len).then_some((unit, start))
        })
    }

    /// The parameter whose tensor of some layer starts where `tensor` does.
    pub fn param_at(&self, tensor: Tensor) -> Option<Param> {
        let (unit, start) = self.place_of(tensor)?;
        let per_layer = unit != self.layout.shared_unit();
        let params = PARAMS.iter().filter(|spec| spec.per_layer == per_layer).map(|spec| spec.param);
        params.into_iter().find(|&param| self.layout.range(param).start == start)
    }

    /// `partition` of a unit, whether the buffer stores that alone or full units.
    ///
    /// # Panics
    /// If the buffer stores another partition.
    pub fn shard(&self, unit: usize, partition: Partition) -> Tensor {
        if self.partition == partition {
            return self.units[unit];
        }
        assert_eq!(self.partition, Partition::WHOLE, "{partition:?} of a buffer that stores another one");
        let range = self.layout.partition(unit, partition);
        self.units[unit].slice(range.start, range.len())
    }

    /// The stored part of elements `range` of a unit: its offset in `range`, and the tensor.
    pub fn overlap(&self, unit: usize, range: Range<usize>) -> Option<(usize, Tensor)> {
        let held = &self.held[unit];
        let overlap = intersection(held, &range);
        let tensor = || self.units[unit].slice(overlap.start - held.start, overlap.len());
        (!overlap.is_empty()).then(|| (overlap.start - range.start, tensor()))
    }

    /// Uploads the stored part of `values`, which start at index `start` of a file in llm.c's
    /// order.
    pub fn upload(&self, dev: &mut dyn Ops, start: usize, values: &[f32]) -> Result<()> {
        let mut rest = values;
        for (unit, range) in self.layout.pieces(start..start + values.len()) {
            let piece;
            (piece, rest) = rest.split_at(range.len());
            if let Some((at, tensor)) = self.overlap(unit, range) {
                upload_f32(dev, tensor, &piece[at..at + tensor.len])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(partitions: usize) -> UnitLayout {
        UnitLayout::new(&ModelConfig::new(8, 3, 2, 24), partitions)
    }

    #[test]
    fn every_element_of_a_file_has_a_place_of_its_own() {
        for partitions in [1, 3, 4] {
            let layout = layout(partitions);
            let len = ParamLayout::new(&layout.config).len();
            let mut seen: Vec<Vec<bool>> = (0..layout.count()).map(|u| vec![false; layout.len(u)]).collect();
            // In chunks that end in the middle of tensors.
            for start in (0..len).step_by(1000) {
                let chunk = start..len.min(start + 1000);
                let mut count = 0;
                for (unit, range) in layout.pieces(chunk.clone()) {
                    count += range.len();
                    for at in range {
                        assert!(!std::mem::replace(&mut seen[unit][at], true), "unit {unit} at {at}, twice");
                    }
                }
                assert_eq!(count, chunk.len());
            }
            let places = seen.iter().flatten().filter(|&&seen| seen).count();
            assert_eq!(places, len);
            for (unit, seen) in seen.iter().enumerate() {
                assert!(seen[..layout.extent(unit).used].iter().all(|&seen| seen), "a gap in unit {unit}");
            }
        }
    }

    #[test]
    fn matrices_come_first_and_parts_are_equal_and_aligned() {
        let layout = layout(3);
        for spec in &PARAMS {
            let (unit, range) = (layout.unit_of(spec.param, 0), layout.range(spec.param));
            assert_eq!(range.end <= layout.matrices(unit), spec.is_matrix, "{}", spec.name);
        }
        for unit in 0..layout.count() {
            let partitions = [0, 1, 2].map(|index| layout.partition(unit, Partition { index, of: 3 }));
            assert_eq!(partitions[2].end, layout.len(unit));
            assert!(
                partitions.iter().all(|p| p.len() == partitions[0].len() && p.start % PARTITION_ALIGN == 0)
            );
            assert!(layout.len(unit) - layout.extent(unit).used < 3 * PARTITION_ALIGN);
        }
        assert_eq!(layout.first(layout.shared_unit()), 3 * layout.layer.used);
    }

    #[test]
    fn two_layers_take_turns() {
        let layout = layout(2);
        let mut plan = MemoryPlan::new();
        let buffer = ParamBuffer::plan_double_buffered(&layout, Dtype::F32, ("a", "b"), &mut plan);
        let [a, b, c, shared] = buffer.units()[..] else { panic!("three layers and the shared unit") };
        assert_eq!(a, c);
        assert_eq!([a.offset - shared.offset, b.offset - a.offset], [4 * layout.len(3), 4 * layout.len(0)]);
        assert_eq!(plan.size_bytes(), 4 * (layout.len(3) + 2 * layout.len(0)));
    }
}
