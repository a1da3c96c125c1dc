//! (to come)

pub mod stories;
