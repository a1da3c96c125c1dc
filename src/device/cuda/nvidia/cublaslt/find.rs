//! Where cuBLASLt may be: with the toolkit, or in one of NVIDIA's Python packages, whose directories no loader searches.

use anyhow::{Context, Result, anyhow, bail};
use cudarc::cublaslt::sys;
use std::path::{Path, PathBuf};

/// Names it by path where the search does not find it.
const VARIABLE: &str = "WARPSMITH_CUBLASLT";

const NAMES: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];

/// After this the library can be called. Where it is not on the loader's path it is loaded from where it is found; cudarc, which asks
/// for it by name, then gets the one already loaded.
pub fn load() -> Result<()> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(path);
        keep(&path).with_context(|| format!("{VARIABLE}={}", path.display()))?;
    // SAFETY: loads a library of NVIDIA's.
    } else if !unsafe { sys::is_culib_present() } {
        let found =
            directories().into_iter().flat_map(|dir| NAMES.map(|name| dir.join(name))).find(|p| p.is_file());
        let Some(path) = found else {
            bail!(
                "cuBLASLt was not found: install it (pip install nvidia-cublas), or name libcublasLt.so.13 in {VARIABLE}"
            );
        };
        keep(&path)?;
    }
    // SAFETY: as above.
    match unsafe { sys::is_culib_present() } {
        true => Ok(()),
        false => Err(anyhow!("cuBLASLt was loaded, but not as {}", NAMES.join(" or "))),
    }
}

/// Loads a library for good.
fn keep(path: &Path) -> Result<()> {
    // SAFETY: the initialisers of NVIDIA's library run.
    let library =
        unsafe { libloading::Library::new(path) }.map_err(|e| anyhow!("{}: {e}", path.display()))?;
    std::mem::forget(library);
    Ok(())
}

fn directories() -> Vec<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set);
    let toolkits =
        homes.chain(["/usr/local/cuda".into()]).flat_map(|home| [home.join("lib64"), home.join("lib")]);
    let local = set("HOME").map(|home| home.join(".local"));
    let pythons = set("VIRTUAL_ENV").into_iter().chain(local).chain(["/usr/local".into(), "/usr".into()]);
    toolkits.chain(pythons.flat_map(packages)).collect()
}

/// NVIDIA's packages in a Python installation: one for CUDA 13, one for 12.
fn packages(python: PathBuf) -> Vec<PathBuf> {
    let pattern = python.join("lib/python3*/*-packages/nvidia");
    let found = pattern.to_str().and_then(|pattern| glob::glob(pattern).ok());
    let nvidia: Vec<PathBuf> = found.into_iter().flatten().filter_map(Result::ok).collect();
    nvidia.into_iter().flat_map(|dir| [dir.join("cu13/lib"), dir.join("cublas/lib")]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_packages_are_searched() {
        let python = tempfile::tempdir().unwrap();
        let nvidia = python.path().join("lib/python3.12/site-packages/nvidia");
        std::fs::create_dir_all(nvidia.join("cu13/lib")).unwrap();
        assert_eq!(packages(python.path().into()), [nvidia.join("cu13/lib"), nvidia.join("cublas/lib")]);
    }
}
