//! Training of GPT-2 and GPT-3 sized language models with hand-written kernels.

pub mod app;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod eval;
pub mod libraries;
pub mod model;
pub mod ops;
pub mod optim;
pub mod parallel;
pub mod params;
pub mod report;
pub mod rng;
pub mod roofline;
pub mod sample;
pub mod tensor;
pub mod train;
pub mod units;
