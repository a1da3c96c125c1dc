//! Writing text: picking the next token from logits ([`Sampler`]) and continuing a prompt
//! ([`generate`]).

mod generate;
mod sampler;

pub use generate::{Continuation, Finish, generate};
pub use sampler::{Sampler, SamplerOptions};
