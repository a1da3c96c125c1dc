//! NaN hunting: the first tensor of a step that is not finite, by its name, layer and operation.

use super::Trainer;
use crate::data::loader::Bookmark;
use crate::numerics::{Finding, Padding, Phase, Watch};
use crate::ops::Call;
use crate::params::Param;
use crate::replica::Replica;
use crate::sharding::ParamBuffer;
use crate::tensor::{MemoryPlan, Tensor};
use crate::trace::{Names, describe};
use anyhow::{Result, bail};

/// The watch over the device, and what it needs to name tensors.
pub struct Hunt {
    pub watch: Watch,
    /// Whether every step is watched: `--check-numerics`.
    pub always: bool,
    pub memory: MemoryPlan,
}

impl Hunt {
    /// Watches the next step, if every step is watched.
    pub fn begin_step(&self, replica: &Replica) {
        if self.always {
            self.begin(replica);
        }
    }

    /// The first number that is not finite since the step began, or since the last call.
    pub fn found(&self, replica: &Replica) -> Option<String> {
        self.watch.take().map(|finding| self.describe(replica, &finding))
    }

    /// # Errors
    /// If a tensor of a step that is watched is not finite, though its loss and norm are.
    pub fn ensure_finite(&self, replica: &Replica, step: usize) -> Result<()> {
        match self.found(replica) {
            Some(found) => bail!("--check-numerics: step {}: first not finite: {found}", step + 1),
            None => Ok(()),
        }
    }

    /// Watches the next operations.
    fn begin(&self, replica: &Replica) {
        self.watch.begin(padding(replica));
    }

    /// `fch_gelu of layer 3, written by matmul_forward in the forward pass of micro-step 1 …`.
    fn describe(&self, replica: &Replica, finding: &Finding) -> String {
        let Finding { call, tensor, index, value, source, phase, micro_step } = finding;
        let layer = layer_of(replica, call);
        let name = |tensor: Tensor| {
            let (name, own) = self.name(replica, tensor);
            let layer = own.or(layer).map_or(String::new(), |layer| format!(" of layer {layer}"));
            format!("{name}{layer}")
        };
        let place = match phase {
            Phase::Forward => format!(" in the forward pass of micro-step {micro_step}"),
            Phase::Backward => format!(" in the backward pass of micro-step {micro_step}"),
            Phase::Update => String::new(),
        };
        let read = source.map_or(String::new(), |source| {
            format!(", which read {} that was not finite before", name(source))
        });
        let process = &replica.zero.peers.process;
        let rank = if process.world_size > 1 { format!(" on rank {}", process.rank) } else { String::new() };
        format!(
            "{}, written by {}{place}{rank} ({value} at {index} of {}){read}",
            name(*tensor),
            describe(call).name,
            tensor.len
        )
    }

    /// The name of a tensor, and its layer if only one has it.
    fn name(&self, replica: &Replica, tensor: Tensor) -> (String, Option<usize>) {
        let (model, stored) = (&replica.model, replica.zero.params());
        let label = |params: &ParamBuffer| {
            let (params, stored) = (params.clone(), stored.clone());
            let (name, layer) = Names { memory: self.memory.clone(), params, stored }.label(tensor);
            (name.unwrap_or("a tensor").to_owned(), layer)
        };
        if model.grads().place_of(tensor).is_some() {
            let (name, layer) = label(model.grads());
            return (format!("the gradient of {name}"), layer);
        }
        let (name, layer) = label(&model.weights.params);
        (name, layer.or_else(|| model.acts.layer_of(tensor)))
    }
}

/// The layer that an operation works on, by the first of its tensors that tells.
fn layer_of(replica: &Replica, call: &Call) -> Option<usize> {
    let model = &replica.model;
    let tensors = call.tensors();
    let unit = |tensor: Tensor| {
        [&model.weights.params, model.grads()].into_iter().find_map(|params| {
            let (unit, _) = params.place_of(tensor)?;
            // Layers share memory where they are sharded.
            let alone = params.aliases(unit).len() == 1;
            alone.then_some(unit % params.layout.count())
        })
    };
    let shared = model.weights.params.layout.shared_unit();
    let tells = |&(tensor, _): &(Tensor, _)| unit(tensor).or_else(|| model.acts.layer_of(tensor));
    tensors.iter().find_map(tells).filter(|&unit| unit != shared)
}

/// The elements past the vocabulary, in logits, in embeddings and in all that belongs to these.
fn padding(replica: &Replica) -> Vec<Padding> {
    let Replica { zero, model, optimizer, .. } = replica;
    let config = &model.weights.config;
    let logits = Padding { tensor: model.acts.logits, width: config.Vp, used: config.V };
    let buffers =
        [&model.weights.params, zero.params(), model.grads(), zero.grads(), &optimizer.m, &optimizer.v];
    let buffers = buffers.into_iter().chain(&optimizer.master);
    let rows = |buffer: &ParamBuffer| {
        let layout = &buffer.layout;
        let (unit, wte) = layout.find(Param::Wte, 0)?;
        let past = wte.start + config.V * config.C..wte.end;
        let (_, tensor) = buffer.overlap(unit, past)?;
        Some(Padding { tensor, width: tensor.len, used: 0 })
    };
    [logits].into_iter().chain(buffers.filter_map(rows)).collect()
}

impl Trainer {
    /// Names the first tensor that was not finite in `step`, which diverged. Unless the step was
    /// watched, it is repeated from its `place` in the data: its parameters are as they were.
    pub(super) fn hunt(&mut self, step: usize, place: &Bookmark, loss_scale: f32) -> Result<String> {
        let Trainer { replica, data, hunt, .. } = self;
        let elsewhere = || "a tensor of another rank, or a sum over ranks".to_owned();
        if hunt.always {
            return Ok(hunt.found(replica).unwrap_or_else(elsewhere));
        }
        data.train.go_to(place);
        data.begin_step();
        hunt.begin(replica);
        let (shape, steps) = (data.shape, data.grad_accum_steps(step));
        let counted = data.counted(steps);
        let next_batch = || data.train.next_batch();
        let stats = replica.forward_backward(next_batch, shape, steps, counted, loss_scale, || 0.0)?;
        hunt.watch.end();
        if stats.loss.is_finite() && stats.norm.is_finite() {
            return Ok("nothing when the step was repeated".to_owned());
        }
        Ok(hunt.found(replica).unwrap_or_else(elsewhere))
    }
}
