//! `--write_tensors 1`: the model and what it computes from the first batch, in the files that
//! llm.c's tests and `warpsmith parity` read.

use super::Trainer;
use super::resume::Tensors;
use crate::checkpoint::{DebugState, TensorKind, model_bin};
use crate::cli::ModelSource;
use crate::cli::flags::trainer::TrainArgs;
use crate::config::ModelConfig;
use crate::params::ParamLayout;
use crate::tensor::Dtype;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// Elements of the gradient downloaded at a time.
const CHUNK: usize = 1 << 20;

impl Trainer {
    /// Writes the three files into the current directory. The run then begins as it would have
    /// without.
    ///
    /// # Errors
    /// If a file cannot be written, or the batch not be read.
    pub(super) fn write_tensors(&mut self, args: &TrainArgs) -> Result<()> {
        let config = self.replica.model.weights.config;
        let name = format!("gpt2_{}", size_name(args, &config));
        for (dtype, end) in [(Dtype::F32, ".bin"), (Dtype::Bf16, "_bf16.bin")] {
            let path = PathBuf::from(format!("{name}{end}"));
            let tensors = Tensors::of(&self.replica);
            let (zero, dev) = (&mut self.replica.zero, self.replica.dev.as_mut());
            // Master weights, where there are any, have all bits.
            let source = &mut |_, start, out: &mut [f32]| {
                zero.download(dev, tensors.get(TensorKind::Master), None, start, out)
            };
            model_bin::write(&path, &config, dtype, source).context("--write-tensors")?;
            self.report.console().line(format_args!("wrote {}", path.display()));
        }
        let path = PathBuf::from(format!("{name}_debug_state.bin"));
        self.debug_state()?.write(&path).context("--write-tensors")?;
        self.report.console().line(format_args!("wrote {}", path.display()));
        Ok(())
    }

    /// Computes the results of the next batch, and goes back to it.
    fn debug_state(&mut self) -> Result<DebugState> {
        let Trainer { replica, data, .. } = self;
        let (shape, place) = (data.shape, data.train.bookmark());
        let counted = data.train.counted(replica.zero.peers.process.world_size);
        let batch = data.train.next_batch()?;
        data.train.go_to(&place);
        let scale = self.guards.loss_scale();
        let mut logits = Vec::with_capacity(shape.rows() * replica.model.weights.config.V);
        replica.logits(&batch, shape, &mut |row| {
            logits.extend_from_slice(row);
            Ok(())
        })?;
        let stats = replica.forward_backward(|| Ok(batch.clone()), shape, 1, counted, scale, || 0.0)?;
        let mut grads = vec![0.0; ParamLayout::new(&replica.model.weights.config).len()];
        for (index, chunk) in grads.chunks_mut(CHUNK).enumerate() {
            replica.gradients(index * CHUNK, chunk)?;
            chunk.iter_mut().for_each(|grad| *grad /= scale);
        }
        let (inputs, targets) = (batch.inputs, batch.targets);
        Ok(DebugState { B: shape.B, T: shape.T, inputs, targets, logits, loss: stats.loss, grads })
    }
}

/// The part of the files' names that `train_gpt2.py` derives from the model: `124M` … for OpenAI's
/// weights, `d12` … for random ones. Models that it does not know are named by their shape.
fn size_name(args: &TrainArgs, config: &ModelConfig) -> String {
    let sizes = [("d12", "124M"), ("d24", "355M"), ("d36", "774M"), ("d48", "1558M")];
    let same = |depth: &str| ModelConfig::from_descriptor(depth).is_ok_and(|known| known == *config);
    let random = matches!(args.model_source(), Ok(ModelSource::Shape(_)));
    match sizes.iter().find(|(depth, _)| same(depth)) {
        Some((depth, _)) if random => (*depth).to_owned(),
        Some((_, size)) => (*size).to_owned(),
        None => format!("L{}_C{}", config.L, config.C),
    }
}
