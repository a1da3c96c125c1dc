//! The way in which each parameter is updated: a unit as a list of segments.

use crate::params::Param;
use crate::sharding::UnitLayout;
use std::ops::Range;

/// The optimizer of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    AdamW,
}

/// A run of one unit's parameters that are updated alike: one or more whole tensors, or, where
/// ranks shard them, a part.
#[derive(Clone, Debug, PartialEq)]
pub struct Segment {
    /// Elements of the unit.
    pub range: Range<usize>,
    pub rule: Rule,
    /// Factor on the learning rate.
    pub lr_scale: f32,
    pub weight_decay: f32,
}

impl Segment {
    /// Whether `next` is updated as this is, and adjacent in memory.
    fn continues(&self, next: &Segment) -> bool {
        let alike = |s: &Segment| (s.rule, s.lr_scale, s.weight_decay);
        self.range.end == next.range.start && alike(self) == alike(next)
    }
}

/// The segments of every unit, in memory order. What is in none is not updated, as padding.
#[derive(Clone, Debug, PartialEq)]
pub struct Segments(Vec<Vec<Segment>>);

impl Segments {
    /// Matrices decay by `weight_decay`, and vectors never do.
    pub fn new(layout: &UnitLayout, weight_decay: f32) -> Self {
        let segment = |(param, range): (Param, Range<usize>)| {
            let weight_decay = if param.spec().is_matrix { weight_decay } else { 0.0 };
            Segment { range, rule: Rule::AdamW, lr_scale: 1.0, weight_decay }
        };
        let of_unit = |unit| merged(layout.tensors(unit).map(segment));
        Segments((0..layout.count()).map(of_unit).collect())
    }

    /// The segments of a unit, cut to the elements `stored` of it.
    pub fn within(&self, unit: usize, stored: &Range<usize>) -> impl Iterator<Item = Segment> {
        let cut = move |segment: &Segment| {
            let range = segment.range.start.max(stored.start)..segment.range.end.min(stored.end);
            (!range.is_empty()).then(|| Segment { range, ..segment.clone() })
        };
        self.0[unit].iter().filter_map(cut)
    }
}

/// Joins neighbors that are updated alike, so that a unit takes few launches.
fn merged(segments: impl Iterator<Item = Segment>) -> Vec<Segment> {
    let mut merged: Vec<Segment> = Vec::new();
    for next in segments {
        match merged.last_mut().filter(|last| last.continues(&next)) {
            Some(last) => last.range.end = next.range.end,
            None => merged.push(next),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    #[test]
    fn matrices_decay_and_everything_but_padding_is_updated() {
        let layout = UnitLayout::new(&ModelConfig::new(8, 2, 2, 24), 4);
        let segments = Segments::new(&layout, 0.1);
        for unit in 0..layout.count() {
            let all: Vec<_> = segments.within(unit, &(0..layout.len(unit))).collect();
            let (matrices, end) = (layout.matrices(unit), layout.tensors(unit).map(|(_, r)| r.end).max());
            let ranges: Vec<_> = all.iter().map(|s| (s.range.clone(), s.weight_decay)).collect();
            assert_eq!(ranges, [(0..matrices, 0.1), (matrices..end.unwrap(), 0.0)]);
        }
        // The cut may fall anywhere.
        let cut: Vec<_> = segments.within(0, &(100..layout.matrices(0) + 3)).map(|s| s.range).collect();
        assert_eq!(cut, [100..layout.matrices(0), layout.matrices(0)..layout.matrices(0) + 3]);
        assert_eq!(segments.within(0, &(100..layout.matrices(0))).count(), 1);
    }
}
