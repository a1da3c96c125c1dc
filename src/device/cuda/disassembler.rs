//! NVIDIA's disassembler, which shows the instructions of kernels.

use super::fatbins::OWN_NVCC;
use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Finds the disassembler: beside nvcc, on `path`, or beside the nvcc of `make nvcc`.
///
/// # Errors
/// If there is none.
pub fn find(nvcc: &Path, path: &OsStr, own_nvcc: &Path) -> Result<PathBuf, String> {
    let beside = |nvcc: &Path| nvcc.with_file_name("cuobjdump");
    let on_path = env::split_paths(path).map(|dir| dir.join("cuobjdump"));
    // cuobjdump calls nvdisasm, and distributions put them into packages of their own.
    let complete = |tool: &PathBuf| tool.is_file() && tool.with_file_name("nvdisasm").is_file();
    let mut places = std::iter::once(beside(nvcc)).chain(on_path).chain([beside(own_nvcc)]);
    places.find(complete).ok_or_else(|| {
        format!(
            "no cuobjdump with its nvdisasm is beside {}, on PATH or in build/cuda: `make nvcc` installs \
             both there",
            nvcc.display()
        )
    })
}

/// Finds the disassembler where a build looks for nvcc. The program may have been built on another
/// machine.
///
/// # Errors
/// If there is none.
pub fn find_own() -> Result<PathBuf, String> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(set);
    let toolkits = homes.chain([PathBuf::from("/usr/local/cuda")]).map(|home| home.join("bin/nvcc"));
    let nvcc = set("NVCC").into_iter().chain(toolkits).find(|nvcc| nvcc.is_file());
    let own = Path::new(OWN_NVCC);
    find(nvcc.as_deref().unwrap_or(own), &env::var_os("PATH").unwrap_or_default(), own)
}

/// Runs `cuobjdump -sass` on a fatbin for one architecture. The output includes the registers and
/// shared memory of each kernel.
pub fn disassemble(cuobjdump: &Path, fatbin: &Path, arch: &str) -> Result<String, String> {
    let own_dir = cuobjdump.parent().unwrap_or(Path::new("")).to_path_buf();
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(own_dir).chain(env::split_paths(&path)));
    let mut command = Command::new(cuobjdump);
    command.args(["-sass", "-res-usage", "-arch"]).arg(format!("sm_{arch}")).arg(fatbin);
    let output = command.env("PATH", path.map_err(|e| e.to_string())?).output();
    let output = output.map_err(|e| format!("{}: {e}", cuobjdump.display()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!(
            "{} of {} for sm_{arch}: {}",
            cuobjdump.display(),
            fatbin.display(),
            String::from_utf8_lossy(&output.stderr).trim()
        )),
    }
}
