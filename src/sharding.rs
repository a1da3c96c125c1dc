//! How parameters lie on a device, and how ranks shard them.
//!
//! Parameters are grouped into *units*, each gathered, reduced and updated as one: one unit per
//! layer, then the *shared unit* of those that exist once (`wte wpe lnfw lnfb`).
//!
//! A unit holds its matrices first, which decay and which an update takes as one, then its vectors,
//! then padding, so that it divides into equal partitions, one per rank. Files keep llm.c's order
//! instead: [`ParamLayout`].
//!
//! Parameters that are frozen have units of their own, one beside each unit that is trained, so
//! that gradients and optimizer state, which have only the others, are cut as the parameters are.

use crate::config::ModelConfig;
use crate::ops::{Ops, upload_f32};
use crate::params::frozen::Frozen;
use crate::params::{self, Param, ParamLayout, ParamSpec};
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
    /// Those that are trained: of each layer, then the shared one. If anything is frozen, then the
    /// frozen ones in the same order.
    units: Vec<Unit>,
}

/// Parameters and numbers of elements in one unit.
#[derive(Clone, Debug, Default)]
struct Unit {
    /// In memory order, each with its first element.
    tensors: Vec<(Param, usize)>,
    matrices: usize,
    used: usize,
    padded: usize,
}

impl Unit {
    fn new(params: impl Iterator<Item = &'static ParamSpec>, config: &ModelConfig, align: usize) -> Self {
        let mut unit = Unit::default();
        for spec in params {
            unit.tensors.push((spec.param, unit.used));
            unit.used += spec.len_per_layer(config);
            if spec.is_matrix {
                unit.matrices = unit.used;
            }
        }
        unit.padded = unit.used.next_multiple_of(align);
        unit
    }
}

impl UnitLayout {
    /// Units that divide into any number of partitions that divides `partitions`.
    pub fn new(config: &ModelConfig, partitions: usize) -> Self {
        Self::with_frozen(config, partitions, &Frozen::default())
    }

    /// The same of a model of which some parameters are frozen.
    pub fn with_frozen(config: &ModelConfig, partitions: usize, frozen: &Frozen) -> Self {
        let unit = |unit: usize, is_frozen: bool| {
            let of_unit = in_unit(config, unit < config.L);
            let params = of_unit.filter(move |spec| frozen.contains(spec.param, unit) == is_frozen);
            Unit::new(params, config, partitions * PARTITION_ALIGN)
        };
        let mut units: Vec<_> = (0..=config.L).map(|l| unit(l, false)).collect();
        if !frozen.is_empty() {
            units.extend((0..=config.L).map(|l| unit(l, true)));
        }
        UnitLayout { config: *config, partitions, units }
    }

    /// The layout of gradients and optimizer state: the units that are trained.
    pub fn trained(&self) -> Self {
        UnitLayout { units: self.units[..self.count()].to_vec(), ..self.clone() }
    }

    /// The number of units that are trained: one per layer, and the shared unit. Some may be empty.
    pub fn count(&self) -> usize {
        self.shared_unit() + 1
    }

    /// The number of all units, with those that are frozen.
    pub fn count_all(&self) -> usize {
        self.units.len()
    }

    /// The index of the shared unit, which follows those of the layers.
    pub fn shared_unit(&self) -> usize {
        self.config.L
    }

    /// The unit of what is trained of a layer or of the shared parameters, then that of what is
    /// frozen of them.
    pub fn parts(&self, unit: usize) -> impl Iterator<Item = usize> + use<> {
        (unit..self.units.len()).step_by(self.count())
    }

    /// The lowest layer that a backward pass reaches: L if only the head and the last layernorm
    /// are trained, 0 if an embedding is, as it lies below all layers.
    pub fn lowest_trained(&self) -> usize {
        let embeds = self.find(Param::Wte, 0).or(self.find(Param::Wpe, 0)).is_some();
        let trains = |l: &usize| self.units[*l].used > 0;
        if embeds { 0 } else { (0..self.config.L).find(trains).unwrap_or(self.config.L) }
    }

    /// Elements of a unit, padding included.
    pub fn len(&self, unit: usize) -> usize {
        self.units[unit].padded
    }

    /// Elements at the front of a unit: its matrices.
    pub fn matrices(&self, unit: usize) -> usize {
        self.units[unit].matrices
    }

    /// The parameters of a unit and their elements of it, in memory order.
    pub fn tensors(&self, unit: usize) -> impl Iterator<Item = (Param, Range<usize>)> + use<'_> {
        let tensors = self.units[unit].tensors.iter();
        tensors.map(|&(param, start)| (param, start..start + param.spec().len_per_layer(&self.config)))
    }

    /// Rows and columns of one layer's tensor.
    pub fn shape(&self, param: Param) -> (usize, usize) {
        (param.spec().shape)(&self.config)
    }

    /// The index of a unit's first element among all that are trained, padding not counted.
    pub fn first(&self, unit: usize) -> usize {
        self.units[..unit].iter().map(|unit| unit.used).sum()
    }

    /// The unit that holds layer `l` of a parameter (0 for those that exist once), and its elements
    /// of that unit. `None` for a parameter that is frozen, where the layout is that of what is
    /// trained.
    pub fn find(&self, param: Param, l: usize) -> Option<(usize, Range<usize>)> {
        let unit = if param.spec().per_layer { l } else { self.shared_unit() };
        self.parts(unit).find_map(|part| {
            let (_, range) = self.tensors(part).find(|tensor| tensor.0 == param)?;
            Some((part, range))
        })
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

    /// Splits elements `range` of a file in llm.c's order into pieces, in the order of the file.
    pub fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = Piece> + use<'_> {
        let files = ParamLayout::new(&self.config);
        let tensors =
            params::all(&self.config).flat_map(|spec| (0..spec.layers(&self.config)).map(move |l| (spec, l)));
        tensors.filter_map(move |(spec, l)| {
            let len = spec.len_per_layer(&self.config);
            let start = files.range(spec.param).start + l * len;
            let overlap = intersection(&range, &(start..start + len));
            if overlap.is_empty() {
                return None;
            }
            let place = self.find(spec.param, l).map(|(unit, within)| {
                let shift = |at: usize| at - start + within.start;
                (unit, shift(overlap.start)..shift(overlap.end))
            });
            Some(Piece { len: overlap.len(), place })
        })
    }
}

/// A run of a file's elements that is within one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub len: usize,
    /// Its unit, and its elements of that. `None` where the layout has no place for it, because it
    /// is frozen.
    pub place: Option<(usize, Range<usize>)>,
}

fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// The parameters of a unit, in memory order.
fn in_unit(config: &ModelConfig, per_layer: bool) -> impl Iterator<Item = &'static ParamSpec> + use<> {
    let config = *config;
    let of = move |is_matrix| {
        params::all(&config).filter(move |s| s.per_layer == per_layer && s.is_matrix == is_matrix)
    };
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
        let held: Vec<Range<usize>> = (0..layout.count_all()).map(held).collect();
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
    /// buffers that even and odd layers alternate between. Frozen units follow those beside them.
    pub fn plan_double_buffered(
        layout: &UnitLayout,
        dtype: Dtype,
        (arena, name): (&'static str, &'static str),
        plan: &mut MemoryPlan,
    ) -> Self {
        let layers = layout.shared_unit();
        let len = |unit: usize| layout.parts(unit).map(|part| layout.len(part)).sum::<usize>();
        let (longest, shared) = ((0..layers).map(len).max().unwrap_or(0), len(layers));
        let all = plan.add(arena, name, dtype, layers.min(2) * longest + shared);
        let place = |unit: usize| {
            let trained = unit % layout.count();
            let start = if trained == layers { 0 } else { shared + trained % 2 * longest };
            let beside = if unit == trained { 0 } else { layout.len(trained) };
            all.slice(start + beside, layout.len(unit))
        };
        let units = (0..layout.count_all()).map(place).collect();
        let held = (0..layout.count_all()).map(|unit| 0..layout.len(unit)).collect();
        ParamBuffer { layout: layout.clone(), partition: Partition::WHOLE, held, all, units }
    }

    /// Units whose memory is also, at least in part, that of `unit`, which is one of them unless it
    /// is empty.
    pub fn aliases(&self, unit: usize) -> Vec<usize> {
        let range = |tensor: &Tensor| tensor.offset..tensor.offset + tensor.size_bytes();
        let own = range(&self.units[unit]);
        let shares = |other: &usize| !intersection(&own, &range(&self.units[*other])).is_empty();
        (0..self.units.len()).filter(shares).collect()
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
    /// If only a partition is stored here, or nothing because the parameter is frozen.
    pub fn get(&self, param: Param, l: usize) -> Tensor {
        self.find(param, l).expect("a parameter that is frozen has only its values")
    }

    /// The same; `None` if nothing is stored here because the parameter is frozen.
    ///
    /// # Panics
    /// If only a partition is stored here.
    pub fn find(&self, param: Param, l: usize) -> Option<Tensor> {
        assert_eq!(self.partition, Partition::WHOLE, "a full tensor of a sharded buffer");
        let (unit, range) = self.layout.find(param, l)?;
        Some(self.units[unit].slice(range.start, range.len()))
    }

    /// The unit that `tensor` is part of, and the index of its first element in it.
    pub fn place_of(&self, tensor: Tensor) -> Option<(usize, usize)> {
        self.units.iter().enumerate().find_map(|(unit, all)| {
            let inside = all.arena == tensor.arena && all.dtype == tensor.dtype;
            let start = tensor.offset.checked_sub(all.offset)? / all.dtype.size();
            (inside && start + tensor.len <= all.len && all.len > 0).then_some((unit, start))
        })
    }

    /// The parameter whose tensor of some layer starts where `tensor` does.
    pub fn param_at(&self, tensor: Tensor) -> Option<Param> {
        let (unit, start) = self.place_of(tensor)?;
        self.layout.tensors(unit).find(|(_, range)| range.start == start).map(|(param, _)| param)
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
        for Piece { len, place } in self.layout.pieces(start..start + values.len()) {
            let piece;
            (piece, rest) = rest.split_at(len);
            if let Some((at, tensor)) = place.and_then(|(unit, range)| self.overlap(unit, range)) {
                upload_f32(dev, tensor, &piece[at..at + tensor.len])?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::PARAMS;

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
                for Piece { len, place } in layout.pieces(chunk.clone()) {
                    let (unit, range) = place.expect("nothing is frozen");
                    assert_eq!(len, range.len());
                    count += len;
                    for at in range {
                        assert!(!std::mem::replace(&mut seen[unit][at], true), "unit {unit} at {at}, twice");
                    }
                }
                assert_eq!(count, chunk.len());
            }
            let places = seen.iter().flatten().filter(|&&seen| seen).count();
            assert_eq!(places, len);
            for (unit, seen) in seen.iter().enumerate() {
                assert!(seen[..layout.units[unit].used].iter().all(|&seen| seen), "a gap in unit {unit}");
            }
        }
    }

    #[test]
    fn matrices_come_first_and_parts_are_equal_and_aligned() {
        let layout = layout(3);
        for spec in &PARAMS {
            let (unit, range) = layout.find(spec.param, 0).unwrap();
            assert_eq!(range.end <= layout.matrices(unit), spec.is_matrix, "{}", spec.name);
        }
        for unit in 0..layout.count() {
            let partitions = [0, 1, 2].map(|index| layout.partition(unit, Partition { index, of: 3 }));
            assert_eq!(partitions[2].end, layout.len(unit));
            assert!(
                partitions.iter().all(|p| p.len() == partitions[0].len() && p.start % PARTITION_ALIGN == 0)
            );
            assert!(layout.len(unit) - layout.units[unit].used < 3 * PARTITION_ALIGN);
        }
        assert_eq!(layout.first(layout.shared_unit()), 3 * layout.units[0].used);
    }

    /// Layers 0 and 1 whole, qkvw of layer 2, and wte.
    fn partly_frozen(partitions: usize) -> UnitLayout {
        let config = ModelConfig::new(8, 3, 2, 24);
        let frozen = Frozen::parse("h.0-1,h.2.qkvw,wte", &config).unwrap();
        UnitLayout::with_frozen(&config, partitions, &frozen)
    }

    #[test]
    fn frozen_parameters_have_units_of_their_own() {
        let (all, whole) = (partly_frozen(4), layout(4));
        assert_eq!((all.count(), all.count_all(), all.parts(2).collect::<Vec<_>>()), (4, 8, vec![2, 6]));
        let trained = all.trained();
        assert_eq!((trained.count_all(), trained.len(0), trained.lowest_trained()), (4, 0, 0));
        for spec in &PARAMS {
            for l in 0..spec.layers(&all.config) {
                let (unit, range) = all.find(spec.param, l).unwrap();
                assert_eq!(range.len(), whole.find(spec.param, l).unwrap().1.len());
                let trains = unit < 4;
                assert_eq!(trained.find(spec.param, l), trains.then_some((unit, range)), "{} {l}", spec.name);
            }
        }
        let len = ParamLayout::new(&all.config).len();
        let [placed, frozen] = [true, false].map(|placed| {
            trained.pieces(0..len).filter(|p| p.place.is_some() == placed).map(|p| p.len).sum::<usize>()
        });
        let used = |layout: &UnitLayout| layout.units.iter().map(|unit| unit.used).sum::<usize>();
        assert_eq!((placed, placed + frozen), (used(&trained), used(&whole)));
    }

    #[test]
    fn frozen_units_share_the_memory_of_their_layers() {
        let layout = partly_frozen(2);
        let mut plan = MemoryPlan::new();
        let buffer = ParamBuffer::plan_double_buffered(&layout, Dtype::F32, ("a", "b"), &mut plan);
        assert_eq!(buffer.aliases(0), Vec::<usize>::new());
        assert_eq!(buffer.aliases(4), [2, 4, 6]);
        assert_eq!(buffer.aliases(2), [2, 4]);
        assert_eq!((buffer.aliases(5), buffer.aliases(3), buffer.aliases(7)), (vec![5], vec![3], vec![7]));
    }

    #[test]
    fn the_lowest_layer_that_is_trained_ends_the_backward_pass() {
        let config = ModelConfig::new(8, 3, 2, 24);
        for (frozen, lowest) in [
            ("wte", 0),
            ("wte,wpe", 0),
            ("wpe,h.0-2", 0),
            ("wte,wpe,h.0", 1),
            ("wte,wpe,h.0-2", 3),
            ("h.1", 0),
        ] {
            let frozen = Frozen::parse(frozen, &config).unwrap();
            assert_eq!(
                UnitLayout::with_frozen(&config, 1, &frozen).trained().lowest_trained(),
                lowest,
                "{frozen}"
            );
        }
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
