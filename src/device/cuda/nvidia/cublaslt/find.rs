//! cuBLASLt as a library to look for, and which one was found.

use crate::libraries::{Missing, Wanted};
use anyhow::{Result, anyhow, ensure};
use cudarc::cublaslt::sys;
use libloading::Library;
use std::fmt;
use std::path::{Path, PathBuf};

const WANTED: Wanted = Wanted {
    name: "cuBLASLt",
    files: &["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"],
    variable: "WARPSMITH_CUBLASLT",
    packages: &["cu13/lib", "cublas/lib"],
    in_toolkit: true,
    install: "pip install nvidia-cublas",
};

/// The functions called here have been the same in these major versions.
const OLDEST: usize = 120_000;
const NEXT_MAJOR: usize = 140_000;

/// The library in use.
#[derive(Clone, Debug)]
pub struct Found {
    /// `130002`
    version: usize,
    path: PathBuf,
}

/// `13.0.2 from /usr/local/cuda/lib64/libcublasLt.so.13`
impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} from {}", show(self.version), self.path.display())
    }
}

fn show(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

type GetVersion = unsafe extern "C" fn() -> usize;

/// After this the library can be called. It is loaded from where it is found; cudarc, which asks for it by name, then gets the one
/// already loaded.
///
/// # Errors
/// One line: it is nowhere; or it is another version than expected, named with its path.
pub fn load() -> Result<Found, Missing> {
    // SAFETY: the initialisers of NVIDIA's library run.
    let (library, path) = WANTED.load(|path| Ok(unsafe { Library::new(path) }?))?;
    let found = known(&library, &path).map_err(|why| Missing::Unusable(format!("{why:#}")))?;
    // For good: cudarc has taken functions of it.
    std::mem::forget(library);
    Ok(found)
}

fn known(library: &Library, path: &Path) -> Result<Found> {
    const SYMBOL: &str = "cublasLtGetVersion";
    let Wanted { files, variable, install, .. } = WANTED;
    let shown = path.display();
    let expected = || {
        let (oldest, next) = (show(OLDEST), show(NEXT_MAJOR));
        format!(
            "expected cuBLASLt {oldest} or newer, below {next}; install it ({install}), or name another in {variable}"
        )
    };
    // SAFETY: of the type that cublasLt.h declares.
    let get = *unsafe { library.get::<GetVersion>(SYMBOL) }
        .map_err(|_| anyhow!("{shown} has no {SYMBOL}: {}", expected()))?;
    // SAFETY: no preconditions.
    let version = unsafe { get() };
    ensure!((OLDEST..NEXT_MAJOR).contains(&version), "{shown} is cuBLASLt {}: {}", show(version), expected());
    // SAFETY: loads NVIDIA's library, which is loaded already. Without one, all else of cudarc's would panic.
    let present = unsafe { sys::is_culib_present() };
    ensure!(
        present,
        "{shown} was loaded, but goes by another name than {}; name another in {variable}",
        files.join(" or ")
    );
    // SAFETY: present, as seen above; of the type that cublasLt.h declares.
    let theirs = unsafe { sys::culib().get::<GetVersion>(SYMBOL) }.map(|theirs| *theirs as usize).ok();
    ensure!(
        theirs == Some(get as usize),
        "{shown} is not the cuBLASLt that the loader has, of which there must be one: take the other off LD_LIBRARY_PATH, or unset {variable}"
    );
    Ok(Found { version, path: path.to_path_buf() })
}
