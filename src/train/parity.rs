//! `warpsmith parity`: a model's results on the batch of a debug state, compared with the results
//! in that file as llm.c's `test_gpt2.cu` does, and the losses of ten steps on that batch.

use crate::checkpoint::{DebugState, ModelFile};
use crate::config::{DropoutRates, ModelConfig};
use crate::data::buckets::rows_by_token;
use crate::data::loader::Batch;
use crate::model::activations::Recompute;
use crate::model::{BatchShape, ModelOptions};
use crate::ops::Ops;
use crate::optim::optimizer::{HyperParams, OptimizerOptions};
use crate::params::frozen::Frozen;
use crate::params::{PARAMS, ParamLayout};
use crate::replica::peers::Peers;
use crate::replica::{Replica, ReplicaOptions, ReplicaPlan};
use crate::sharding::Sharding;
use crate::tensor::Dtype;
use anyhow::Result;

/// Steps on the batch.
pub const STEPS: usize = 10;

/// The learning rate of these steps.
const LR: f32 = 1e-4;

/// The optimizer of these steps.
const HYPER: HyperParams =
    HyperParams { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, grad_clip: 1.0 };

/// The largest factor on the loss that keeps gradients of a usual size within fp16.
const FP16_LOSS_SCALE: f32 = 1024.0;

/// Losses of OpenAI's GPT-2 124M on the batch of llm.c's debug state, by PyTorch in f32.
const LOSSES_124M: [f32; STEPS] =
    [5.270009, 4.060681, 3.320085, 2.71755, 2.181066, 1.653923, 1.16805, 0.736873, 0.401021, 0.187493];

/// Allowed differences, those of llm.c's `test_gpt2.cu`.
#[derive(Clone, Copy, Debug)]
pub struct Tolerances {
    logits: f32,
    loss: f32,
    /// By [`PARAMS`]; to each comes a share of the expected value.
    grads: [f32; 16],
    grads_share: f32,
}

impl Tolerances {
    /// The tolerances of results computed in `dtype`.
    ///
    /// llm.c allows f32 gradients a share of 0.079 as well, which is meant for bf16.
    pub fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Tolerances { logits: 1e-3, loss: 1e-5, grads: [1e-6; 16], grads_share: 1e-3 },
            _ => Tolerances {
                logits: 25.0,
                loss: 0.05,
                grads: [
                    5e-1, 4e-3, 1e-1, 4e-2, 5e-2, 3.5e-2, 2e-2, 3e-2, 5e-2, 3e-2, 3e-2, 3e-2, 2e-2, 1e-2,
                    1e-1, 2e-2,
                ],
                grads_share: 0.079,
            },
        }
    }
}

/// The comparison of one tensor, or of one loss.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub name: String,
    pub max_difference: f32,
    /// The largest difference as a share of what is allowed there; above 1 (or NaN) the tensors
    /// differ.
    pub share: f32,
    /// Index of that difference, and the values there: ours and the expected one.
    pub at: usize,
    pub ours: f32,
    pub expected: f32,
}

impl Row {
    pub fn ok(&self) -> bool {
        self.share <= 1.0
    }

    /// Compares elements; `allowed` is the difference allowed for an expected value.
    fn compare(name: &str, ours: &[f32], expected: &[f32], allowed: impl Fn(f32) -> f32) -> Row {
        let empty =
            Row { name: name.to_owned(), max_difference: 0.0, share: 0.0, at: 0, ours: 0.0, expected: 0.0 };
        let mut row = empty;
        for (at, (&ours, &expected)) in ours.iter().zip(expected).enumerate() {
            let difference = (ours - expected).abs();
            let share = difference / allowed(expected);
            // NaN counts as the largest difference.
            if at == 0 || share.is_nan() || share > row.share {
                row = Row { share, at, ours, expected, ..row };
            }
            row.max_difference =
                if difference.is_nan() { difference } else { row.max_difference.max(difference) };
            if share.is_nan() {
                break;
            }
        }
        row
    }
}

/// All comparisons, and the losses of the steps.
#[derive(Clone, Debug)]
pub struct Parity {
    /// Logits, loss, and sixteen gradients.
    pub tensors: Vec<Row>,
    pub losses: Vec<f32>,
}

/// The losses that the steps should have, if they are those of llm.c's debug state.
pub fn known_losses(config: &ModelConfig, state: &DebugState) -> Option<[f32; STEPS]> {
    let d12 = ModelConfig::from_descriptor("d12").is_ok_and(|d12| d12 == *config);
    let loss = (state.loss - LOSSES_124M[0]).abs() < 1e-4;
    (d12 && loss && (state.B, state.T) == (4, 64)).then_some(LOSSES_124M)
}

/// Compares losses of steps.
pub fn compare_losses(ours: &[f32], expected: &[f32], dtype: Dtype) -> Vec<Row> {
    let allowed = Tolerances::of(dtype).loss;
    let row = |(step, (ours, expected)): (usize, (&f32, &f32))| {
        Row::compare(&format!("loss of step {}", step + 1), &[*ours], &[*expected], |_| allowed)
    };
    ours.iter().zip(expected).enumerate().map(row).collect()
}

/// Runs the model of `file` on the batch of `state`, and compares logits, loss and gradients; then
/// takes ten steps on that batch.
///
/// # Errors
/// If the device fails, or has too little memory.
pub fn run(state: &DebugState, file: &ModelFile, dev: Box<dyn Ops>) -> Result<Parity> {
    let config = file.config;
    let tolerances = Tolerances::of(dev.operand_dtype());
    let shape = BatchShape::new(state.B, state.T);
    let mut replica = replica(&config, shape, dev)?;
    replica.load(&file.params)?;
    let scale = if replica.dev.float_dtype() == Dtype::F16 { FP16_LOSS_SCALE } else { 1.0 };
    let batch = Batch {
        inputs: state.inputs.clone(),
        targets: state.targets.clone(),
        rows_by_token: rows_by_token(&state.inputs),
        packed: None,
    };

    let mut logits = Vec::with_capacity(state.logits.len());
    replica.logits(&batch, shape, &mut |row| {
        logits.extend_from_slice(row);
        Ok(())
    })?;
    let mut tensors = vec![Row::compare("logits", &logits, &state.logits, |_| tolerances.logits)];
    let mut losses = Vec::new();
    for step in 0..STEPS {
        let stats = replica.forward_backward(|| Ok(batch.clone()), shape, 1, shape.rows(), scale, || 0.0)?;
        losses.push(stats.loss);
        if step == 0 {
            tensors.push(Row::compare("loss", &[stats.loss], &[state.loss], |_| tolerances.loss));
            tensors.extend(gradients(&mut replica, &state.grads, scale, &tolerances)?);
        }
        replica.update(step, LR, stats.norm, scale)?;
    }
    Ok(Parity { tensors, losses })
}

fn replica(config: &ModelConfig, shape: BatchShape, dev: Box<dyn Ops>) -> Result<Replica> {
    let model = ModelOptions {
        B: shape.B,
        T: shape.T,
        min_rows: 0,
        recompute: Recompute::Gelu,
        dropout: DropoutRates::NONE,
        logits_bytes: dev.logits_bytes(),
        sharding: Sharding::NONE,
        frozen: Frozen::default(),
    };
    let options = ReplicaOptions {
        model,
        hyper: HYPER,
        optimizer: OptimizerOptions::default(),
        use_master_weights: true,
        decode_context: None,
    };
    ReplicaPlan::new(*config, options, dev.as_ref())?.allocate(dev, Peers::alone(), false)
}

/// Compares the gradients of the sixteen parameter tensors, one by one.
fn gradients(
    replica: &mut Replica,
    expected: &[f32],
    scale: f32,
    tolerances: &Tolerances,
) -> Result<Vec<Row>> {
    let layout = ParamLayout::new(&replica.model.weights.config);
    let mut rows = Vec::new();
    for (spec, threshold) in PARAMS.iter().zip(tolerances.grads) {
        let range = layout.range(spec.param);
        let mut ours = vec![0.0; range.len()];
        replica.gradients(range.start, &mut ours)?;
        ours.iter_mut().for_each(|grad| *grad /= scale);
        let allowed = |expected: f32| threshold + tolerances.grads_share * expected.abs();
        rows.push(Row::compare(&format!("d{}", spec.name), &ours, &expected[range], allowed));
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_element_is_named_and_nan_is_the_worst() {
        let row = |ours: &[f32]| Row::compare("x", ours, &[1.0, 2.0, 100.0], |expected| 0.1 * expected);
        let found = row(&[1.05, 2.3, 101.0]);
        assert_eq!((found.at, found.ours, found.expected, found.ok()), (1, 2.3, 2.0, false));
        assert_eq!(found.max_difference, 1.0);
        assert!(row(&[1.05, 2.1, 101.0]).ok());
        let nan = row(&[1.0, f32::NAN, 500.0]);
        assert!(!nan.ok() && nan.at == 1 && nan.max_difference.is_nan(), "{nan:?}");
        assert!(!row(&[f32::INFINITY, 2.0, 100.0]).ok());
    }
}
