//! The way in which each parameter is updated: a unit as a list of segments.

use super::optimizer::{HyperParams, OptimizerOptions};
use crate::params::Param;
use crate::sharding::UnitLayout;
use std::ops::Range;

/// The optimizer of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    AdamW,
    /// Muon of a whole matrix, of which the segment may be a part.
    Muon(Matrix),
}

/// A matrix that is orthogonalized as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Its first element in the unit.
    pub start: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Matrix {
    /// Number of elements.
    pub fn size(&self) -> usize {
        self.rows * self.columns
    }

    /// Factor on the learning rate, so that matrices of all shapes change activations alike. It is
    /// Jordan's, and the default of `torch.optim.Muon`.
    pub fn scale(&self) -> f32 {
        (self.rows as f32 / self.columns as f32).max(1.0).sqrt()
    }
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
    /// Matrices decay, and vectors never do. Muon updates the matrices of the blocks, queries, keys
    /// and values apart: they are three maps, which happen to be computed together.
    pub fn new(layout: &UnitLayout, hyper: &HyperParams, options: &OptimizerOptions) -> Self {
        let of_tensor = |unit: usize, param: Param, range: Range<usize>| {
            let spec = param.spec();
            let weight_decay = if spec.is_matrix { hyper.weight_decay } else { 0.0 };
            let lr_scale = options.lr_scales.of(param, if spec.per_layer { unit } else { 0 });
            let Some(muon) = options.muon.filter(|_| spec.is_block_matrix()) else {
                return vec![Segment { range, rule: Rule::AdamW, lr_scale, weight_decay }];
            };
            let (rows, columns) = layout.shape(param);
            let parts = if param == Param::Qkvw { 3 } else { 1 };
            let segment = |part: usize| {
                let matrix =
                    Matrix { start: range.start + part * range.len() / parts, rows: rows / parts, columns };
                let range = matrix.start..matrix.start + matrix.size();
                let lr_scale = lr_scale * muon.lr_ratio;
                Segment { range, rule: Rule::Muon(matrix), lr_scale, weight_decay }
            };
            (0..parts).map(segment).collect()
        };
        let of_unit =
            |unit| merged(layout.tensors(unit).flat_map(|(param, range)| of_tensor(unit, param, range)));
        Segments((0..layout.count()).map(of_unit).collect())
    }

    /// The segments of a unit, cut to the elements `stored` of it.
    pub fn within(&self, unit: usize, stored: Range<usize>) -> impl Iterator<Item = Segment> {
        let cut = move |segment: &Segment| {
            let range = segment.range.start.max(stored.start)..segment.range.end.min(stored.end);
            (!range.is_empty()).then(|| Segment { range, ..segment.clone() })
        };
        self.0[unit].iter().filter_map(cut)
    }

    /// The matrices of a unit that Muon updates.
    pub fn matrices(&self, unit: usize) -> impl Iterator<Item = Matrix> {
        self.0[unit].iter().filter_map(|segment| match segment.rule {
            Rule::Muon(matrix) => Some(matrix),
            Rule::AdamW => None,
        })
    }

    /// The run of elements of a unit that holds all that AdamW updates.
    pub fn adamw(&self, unit: usize) -> Range<usize> {
        let mut segments = self.0[unit].iter().filter(|segment| segment.rule == Rule::AdamW);
        let Some(first) = segments.next() else { return 0..0 };
        first.range.start..segments.next_back().unwrap_or(first).range.end
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
    use super::super::optimizer::Muon;
    use super::*;
    use crate::config::ModelConfig;

    const HYPER: HyperParams =
        HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

    fn layout() -> UnitLayout {
        UnitLayout::new(&ModelConfig::new(8, 2, 2, 24), 4)
    }

    #[test]
    fn matrices_decay_and_everything_but_padding_is_updated() {
        let layout = layout();
        let segments = Segments::new(&layout, &HYPER, &OptimizerOptions::default());
        for unit in 0..layout.count() {
            let all: Vec<_> = segments.within(unit, 0..layout.len(unit)).collect();
            let (matrices, end) = (layout.matrices(unit), layout.tensors(unit).map(|(_, r)| r.end).max());
            let ranges: Vec<_> = all.iter().map(|s| (s.range.clone(), s.weight_decay)).collect();
            assert_eq!(ranges, [(0..matrices, 0.1), (matrices..end.unwrap(), 0.0)]);
            assert_eq!(segments.adamw(unit), 0..end.unwrap());
        }
        // The cut may fall anywhere.
        let cut: Vec<_> = segments.within(0, 100..layout.matrices(0) + 3).map(|s| s.range).collect();
        assert_eq!(cut, [100..layout.matrices(0), layout.matrices(0)..layout.matrices(0) + 3]);
        assert_eq!(segments.within(0, 100..layout.matrices(0)).count(), 1);
    }

    #[test]
    fn muon_takes_the_matrices_of_the_blocks_one_by_one() {
        let layout = layout();
        let muon = Some(Muon { lr_ratio: 20.0, momentum: 0.95 });
        let options = OptimizerOptions { muon, ..OptimizerOptions::default() };
        let segments = Segments::new(&layout, &HYPER, &options);
        let shapes: Vec<_> = segments.matrices(1).map(|m| (m.rows, m.columns, m.scale())).collect();
        let square = (24, 24, 1.0);
        assert_eq!(shapes, [square, square, square, square, (96, 24, 2.0), (24, 96, 1.0)]);
        let all: Vec<_> = segments.within(1, 0..layout.len(1)).collect();
        assert!(all.windows(2).all(|pair| pair[0].range.end == pair[1].range.start));
        assert!(all[..6].iter().all(|s| s.lr_scale == 20.0 && s.weight_decay == 0.1));
        assert_eq!(segments.adamw(1).start, layout.matrices(1));
        let shared = layout.shared_unit();
        assert_eq!((segments.matrices(shared).count(), segments.adamw(shared).start), (0, 0));
    }

    #[test]
    fn rates_of_their_own_divide_segments() {
        let (layout, lr_scales) = (layout(), "h.1.fcw=0.5,wte=0".parse().unwrap());
        let options = OptimizerOptions { lr_scales, ..OptimizerOptions::default() };
        let segments = Segments::new(&layout, &HYPER, &options);
        let scales =
            |unit| segments.within(unit, 0..layout.len(unit)).map(|s| s.lr_scale).collect::<Vec<_>>();
        assert_eq!([scales(0), scales(1)], [vec![1.0; 2], vec![1.0, 0.5, 1.0, 1.0]]);
        assert_eq!(scales(layout.shared_unit()), [0.0, 1.0, 1.0]);
    }
}
