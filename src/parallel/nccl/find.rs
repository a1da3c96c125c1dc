//! Where NCCL may be: on the loader's path, or in NVIDIA's Python package, whose directory no loader searches.

use anyhow::{Result, anyhow};
use libloading::Library;
use std::path::{Path, PathBuf};

/// Names it by path, and then no other is tried.
const VARIABLE: &str = "WARPSMITH_NCCL_LIB";

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];

/// The library, and what it was found as.
///
/// # Errors
/// One line that says where it was looked for and what to do.
pub fn load() -> Result<(Library, String)> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        return open(&path).map_err(|e| anyhow!("{VARIABLE}={}: {e}", path.display()));
    }
    let mut why = String::new();
    for name in NAMES {
        match open(Path::new(name)) {
            Ok(library) => return Ok(library),
            // The first name is the one that everybody installs.
            Err(e) if why.is_empty() => why = e.to_string(),
            Err(_) => {}
        }
    }
    let pythons = pythons();
    let found = pythons.iter().flat_map(|python| packages(python)).find(|path| path.is_file());
    match found {
        Some(path) => open(&path).map_err(|e| anyhow!("{}: {e}", path.display())),
        None => Err(anyhow!(
            "NCCL was not found: the loader has no {} ({why}), and there is no nvidia/nccl/lib in the Python packages under {}; \
             install it (pip install nvidia-nccl-cu13), or name libnccl.so.2 in {VARIABLE}",
            NAMES.join(" or "),
            pythons.iter().map(|python| python.display().to_string()).collect::<Vec<_>>().join(", ")
        )),
    }
}

fn open(path: &Path) -> Result<(Library, String), libloading::Error> {
    // SAFETY: the initialisers of NVIDIA's library run.
    let library = unsafe { Library::new(path) }?;
    Ok((library, path.display().to_string()))
}

/// Python installations.
fn pythons() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let local = set("HOME").map(|home| home.join(".local"));
    set("VIRTUAL_ENV").into_iter().chain(local).chain(["/usr/local".into(), "/usr".into()]).collect()
}

/// Where NVIDIA's package has it in a Python installation.
fn packages(python: &Path) -> Vec<PathBuf> {
    let pattern = python.join("lib/python3*/*-packages/nvidia/nccl/lib");
    let found = pattern.to_str().and_then(|pattern| glob::glob(pattern).ok());
    found.into_iter().flatten().filter_map(Result::ok).map(|dir| dir.join(NAMES[0])).collect()
}
