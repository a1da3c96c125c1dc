//! Text and tokens: corpora become token shards, shards become batches.

pub mod loader;
mod order;
pub mod shard;
