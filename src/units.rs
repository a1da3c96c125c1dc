//! How parameters lie on a device: by *units*, each of which is fetched, added up and updated at once. A unit is the parameters of
//! one layer, or, as the last one, of those that exist once (`wte wpe lnfw lnfb`).
//!
//! In a unit matrices come first, so that what decays is its front, then vectors, and padding, so that it can be cut into
//! equal parts, one for each rank. Files keep llm.c's order instead: [`ParamLayout`].

use crate::config::ModelConfig;
use crate::ops::{Ops, upload_f32};
use crate::params::{PARAMS, Param, ParamLayout};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::ops::Range;

/// Parts are a multiple of so many elements long: 256 bytes of the narrowest type, as tensors of a plan.
const PART_ALIGN: usize = 128;

/// One of equal parts of every unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub index: usize,
    pub of: usize,
}

impl Part {
    pub const WHOLE: Part = Part { index: 0, of: 1 };
}

/// What is divided among ranks and not kept by each (ZeRO: Rajbhandari et al. 2020); every stage has what is before it, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Nothing: gradients are added up over all ranks, and each does the same update.
    Zero0,
    /// Master weights and moments: each rank updates its part, and parameters are gathered after it.
    Zero1,
    /// Gradients: each micro-step leaves sums of one part on each rank.
    Zero2,
    /// Parameters: a layer's are gathered when it is its turn, forward and backward.
    Zero3,
}

impl Stage {
    pub const ALL: [Stage; 4] = [Stage::Zero0, Stage::Zero1, Stage::Zero2, Stage::Zero3];
}

/// What is divided, and which part of it is this rank's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharding {
    pub stage: Stage,
    pub part: Part,
}

impl Sharding {
    pub const NONE: Sharding = Sharding { stage: Stage::Zero0, part: Part::WHOLE };

    /// What a rank keeps of that which is divided from `stage` on.
    pub fn kept(&self, stage: Stage) -> Part {
        if self.stage >= stage { self.part } else { Part::WHOLE }
    }
}

/// Where each parameter is in its unit.
#[derive(Clone, Debug)]
pub struct UnitLayout {
    config: ModelConfig,
    parts: usize,
    /// By [`Param`], in elements from the start of the unit.
    starts: [usize; 16],
    layer: Extent,
    rest: Extent,
}

/// Elements of one unit.
#[derive(Clone, Copy, Debug, Default)]
struct Extent {
    matrices: usize,
    used: usize,
    padded: usize,
}

impl UnitLayout {
    /// Units that can be cut into any number of parts that divides `parts`.
    pub fn new(config: &ModelConfig, parts: usize) -> Self {
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
            extent.padded = extent.used.next_multiple_of(parts * PART_ALIGN);
            extent
        };
        let (layer, rest) = (extent(true), extent(false));
        UnitLayout { config: *config, parts, starts, layer, rest }
    }

    /// Units in all: layers 0, 1, … and the rest.
    pub fn count(&self) -> usize {
        self.rest() + 1
    }

    /// The unit of what exists once.
    pub fn rest(&self) -> usize {
        self.config.L
    }

    fn extent(&self, unit: usize) -> &Extent {
        if unit == self.rest() { &self.rest } else { &self.layer }
    }

    /// Elements of a unit, padding included.
    pub fn len(&self, unit: usize) -> usize {
        self.extent(unit).padded
    }

    /// Elements at the front of a unit that decay: its matrices.
    pub fn matrices(&self, unit: usize) -> usize {
        self.extent(unit).matrices
    }

    /// The number of a unit's first element among all parameters, however they are padded.
    pub fn first(&self, unit: usize) -> usize {
        unit * self.layer.used
    }

    /// The unit that layer `l` of a parameter is in.
    pub fn unit_of(&self, param: Param, l: usize) -> usize {
        if param.spec().per_layer { l } else { self.rest() }
    }

    /// Where a parameter is in its unit.
    pub fn range(&self, param: Param) -> Range<usize> {
        let start = self.starts[param as usize];
        start..start + param.spec().len_per_layer(&self.config)
    }

    /// `part` of a unit, in elements.
    pub fn part(&self, unit: usize, part: Part) -> Range<usize> {
        assert!(self.parts.is_multiple_of(part.of), "units for {} parts cut into {}", self.parts, part.of);
        let len = self.len(unit) / part.of;
        part.index * len..(part.index + 1) * len
    }

    /// What of elements `range` of a unit is in `part`; empty if nothing is.
    pub fn common(&self, unit: usize, part: Part, range: &Range<usize>) -> Range<usize> {
        intersection(&self.part(unit, part), range)
    }

    /// What elements `range` of a file in llm.c's order are: one piece after the other, as a unit and elements of it.
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

/// The parameters of a unit in the order of memory.
fn in_unit(per_layer: bool) -> impl Iterator<Item = &'static crate::params::ParamSpec> {
    let of =
        move |is_matrix| PARAMS.iter().filter(move |s| s.per_layer == per_layer && s.is_matrix == is_matrix);
    of(true).chain(of(false))
}

/// A number for each parameter: themselves, their gradients, m, v, master weights. All of each unit, or one part.
#[derive(Clone, Debug)]
pub struct PerParam {
    pub layout: UnitLayout,
    /// What is here of each unit.
    pub part: Part,
    all: Tensor,
    units: Vec<Tensor>,
}

impl PerParam {
    /// `part` of each unit, in memory of its own.
    pub fn plan(
        layout: &UnitLayout,
        part: Part,
        dtype: Dtype,
        (arena, name): (&'static str, &'static str),
        plan: &mut MemoryPlan,
    ) -> Self {
        let lens: Vec<usize> = (0..layout.count()).map(|unit| layout.part(unit, part).len()).collect();
        let all = plan.add(arena, name, dtype, lens.iter().sum());
        let mut end = 0;
        let cut = |len: &usize| {
            end += len;
            all.slice(end - len, *len)
        };
        PerParam { layout: layout.clone(), part, all, units: lens.iter().map(cut).collect() }
    }

    /// Whole units as passes go through them: the rest, and memory for two layers, even and odd ones in turn.
    pub fn plan_in_turns(
        layout: &UnitLayout,
        dtype: Dtype,
        (arena, name): (&'static str, &'static str),
        plan: &mut MemoryPlan,
    ) -> Self {
        let [len, rest] = [0, layout.rest()].map(|unit| layout.len(unit));
        let all = plan.add(arena, name, dtype, layout.rest().min(2) * len + rest);
        let layer = |l: usize| all.slice(rest + l % 2 * len, len);
        let units = (0..layout.rest()).map(layer).chain([all.slice(0, rest)]).collect();
        PerParam { layout: layout.clone(), part: Part::WHOLE, all, units }
    }

    pub fn dtype(&self) -> Dtype {
        self.units[0].dtype
    }

    /// All that is here, one unit behind the other.
    pub fn all(&self) -> Tensor {
        self.all
    }

    /// What is here of each unit.
    pub fn units(&self) -> &[Tensor] {
        &self.units
    }

    /// Layer `l` of a parameter; 0 for those that exist once.
    ///
    /// # Panics
    /// If only parts are here.
    pub fn get(&self, param: Param, l: usize) -> Tensor {
        assert_eq!(self.part, Part::WHOLE, "a whole tensor out of a part");
        let range = self.layout.range(param);
        self.units[self.layout.unit_of(param, l)].slice(range.start, range.len())
    }

    /// `part` of a unit, whether or not the rest of it is here, too.
    ///
    /// # Panics
    /// If another part is here.
    pub fn part_of(&self, unit: usize, part: Part) -> Tensor {
        if self.part == part {
            return self.units[unit];
        }
        assert_eq!(self.part, Part::WHOLE, "{part:?} where another one is");
        let range = self.layout.part(unit, part);
        self.units[unit].slice(range.start, range.len())
    }

    /// What is here of elements `range` of a unit: where in `range` it begins, and the tensor.
    pub fn overlap(&self, unit: usize, range: Range<usize>) -> Option<(usize, Tensor)> {
        let here = self.layout.part(unit, self.part).start;
        let common = self.layout.common(unit, self.part, &range);
        let tensor = || self.units[unit].slice(common.start - here, common.len());
        (!common.is_empty()).then(|| (common.start - range.start, tensor()))
    }

    /// Takes what belongs here of values that lie in a file from `start` on, in llm.c's order.
    ///
    /// # Errors
    /// If the device fails.
    pub fn upload(&self, dev: &mut dyn Ops, start: usize, values: &[f32]) -> Result<()> {
        let mut rest = values;
        for (unit, range) in self.layout.pieces(start..start + values.len()) {
            let (piece, behind) = rest.split_at(range.len());
            if let Some((at, tensor)) = self.overlap(unit, range) {
                upload_f32(dev, tensor, &piece[at..at + tensor.len])?;
            }
            rest = behind;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(parts: usize) -> UnitLayout {
        UnitLayout::new(&ModelConfig::new(8, 3, 2, 24), parts)
    }

    #[test]
    fn every_element_of_a_file_has_a_place_of_its_own() {
        for parts in [1, 3, 4] {
            let layout = layout(parts);
            let len = ParamLayout::new(&layout.config).len();
            let mut seen: Vec<Vec<bool>> = (0..layout.count()).map(|u| vec![false; layout.len(u)]).collect();
            // In chunks that do not stop where tensors do.
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
            let parts = [0, 1, 2].map(|index| layout.part(unit, Part { index, of: 3 }));
            assert_eq!(parts[2].end, layout.len(unit));
            assert!(parts.iter().all(|part| part.len() == parts[0].len() && part.start % PART_ALIGN == 0));
            assert!(layout.len(unit) - layout.extent(unit).used < 3 * PART_ALIGN);
        }
        assert_eq!(layout.first(layout.rest()), 3 * layout.layer.used);
    }

    #[test]
    fn two_layers_take_turns() {
        let layout = layout(2);
        let mut plan = MemoryPlan::new();
        let turns = PerParam::plan_in_turns(&layout, Dtype::F32, ("a", "b"), &mut plan);
        let [a, b, c, rest] = turns.units()[..] else { panic!("three layers and the rest") };
        assert_eq!(a, c);
        assert_eq!([a.offset - rest.offset, b.offset - a.offset], [4 * layout.len(3), 4 * layout.len(0)]);
        assert_eq!(plan.size_bytes(), 4 * (layout.len(3) + 2 * layout.len(0)));
    }
}
