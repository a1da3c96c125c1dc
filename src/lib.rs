//! Training of GPT-2 and GPT-3 sized language models with hand-written kernels.
//!
//! A [`model`] is a fixed list of [operations](ops::Ops) on planned buffers; a [`device`]
//! carries them out; [`train`] runs steps and keeps checkpoints. The programs
//! `train_gpt2`, `train_gpt2cu` and `warpsmith` are thin shells around [`app`].
//!
//! Memory is planned first, as handles, and allocated once. Operations take handles, so the same
//! code runs on every device:
//!
//! ```
//! use warpsmith::device::cpu::{Cpu, matmul::Precision};
//! use warpsmith::ops::{Device, Epilogue, MatmulForward, Ops, download_f32, upload_f32};
//! use warpsmith::tensor::{Dtype, MemoryPlan};
//!
//! # fn main() -> anyhow::Result<()> {
//! let (N, C, OC) = (2, 3, 2);
//! let mut plan = MemoryPlan::new();
//! let inp = plan.add("activations", "inp", Dtype::F32, N * C);
//! let weight = plan.add("parameters", "weight", Dtype::F32, OC * C);
//! let bias = plan.add("parameters", "bias", Dtype::F32, OC);
//! let out = plan.add("activations", "out", Dtype::F32, N * OC);
//!
//! let mut dev = Cpu::new(Precision::F32)?;
//! dev.allocate(&plan)?;
//! upload_f32(&mut dev, inp, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
//! upload_f32(&mut dev, weight, &[1.0, 0.0, 0.0, 0.0, 1.0, 1.0])?;
//! upload_f32(&mut dev, bias, &[10.0, 20.0])?;
//!
//! // out (N, OC) = inp (N, C) @ weight (OC, C)ᵀ + bias
//! let epilogue = Epilogue::Bias { bias };
//! dev.matmul_forward(MatmulForward { out, inp, weight, epilogue, N, C, OC })?;
//! let mut host = [0.0; 4];
//! download_f32(&mut dev, &mut host, out)?;
//! assert_eq!(host, [11.0, 25.0, 14.0, 31.0]);
//! # Ok(())
//! # }
//! ```
//!
//! Modules, from the ground up:
//!
//! - [`tensor`]: handles and the memory plan.
//! - [`config`], [`params`], [`sharding`]: shapes, the sixteen parameter tensors, and their order
//!   on a device.
//! - [`files`], [`llmc`]: files that appear complete or not at all; llm.c's kinds of file.
//! - [`rng`]: PyTorch's random numbers, bit for bit.
//! - [`ops`]: the contract between model and device.
//! - [`device`]: the CPU, GPUs, and the emulated device.
//! - [`model`]: forward, backward, decoding, initialization.
//! - [`optim`]: AdamW, schedules, loss scaling, outlier detection.
//! - [`hub`]: datasets and models of the Hugging Face hub.
//! - [`data`]: tokenizer, token shards, loader.
//! - [`checkpoint`]: llm.c's files, safetensors, the state of a run.
//! - [`parallel`]: ranks, rendezvous, transports, collectives.
//! - [`replica`]: the training step and ZeRO, on one device.
//! - [`recorder`]: a device and a communicator that record what they are asked for.
//! - [`trace`]: a device that times the operations of a step.
//! - [`numerics`]: a device that finds the first number that is not finite.
//! - [`train`]: set-up, the run, resume.
//! - [`eval`], [`sample`]: validation and HellaSwag; text generation.
//! - [`report`]: console, logs, plots.
//! - [`track`], [`watch`]: TensorBoard and MLflow; a page that shows runs.
//! - [`serve`]: a model behind OpenAI's API; [`http`]: the server below it and [`watch`].
//! - [`roofline`]: predicted step times.
//! - [`libraries`]: the search for cuBLASLt and NCCL.
//! - [`cli`], [`app`]: flags, and the programs that take them.

pub mod app;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod eval;
pub mod files;
pub mod gpus;
pub mod http;
pub mod hub;
pub mod libraries;
pub mod llmc;
pub mod memory;
pub mod model;
pub mod numerics;
pub mod nvtx;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod params;
pub mod recorder;
pub mod replica;
pub mod report;
pub mod rng;
pub mod roofline;
pub mod sample;
pub mod serve;
pub mod sharding;
pub mod simd;
pub mod tensor;
pub mod trace;
pub mod track;
pub mod train;
pub mod watch;
pub mod words;
