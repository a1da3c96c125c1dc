//! How NCCL is found.

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

/// Loads the library. Returns it with its path.
///
/// # Errors
/// One line that says where it was searched for and what to do.
pub fn load() -> Result<(Library, PathBuf), Missing> {
    // SAFETY: this runs the initializers of NVIDIA's library, which any program may load.
    WANTED.load(|path| Ok(unsafe { Library::new(path) }?))
}
