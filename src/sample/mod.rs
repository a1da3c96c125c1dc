//! Writing text: picking the next token from logits ([`Sampler`]), continuing a prompt
//! ([`generate`]) and answering in a conversation ([`Session`]).

mod generate;
mod marks;
mod sampler;
mod session;
mod tail;

pub use generate::{Continuation, Finish, generate};
pub use marks::UpToMark;
pub use sampler::{Sampler, SamplerOptions};
pub use session::{Ending, Session};
pub use tail::Tail;
