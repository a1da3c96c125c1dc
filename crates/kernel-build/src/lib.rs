//! Compiles the kernels under `kernels/` for a build script, and reads what the compilers say about
//! them for tests: for GPUs with nvcc ([`fatbins`]), for the emulated device with the host's C++
//! compiler ([`emulated`]). Both keep what they compiled in the target directory, by content. The
//! commit that `--version` shows is found here, too.

pub mod budget;
pub mod emulated;
pub mod fatbins;
pub mod nvcc;
pub mod ptxas;
mod revision;
pub mod sass;
mod sources;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Compiles all kernels, and records what is built. Call it from the build script of the crate at
/// the root of the repository.
pub fn build() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=kernels");
    let root = PathBuf::from(env("CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(env("OUT_DIR"));
    revision::record(&root);
    for result in [fatbins::build(&root, &out_dir), emulated::build(&root, &out_dir)] {
        // Cargo shows each line as an error of its own.
        for line in result.err().iter().flat_map(|message| message.lines()) {
            println!("cargo::error={line}");
        }
    }
}

/// A variable that cargo promises to set.
fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The directory in which all profiles find what was compiled before: cargo's target directory,
/// above `<profile>/build/<package>/out`.
fn shared_dir(inside_out_dir: &Path) -> &Path {
    let build = inside_out_dir.ancestors().find(|dir| dir.file_name().is_some_and(|name| name == "build"));
    build.and_then(Path::parent).and_then(Path::parent).unwrap_or(inside_out_dir)
}

/// The names of the kernel files, `*.cu`, in order.
fn kernel_files(kernels: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(kernels).unwrap_or_else(|e| panic!("{}: {e}", kernels.display()));
    let names =
        entries.map(|e| e.expect("a readable directory").file_name().into_string().expect("UTF-8 names"));
    let mut files: Vec<String> = names.filter(|name| name.ends_with(".cu")).collect();
    files.sort();
    files
}

/// Runs the jobs in parallel, as many as cargo allows. Reports all that fail.
fn run_all<T: Sync>(jobs: &[T], run: impl Fn(&T) -> Result<(), String> + Sync) -> Result<(), String> {
    let threads = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        for _ in 0..usize::min(threads, jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Relaxed)) {
                    if let Err(message) = run(job) {
                        failed.lock().expect("no job panics").insert(message);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().expect("no job panics");
    if failed.is_empty() { Ok(()) } else { Err(Vec::from_iter(failed).join("\n")) }
}
