//! Text and tokens: corpora become token shards, shards become batches.

mod documents;
pub mod groups;
pub mod loader;
mod order;
pub mod prepare;
pub mod shard;
pub mod stories;
pub mod tokenizer;
