//! The optimizer of a model: its state, and the update of each unit, segment by segment.

use super::lr_scale::LrScales;
use super::segments::{Matrix, Rule, Segment, Segments};
use crate::ops::{AdamW, MuonMomentum, MuonStep, NewtonSchulz, Ops};
use crate::sharding::{ParamBuffer, Partition, UnitLayout};
use crate::tensor::{Dtype, MemoryPlan, Tensor};
use anyhow::Result;
use std::fmt;

/// The hyper-parameters, which are constant over a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HyperParams {
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    /// Applies to matrices; vectors never decay.
    pub weight_decay: f32,
    /// Largest global gradient norm; 0 turns clipping off.
    pub grad_clip: f32,
}

impl fmt::Display for HyperParams {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let HyperParams { beta1, beta2, eps, weight_decay, grad_clip } = self;
        write!(
            f,
            "beta1 {beta1}, beta2 {beta2}, epsilon {eps}, weight decay {weight_decay}, clip {grad_clip}"
        )
    }
}

/// The optimizer of the blocks' matrices; AdamW updates all other parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OptimizerKind {
    #[default]
    Adamw,
    Muon,
}

/// The type of m and v.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum StateType {
    #[default]
    F32,
    /// Rounded stochastically.
    Bf16,
}

impl StateType {
    pub fn dtype(self) -> Dtype {
        match self {
            StateType::F32 => Dtype::F32,
            StateType::Bf16 => Dtype::Bf16,
        }
    }
}

/// The settings of Muon.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Muon {
    /// Its learning rate as a multiple of AdamW's, so that both follow one schedule.
    pub lr_ratio: f32,
    pub momentum: f32,
}

/// The choices besides [`HyperParams`]. By default AdamW updates all parameters at one rate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OptimizerOptions {
    pub muon: Option<Muon>,
    pub state: StateType,
    pub lr_scales: LrScales,
}

impl fmt::Display for OptimizerOptions {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let OptimizerOptions { muon, state, lr_scales } = self;
        match muon {
            Some(Muon { lr_ratio, momentum }) => write!(f, "muon, {lr_ratio} x LR, momentum {momentum}")?,
            None => write!(f, "adamw")?,
        }
        write!(f, ", state {}, LR scales {lr_scales}", state.dtype())
    }
}

/// Moments and master weights, laid out like the parameters. When they are sharded, these are one
/// rank's partition.
pub struct Optimizer {
    /// The exact result of the updates; the model's parameters are these, rounded.
    pub master: Option<ParamBuffer>,
    /// The first moment; for Muon's matrices the momentum.
    pub m: ParamBuffer,
    /// The second moment, of parameters that AdamW updates.
    pub v: ParamBuffer,
    hyper: HyperParams,
    options: OptimizerOptions,
    segments: Segments,
    /// Memory of an orthogonalization, if Muon updates anything.
    work: Option<Tensor>,
}

/// The values that change from update to update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Update {
    pub lr: f32,
    /// Gradients are multiplied by this first.
    pub grad_scale: f32,
    /// The number of the update, from 1.
    pub t: usize,
}

impl Update {
    /// The seed of stochastic rounding: a function of the step alone, so a resumed run rounds as an
    /// uninterrupted one would.
    fn seed(&self) -> u32 {
        self.t as u32
    }
}

impl Optimizer {
    /// Plans the state of `partition`. f32 master weights are kept only when parameters, whose type
    /// is `params`, are narrower; f32 parameters need none.
    pub fn plan(
        layout: &UnitLayout,
        partition: Partition,
        params: Dtype,
        use_master_weights: bool,
        (hyper, options): (HyperParams, OptimizerOptions),
        plan: &mut MemoryPlan,
    ) -> Self {
        const ARENA: &str = "optimizer state";
        let segments = Segments::new(layout, &hyper, &options);
        let wanted = use_master_weights && params != Dtype::F32;
        let master =
            wanted.then(|| ParamBuffer::plan(layout, partition, Dtype::F32, (ARENA, "master weights"), plan));
        let state = options.state.dtype();
        let m = ParamBuffer::plan(layout, partition, state, (ARENA, "m"), plan);
        let used = |unit| match options.muon {
            Some(_) => segments.adamw(unit),
            None => 0..layout.len(unit),
        };
        let v = ParamBuffer::plan_used(layout, partition, used, state, (ARENA, "v"), plan);
        let matrices = (0..layout.count()).flat_map(|unit| segments.matrices(unit));
        let len = matrices.map(|matrix| NewtonSchulz::work_len(matrix.rows, matrix.columns)).max();
        let work = len.map(|len| plan.add("orthogonalization", "work", params, len));
        Optimizer { master, m, v, hyper, options, segments, work }
    }

    pub fn options(&self) -> &OptimizerOptions {
        &self.options
    }

    pub fn hyper(&self) -> &HyperParams {
        &self.hyper
    }

    /// The partition of each unit that this updates.
    pub fn partition(&self) -> Partition {
        self.m.partition
    }

    /// The factor that brings gradients of this norm down to the clipping threshold; at most 1.
    pub fn clip_scale(&self, norm: f32) -> f32 {
        match self.hyper.grad_clip {
            clip if clip > 0.0 && norm > clip => clip / norm,
            _ => 1.0,
        }
    }

    /// Updates a unit of which this stores all.
    pub fn update(
        &self,
        dev: &mut dyn Ops,
        unit: usize,
        params: &ParamBuffer,
        grads: &ParamBuffer,
        update: Update,
    ) -> Result<()> {
        self.begin(dev, unit, params, grads, update)?;
        for matrix in self.matrices(unit) {
            self.orthogonalize(dev, grads.units()[unit], matrix)?;
        }
        self.apply(dev, unit, params, grads, update)
    }

    /// The matrices of a unit that have to be orthogonalized between [`begin`](Self::begin) and
    /// [`apply`](Self::apply).
    pub fn matrices(&self, unit: usize) -> impl Iterator<Item = Matrix> {
        self.segments.matrices(unit)
    }

    /// Does all of the update of [`partition`](Self::partition) that needs no whole matrix: that of
    /// AdamW's parameters, and Muon's momentum. The gradients of its matrices become directions.
    pub fn begin(
        &self,
        dev: &mut dyn Ops,
        unit: usize,
        params: &ParamBuffer,
        grads: &ParamBuffer,
        update: Update,
    ) -> Result<()> {
        for segment in self.segments_of(unit) {
            let part = self.part(unit, &segment, params, grads);
            match (segment.rule, self.options.muon) {
                (Rule::Muon(_), Some(Muon { momentum, .. })) => dev.muon_momentum(MuonMomentum {
                    grads: part.grads,
                    m: part.m,
                    momentum,
                    grad_scale: update.grad_scale,
                    seed: update.seed(),
                    first: part.first,
                })?,
                _ => self.adamw(dev, &part, &segment, update)?,
            }
        }
        Ok(())
    }

    /// Orthogonalizes a matrix in `directions`, those of a whole unit.
    pub fn orthogonalize(&self, dev: &mut dyn Ops, directions: Tensor, matrix: Matrix) -> Result<()> {
        let Matrix { start, rows, columns } = matrix;
        let work = self.work.expect("planned where there are matrices");
        dev.newton_schulz(NewtonSchulz { x: directions.slice(start, matrix.size()), work, rows, columns })
    }

    /// Takes the steps of Muon in [`partition`](Self::partition). `directions` may hold the whole
    /// unit, or that partition.
    pub fn apply(
        &self,
        dev: &mut dyn Ops,
        unit: usize,
        params: &ParamBuffer,
        directions: &ParamBuffer,
        update: Update,
    ) -> Result<()> {
        for segment in self.segments_of(unit) {
            let Rule::Muon(matrix) = segment.rule else { continue };
            let part = self.part(unit, &segment, params, directions);
            dev.muon_step(MuonStep {
                params: part.params,
                master: part.master,
                direction: part.grads,
                lr: segment.lr_scale * update.lr,
                scale: matrix.scale(),
                weight_decay: segment.weight_decay,
                seed: update.seed(),
                first: part.first,
            })?;
        }
        Ok(())
    }

    fn adamw(&self, dev: &mut dyn Ops, part: &Part, segment: &Segment, update: Update) -> Result<()> {
        let HyperParams { beta1, beta2, eps, .. } = self.hyper;
        dev.adamw(AdamW {
            params: part.params,
            master: part.master,
            m: part.m,
            v: part.v.expect("stored for all that AdamW updates"),
            grads: part.grads,
            weight_decay: segment.weight_decay,
            lr: segment.lr_scale * update.lr,
            beta1,
            beta2,
            eps,
            grad_scale: update.grad_scale,
            t: update.t,
            seed: update.seed(),
            first: part.first,
        })
    }

    fn segments_of(&self, unit: usize) -> impl Iterator<Item = Segment> {
        self.segments.within(unit, self.m.layout.partition(unit, self.partition()))
    }

    /// The tensors of a segment, which is inside the partition.
    fn part(&self, unit: usize, segment: &Segment, params: &ParamBuffer, grads: &ParamBuffer) -> Part {
        let of = |buffer: &ParamBuffer| {
            let found = buffer.overlap(unit, segment.range.clone());
            found.map(|(_, tensor)| tensor).filter(|tensor| tensor.len == segment.range.len())
        };
        let stored = |buffer| of(buffer).expect("a segment that is stored");
        Part {
            params: stored(params),
            master: self.master.as_ref().map(stored),
            m: stored(&self.m),
            v: of(&self.v),
            grads: stored(grads),
            first: (self.m.layout.first(unit) + segment.range.start) as u64,
        }
    }
}

/// The tensors of a segment.
struct Part {
    params: Tensor,
    master: Option<Tensor>,
    m: Tensor,
    v: Option<Tensor>,
    grads: Tensor,
    /// Index of the first element among all parameters.
    first: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;

    const HYPER: HyperParams =
        HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

    fn plan(partition: Partition, params: Dtype, use_master_weights: bool, hyper: HyperParams) -> Optimizer {
        let layout = UnitLayout::new(&ModelConfig::new(8, 2, 2, 8), partition.of);
        let settings = (hyper, OptimizerOptions::default());
        Optimizer::plan(&layout, partition, params, use_master_weights, settings, &mut MemoryPlan::new())
    }

    #[test]
    fn only_narrow_parameters_need_master_weights() {
        let master = |params, wanted| plan(Partition::WHOLE, params, wanted, HYPER).master.map(|m| m.dtype());
        assert_eq!(master(Dtype::Bf16, true), Some(Dtype::F32));
        assert_eq!(master(Dtype::F16, true), Some(Dtype::F32));
        assert_eq!(master(Dtype::Bf16, false), None);
        assert_eq!(master(Dtype::F32, true), None);
    }

    /// A layer has 12 C² elements in matrices and 13 C in vectors; v has the vectors alone.
    #[test]
    fn muon_stores_no_v_for_its_matrices() {
        let config = ModelConfig::new(8, 2, 2, 16);
        for (of, vs) in [(1, vec![13 * 16]), (2, vec![0, 13 * 16])] {
            let layout = UnitLayout::new(&config, of);
            for (index, expected) in vs.into_iter().enumerate() {
                let muon = Some(Muon { lr_ratio: 1.0, momentum: 0.95 });
                let options = OptimizerOptions { muon, state: StateType::Bf16, ..Default::default() };
                let mut plan = MemoryPlan::new();
                let partition = Partition { index, of };
                let optimizer =
                    Optimizer::plan(&layout, partition, Dtype::F32, true, (HYPER, options), &mut plan);
                let Optimizer { m, v, .. } = &optimizer;
                assert_eq!((m.units()[0].len, v.units()[0].len), (layout.len(0) / of, expected));
                assert_eq!((m.dtype(), v.dtype()), (Dtype::Bf16, Dtype::Bf16));
                // All of the embeddings, but not the padding.
                assert!((layout.len(2) / of - v.units()[2].len) < 128);
            }
        }
    }

    #[test]
    fn clipping_only_ever_shrinks() {
        let scale = |grad_clip, norm| {
            plan(Partition::WHOLE, Dtype::F32, true, HyperParams { grad_clip, ..HYPER }).clip_scale(norm)
        };
        assert_eq!(scale(1.0, 0.5), 1.0);
        assert_eq!(scale(1.0, 4.0), 0.25);
        assert_eq!(scale(0.0, 4.0), 1.0);
    }
}
