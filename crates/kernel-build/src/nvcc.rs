//! Finds nvcc, and chooses the architectures it compiles for.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The oldest nvcc that knows sm_120 and can compress for size.
pub const OLDEST: (u32, u32) = (12, 8);

/// The nvcc that `make nvcc` installs, relative to the root of the repository.
pub const OWN: &str = "build/cuda/nvidia/cu13/bin/nvcc";

/// The flags for all kernels, to which architectures and `floatX` are added. The gate compiles its
/// mutants with them, too.
pub const FLAGS: &str = "-std=c++17 -O3 -lineinfo --compress-mode=size -Ikernels -fatbin -Xptxas=-v";

/// An nvcc that is new enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nvcc {
    pub path: PathBuf,
    /// (13, 0)
    pub version: (u32, u32),
    /// The output of `--version`, a part of the key under which compiled kernels are cached.
    pub identity: String,
}

/// The places in which nvcc may be.
#[derive(Clone, Debug, Default)]
pub struct Places {
    /// `NVCC`: if set, no other place counts.
    pub asked_for: Option<OsString>,
    /// `CUDA_HOME`, `CUDA_PATH`
    pub homes: Vec<OsString>,
    /// `PATH`
    pub path: OsString,
    /// Further files, in order.
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

/// Returns the first nvcc that is new enough; if there is none, `Ok(Err(why))`.
///
/// # Errors
/// If `NVCC` names one that cannot be used.
pub fn find(
    places: &Places,
    identity: impl Fn(&Path) -> Result<String, String>,
) -> Result<Result<Nvcc, String>, String> {
    let check = |path: &Path| {
        let identity = identity(path)?;
        let version =
            version(&identity).ok_or_else(|| format!("{} does not report its version", path.display()))?;
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

/// Whether this is the nvcc of dev/requirements-nvcc.txt, for which the budget and the clocks hold.
pub(crate) fn is_pinned(root: &Path, nvcc: &Nvcc) -> bool {
    let pins = std::fs::read_to_string(root.join("dev/requirements-nvcc.txt")).unwrap_or_default();
    let pin = pins.lines().find_map(|line| line.strip_prefix("nvidia-cuda-nvcc=="));
    let version = pin.map(|pin| pin.trim_end_matches(['\\', ' ']));
    version.is_some() && nvcc.identity.split_whitespace().any(|word| word.strip_prefix('V') == version)
}

/// The output of `nvcc --version`.
pub fn identity(nvcc: &Path) -> Result<String, String> {
    let failed = |why: String| format!("{} --version: {why}", nvcc.display());
    let output = Command::new(nvcc).arg("--version").output().map_err(|e| failed(e.to_string()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(failed(output.status.to_string())),
    }
}

/// The version in "…, release 13.0, V13.0.88".
fn version(identity: &str) -> Option<(u32, u32)> {
    let release = identity.split("release ").nth(1)?.split(',').next()?;
    let (major, minor) = release.split_once('.')?;
    Some((major.trim().parse().ok()?, minor.trim().parse().ok()?))
}

/// The architectures whose machine code a fatbin holds. Code for sm_100 and sm_120 also runs on the
/// later members of their families (B300, DGX Spark); other GPUs from sm_80 on compile the PTX when
/// they load it.
pub const ARCHES: [&str; 6] = ["80", "86", "89", "90a", "100", "120"];
pub(crate) const PTX: &str = "80";

/// The architectures that `KERNEL_ARCHES` asks for ("90a" or "80,90a"; "none" is none at all), and
/// whether to add PTX, which only the default does.
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

/// The flags that select architectures.
pub fn gencode((arches, ptx): &(Vec<String>, bool)) -> Vec<String> {
    let native = arches.iter().map(|arch| format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    let ptx = ptx.then(|| format!("-gencode=arch=compute_{PTX},code=compute_{PTX}"));
    native.chain(ptx).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with the file `bin/nvcc`.
    fn toolkit(version: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let nvcc = dir.path().join("bin/nvcc");
        std::fs::create_dir(dir.path().join("bin")).unwrap();
        std::fs::write(&nvcc, format!("Cuda compilation tools, release {version}, V{version}.88\n")).unwrap();
        (dir, nvcc)
    }

    /// The toolkits above are their own description.
    fn read(nvcc: &Path) -> Result<String, String> {
        std::fs::read_to_string(nvcc).map_err(|e| e.to_string())
    }

    #[test]
    fn nvcc_is_found_in_this_order() {
        let [(home, in_home), (path, in_path), (own, in_own)] = ["12.8", "12.9", "13.0"].map(toolkit);
        let mut places = Places {
            asked_for: Some(in_own.clone().into()),
            homes: vec!["/nowhere".into(), home.path().into()],
            path: std::env::join_paths([Path::new("/nowhere"), &path.path().join("bin")]).unwrap(),
            others: vec![own.path().join("bin/nvcc")],
        };
        let mut expect = |change: &dyn Fn(&mut Places), file: &Path, version| {
            change(&mut places);
            let found = find(&places, read).unwrap().unwrap();
            assert_eq!((found.path.as_path(), found.version), (file, version));
        };
        expect(&|_| {}, &in_own, (13, 0));
        expect(&|p| p.asked_for = Some("nvcc".into()), &in_path, (12, 9));
        expect(&|p| p.asked_for = None, &in_home, (12, 8));
        expect(&|p| p.homes.clear(), &in_path, (12, 9));
        expect(&|p| p.path.clear(), &in_own, (13, 0));
    }

    #[test]
    fn an_old_nvcc_is_passed_over_or_refused() {
        let [(_a, old), (_b, new)] = ["12.4", "13.0"].map(toolkit);
        let mut places = Places { others: vec![old.clone(), new.clone()], ..Places::default() };
        assert_eq!(find(&places, read).unwrap().unwrap().path, new);
        places.others.pop();
        let why = find(&places, read).unwrap().unwrap_err();
        assert_eq!(why, format!("{} is nvcc 12.4, older than 12.8", old.display()));
        places.asked_for = Some(old.clone().into());
        let error = find(&places, read).unwrap_err();
        assert!(error.contains("older than 12.8") && error.contains("make nvcc"), "{error}");
        places.asked_for = Some("/nowhere/nvcc".into());
        assert_eq!(find(&places, read).unwrap_err(), "NVCC=/nowhere/nvcc: no such file");
        let nothing = find(&Places::default(), read).unwrap();
        assert_eq!(nothing.unwrap_err(), "no nvcc was found");
    }

    #[test]
    fn architectures_can_be_chosen() {
        let flags = |asked_for| arches(asked_for).map(|arches| gencode(&arches));
        assert_eq!(flags(Some("90a")).unwrap(), ["-gencode=arch=compute_90a,code=sm_90a"]);
        assert_eq!(flags(Some("80, 120f")).unwrap().len(), 2);
        assert_eq!(flags(Some("none")).unwrap().len(), 0);
        let all = flags(None).unwrap();
        assert_eq!(all.len(), ARCHES.len() + 1);
        assert_eq!(all.last().unwrap(), "-gencode=arch=compute_80,code=compute_80");
        for bad in ["sm_90", "75", "90x", "90,b"] {
            let error = flags(Some(bad)).unwrap_err();
            assert!(error.contains(bad), "{error}");
        }
    }
}
