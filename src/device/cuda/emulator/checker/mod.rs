//! The checker.

mod hooks;
