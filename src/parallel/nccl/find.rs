//! NCCL as a library to look for.

use crate::libraries::{Missing, Wanted};
use libloading::Library;
use std::path::PathBuf;

pub const WANTED: Wanted = Wanted {
    name: "NCCL",
    files: &["libnccl.so.2", "libnccl.so"],
    variable: "WARPSMITH_NCCL_LIB",
    packages: &["nccl/lib"],
    in_toolkit: false,
    install: "pip install nvidia-nccl-cu13",
};

/// The library, and where it is.
///
/// # Errors
/// One line that says where it was looked for and what to do.
pub fn load() -> Result<(Library, PathBuf), Missing> {
    // SAFETY: the initialisers of NVIDIA's library run.
    WANTED.load(|path| Ok(unsafe { Library::new(path) }?))
}
