//! Every kernel against the CPU device, operation by operation: on the emulated device, plain and
//! with its checker, under several schedules; or, with `WARPSMITH_TEST_DEVICE=cuda`, on the GPU of
//! this machine.

mod devices;
#[path = "../common/gpus.rs"]
mod gpus;
mod harness;

mod adamw;
mod add;
mod attention;
mod classifier;
mod copies;
mod dropout;
mod encoder;
mod gelu;
mod layernorm;
mod matmul;
mod matmul_waves;
mod muon;
mod reduce;
mod scale;
