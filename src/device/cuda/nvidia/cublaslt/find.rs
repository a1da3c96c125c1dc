//! The search for cuBLASLt, and the library that it finds.

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

/// Major versions in which the functions called here are the same.
const OLDEST: usize = 120_000;
const NEXT_MAJOR: usize = 140_000;

/// The library in use.
#[derive(Clone, Debug)]
pub struct Found {
    /// The library's own encoding: 130002 is 13.0.2.
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

/// Loads the library from where it is found, after which cudarc's functions can be called: cudarc
/// asks for it by name and gets the one already loaded.
///
/// # Errors
/// One line, if it is nowhere, or if the one found has another version than expected.
pub fn load() -> Result<Found, Missing> {
    // SAFETY: this runs the initializers of NVIDIA's library, which any program may load.
    let (library, path) = WANTED.load(|path| Ok(unsafe { Library::new(path) }?))?;
    let found = checked(&library, &path).map_err(|why| Missing::Unusable(format!("{why:#}")))?;
    // Never unloaded: cudarc holds pointers to its functions.
    std::mem::forget(library);
    Ok(found)
}

/// Checks the version, and that cudarc will call this very library.
fn checked(library: &Library, path: &Path) -> Result<Found> {
    const SYMBOL: &str = "cublasLtGetVersion";
    let Wanted { files, variable, install, .. } = WANTED;
    let shown = path.display();
    let expected = || {
        let (oldest, next) = (show(OLDEST), show(NEXT_MAJOR));
        format!(
            "expected cuBLASLt {oldest} or newer, below {next}; install it ({install}), or name another in {variable}"
        )
    };
    // SAFETY: `GetVersion` is the type that cublasLt.h declares for this function.
    let get = *unsafe { library.get::<GetVersion>(SYMBOL) }
        .map_err(|_| anyhow!("{shown} has no {SYMBOL}: {}", expected()))?;
    // SAFETY: the function takes nothing, reads a constant and needs no context.
    let version = unsafe { get() };
    ensure!((OLDEST..NEXT_MAJOR).contains(&version), "{shown} is cuBLASLt {}: {}", show(version), expected());
    // SAFETY: the library it may load is NVIDIA's, whose initializers have run. Every other
    // function of cudarc's would panic without a library, so none is called before this.
    let present = unsafe { sys::is_culib_present() };
    ensure!(
        present,
        "{shown} was loaded, but goes by another name than {}; name another in {variable}",
        files.join(" or ")
    );
    // SAFETY: the library is present, and `GetVersion` is the type that cublasLt.h declares.
    let theirs = unsafe { sys::culib().get::<GetVersion>(SYMBOL) }.map(|theirs| *theirs as usize).ok();
    ensure!(
        theirs == Some(get as usize),
        "{shown} is not the cuBLASLt that the loader has, of which there must be one: take the other off LD_LIBRARY_PATH, or unset {variable}"
    );
    Ok(Found { version, path: path.to_path_buf() })
}
