//! llm.c's debug state: one batch, and what PyTorch computes from it, for tests of other
//! implementations. A header, then tokens and targets (B, T) as i32, and in f32 logits (B, T, V),
//! the mean loss, and the gradients of all parameters in the order of a model file.

use super::stream::zeros;
use crate::config::ModelConfig;
use crate::files;
use crate::llmc::{DEBUG_STATE, HEADER_BYTES, Header};
use crate::params::ParamLayout;
use anyhow::{Context, Result, ensure};
use std::io::Read;
use std::path::Path;

const VERSION: i32 = 2;

/// One forward and backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct DebugState {
    pub B: usize,
    pub T: usize,
    /// (B, T)
    pub inputs: Vec<i32>,
    /// (B, T)
    pub targets: Vec<i32>,
    /// (B, T, V)
    pub logits: Vec<f32>,
    /// Mean over all tokens, in nats.
    pub loss: f32,
    /// In the order of [`ParamLayout`].
    pub grads: Vec<f32>,
}

impl DebugState {
    /// Reads the debug state of a model of this shape.
    ///
    /// # Errors
    /// One line, if the file cannot be read, is of another kind, has another length than its header
    /// and the model say, or has tokens that the model does not know.
    pub fn read(path: &Path, config: &ModelConfig) -> Result<DebugState> {
        let (header, mut file, bytes) = Header::open(path, &DEBUG_STATE)?;
        let at = || path.display().to_string();
        let [B, T] = [2, 3].map(|field| usize::try_from(header.i32(field)).unwrap_or(0));
        ensure!(
            B > 0 && (1..=config.maxT).contains(&T),
            "{}: expected at least one sequence of 1 to {} tokens, found B = {} and T = {} in the header",
            at(),
            config.maxT,
            header.i32(2),
            header.i32(3)
        );
        let (rows, params) = (B * T, ParamLayout::new(config).len());
        // 128 bits, as the header may claim more bytes than fit in 64.
        let floats = rows as u128 * (2 + config.V as u128) + 1 + params as u128;
        let expected = HEADER_BYTES as u128 + 4 * floats;
        ensure!(
            u128::from(bytes) == expected,
            "{}: expected {expected} bytes for B = {B}, T = {T} and a model of {config}, found {bytes}; is it of \
             another model?",
            at()
        );
        let mut read = || -> Result<DebugState> {
            let mut i32s = || -> Result<Vec<i32>> {
                let mut values = vec![0; rows];
                file.read_exact(bytemuck::cast_slice_mut(&mut values))?;
                Ok(values)
            };
            let (inputs, targets) = (i32s()?, i32s()?);
            let mut f32s = |len: usize| -> Result<Vec<f32>> {
                let mut values = zeros(len)?;
                file.read_exact(bytemuck::cast_slice_mut(&mut values))?;
                Ok(values)
            };
            let (logits, loss, grads) = (f32s(rows * config.V)?, f32s(1)?[0], f32s(params)?);
            Ok(DebugState { B, T, inputs, targets, logits, loss, grads })
        };
        let state = read().with_context(|| format!("cannot read {}", at()))?;
        let known = |&token: &i32| usize::try_from(token).is_ok_and(|token| token < config.V);
        if let Some(token) = state.inputs.iter().chain(&state.targets).find(|token| !known(token)) {
            anyhow::bail!("{}: token {token} is not among the model's {} tokens", at(), config.V);
        }
        Ok(state)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let mut header = Header::new(&DEBUG_STATE, VERSION);
        for (field, value) in [(2, self.B), (3, self.T)] {
            header.set(field, i32::try_from(value).expect("a batch that fits into memory"));
        }
        files::write(path, |out| {
            header.write(out)?;
            out.write_all(bytemuck::cast_slice(&self.inputs))?;
            out.write_all(bytemuck::cast_slice(&self.targets))?;
            out.write_all(bytemuck::cast_slice(&self.logits))?;
            out.write_all(&self.loss.to_le_bytes())?;
            Ok(out.write_all(bytemuck::cast_slice(&self.grads))?)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig { maxT: 8, V: 96, Vp: 128, L: 1, NH: 2, C: 8, qkv_bias: true, lora: None }
    }

    fn state() -> DebugState {
        let floats = |len: usize| (0..len).map(|i| i as f32 - 7.5).collect();
        DebugState {
            B: 2,
            T: 3,
            inputs: (0..6).collect(),
            targets: (1..7).collect(),
            logits: floats(6 * 96),
            loss: 4.5,
            grads: floats(ParamLayout::new(&config()).len()),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        state().write(&path).unwrap();
        assert_eq!(DebugState::read(&path, &config()).unwrap(), state());
        let bytes = std::fs::read(&path).unwrap();
        let ints: Vec<i32> = bytemuck::pod_collect_to_vec(&bytes[..16]);
        assert_eq!(ints, [20240327, 2, 2, 3]);
        assert_eq!(bytes[1024..1028], 0i32.to_le_bytes());
        assert_eq!(bytes[1024 + 48 + 4 * 6 * 96..][..4], 4.5f32.to_le_bytes());
    }

    #[test]
    fn a_file_that_does_not_fit_the_model_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.bin");
        state().write(&path).unwrap();
        let whole = std::fs::read(&path).unwrap();
        let refusal = |bytes: &[u8], config: &ModelConfig| {
            std::fs::write(&path, bytes).unwrap();
            let message = format!("{:#}", DebugState::read(&path, config).unwrap_err());
            assert!(message.starts_with(&path.display().to_string()) && !message.contains('\n'), "{message}");
            message
        };
        let with = |at: usize, value: i32| {
            let mut bytes = whole.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            bytes
        };
        for (bytes, expected) in [
            (whole[..whole.len() - 1].to_vec(), "expected 11284 bytes"),
            ([&whole[..], &[0]].concat(), "found 11285"),
            (with(8, 0), "found B = 0"),
            (with(12, 9), "1 to 8 tokens"),
            (with(12, -1), "T = -1"),
            (with(8, i32::MAX), "expected"),
            (with(4, 1), "of version 2, found version 1"),
            (with(1024, 96), "token 96 is not among the model's 96 tokens"),
            (with(1024 + 44, -1), "token -1"),
            (with(0, 20240326), "expected a debug state (magic 20240327), found a model"),
        ] {
            let message = refusal(&bytes, &config());
            assert!(message.contains(expected), "{message}");
        }
        assert!(refusal(&whole, &ModelConfig { L: 2, ..config() }).contains("is it of another model?"));
    }
}
