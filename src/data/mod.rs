//! Text and tokens: corpora become token shards, and shards become batches.

pub mod buckets;
mod documents;
pub mod filter;
pub mod imported;
pub mod learn;
pub mod loader;
pub mod mask;
mod order;
pub mod prepare;
pub mod remote;
pub mod sft;
pub mod shard;
pub mod stories;
pub mod tokenizer;
