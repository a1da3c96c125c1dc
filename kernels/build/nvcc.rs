//! Finding nvcc, and what it can compile.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest nvcc that knows sm_120 and can compress for size.
pub const OLDEST: (u32, u32) = (12, 8);

/// Where `make nvcc` puts its toolchain, relative to the repository.
pub const OWN: &str = "build/cuda/nvidia/cu13/bin/nvcc";

/// How kernels are compiled; architectures and `floatX` come on top. The gate's mutants are compiled so, too.
pub const FLAGS: &str = "-std=c++17 -O3 -lineinfo --compress-mode=size -Ikernels -fatbin -Xptxas=-v";

/// An nvcc that is new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvcc {
    pub path: PathBuf,
    /// (13, 0)
    pub version: (u32, u32),
    /// All that it says about itself: part of what makes a compiled kernel the same or another.
    pub identity: String,
}

/// What the user and the machine say about where nvcc may be.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `NVCC`: this one or none.
    pub asked_for: Option<OsString>,
    /// `CUDA_HOME`, `CUDA_PATH`
    pub homes: Vec<OsString>,
    /// `PATH`
    pub path: OsString,
    /// Where else to look, in order.
    pub others: Vec<PathBuf>,
}

impl Places {
    pub const VARIABLES: [&str; 3] = ["NVCC", "CUDA_HOME", "CUDA_PATH"];

    pub fn from_env(root: &Path) -> Self {
        let set = |name: &&str| std::env::var_os(name).filter(|value| !value.is_empty());
        Places {
            asked_for: set(&"NVCC"),
            homes: ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(set).collect(),
            path: std::env::var_os("PATH").unwrap_or_default(),
            others: vec!["/usr/local/cuda/bin/nvcc".into(), root.join(OWN)],
        }
    }

    fn candidates(&self) -> impl Iterator<Item = PathBuf> {
        let homes = self.homes.iter().map(|home| Path::new(home).join("bin/nvcc"));
        let path = std::env::split_paths(&self.path).map(|dir| dir.join("nvcc"));
        homes.chain(path).chain(self.others.iter().cloned()).filter(|file| file.is_file())
    }
}

/// The first nvcc that is new enough; if there is none, `Ok(Err(why))`.
///
/// # Errors
/// If the one asked for by `NVCC` cannot be used.
pub fn find(
    places: &Places,
    identity: impl Fn(&Path) -> Result<String, String>,
) -> Result<Result<Nvcc, String>, String> {
    let check = |path: &Path| {
        let identity = identity(path)?;
        let version =
            version(&identity).ok_or_else(|| format!("{} does not say its version", path.display()))?;
        if version < OLDEST {
            let (path, (major, minor)) = (path.display(), version);
            return Err(format!("{path} is nvcc {major}.{minor}, older than {}.{}", OLDEST.0, OLDEST.1));
        }
        Ok(Nvcc { path: path.to_path_buf(), version, identity })
    };
    if let Some(asked_for) = &places.asked_for {
        let path = Path::new(asked_for);
        let in_path =
            || std::env::split_paths(&places.path).map(|dir| dir.join(path)).find(|file| file.is_file());
        let file = if path.is_file() { Some(path.to_path_buf()) } else { in_path() };
        let file = file.ok_or_else(|| format!("NVCC={}: no such file", path.display()))?;
        return check(&file).map(Ok).map_err(|why| format!("NVCC: {why}; `make nvcc` installs 13.0"));
    }
    let mut refused = None;
    for path in places.candidates() {
        match check(&path) {
            Ok(nvcc) => return Ok(Ok(nvcc)),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    Ok(Err(refused.unwrap_or_else(|| "no nvcc was found".to_string())))
}

/// `nvcc --version`.
pub fn identity(nvcc: &Path) -> Result<String, String> {
    let failed = |why: String| format!("{} --version: {why}", nvcc.display());
    let output = Command::new(nvcc).arg("--version").output().map_err(|e| failed(e.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(failed(output.status.to_string())),
    }
}

/// From "…, release 13.0, V13.0.88".
fn version(identity: &str) -> Option<(u32, u32)> {
    let release = identity.split("release ").nth(1)?.split(',').next()?;
    let (major, minor) = release.split_once('.')?;
    Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
}

/// What a fatbin holds: machine code for each of these architectures. sm_100 and sm_120 also run on the later members
/// of their families (B300, DGX Spark); other GPUs from sm_80 on compile the PTX when they load it.
pub const ARCHES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];
const PTX: &str = "80";

/// The architectures that `KERNEL_ARCHES` asks for ("90a" or "80,90a"), and whether there is to be PTX, as there is by default.
/// "none" is no architecture at all.
///
/// # Errors
/// If it names something else.
pub fn arches(asked_for: Option<&str>) -> Result<(Vec<String>, bool), String> {
    let list = match asked_for.map(str::trim) {
        None | Some("") => return Ok((ARCHES.map(str::to_string).to_vec(), true)),
        Some("none") => return Ok((Vec::new(), false)),
        Some(list) => list,
    };
    let is_arch = |arch: &str| {
        let number = arch.strip_suffix(['a', 'f']).unwrap_or(arch);
        number.parse::<u32>().is_ok_and(|n| n >= 80)
    };
    let arches: Vec<String> = list.split([',', ' ']).filter(|a| !a.is_empty()).map(str::to_string).collect();
    match arches.iter().find(|arch| !is_arch(arch)) {
        Some(bad) => Err(format!(
            "KERNEL_ARCHES={list}: expected architectures from 80 on, like 80,90a, or none; found {bad}"
        )),
        None => Ok((arches, false)),
    }
}

/// The flags that choose architectures.
pub fn gencode((arches, ptx): &(Vec<String>, bool)) -> Vec<String> {
    let native = arches.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    let ptx = ptx.then(|| format!("-gencode=arch=compute_{PTX},code=compute_{PTX}"));
    native.chain(ptx).collect()
}
