//! Search for NVIDIA's libraries, which programs load when they need them: on the loader's path, in
//! the CUDA toolkit, or in NVIDIA's Python packages, whose directories no loader searches. A Python
//! is found as a shell finds it: by `python3` on `PATH`.
//!
//! Nothing is loaded here: callers pass the function that opens a library. The text of the CUDA
//! driver's errors is here, too.

use anyhow::{Result, anyhow};
use cudarc::driver::DriverError;
use std::env;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// A library to search for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// `cuBLASLt`
    pub name: &'static str,
    /// File names, in order of preference.
    pub files: &'static [&'static str],
    /// Environment variable with its path. If it is set, no other path is tried.
    pub variable: &'static str,
    /// Directories of NVIDIA's Python packages that contain it: `nccl/lib`.
    pub packages: &'static [&'static str],
    /// Whether the CUDA toolkit contains it.
    pub in_toolkit: bool,
    /// The command that installs it: `pip install nvidia-cublas`.
    pub install: &'static str,
}

/// Why no library was loaded.
#[derive(Clone, Debug)]
pub enum Missing {
    /// The search found none.
    Nowhere(String),
    /// The one found does not open, or is not the expected one.
    Unusable(String),
}

impl std::error::Error for Missing {}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Missing::Nowhere(why) | Missing::Unusable(why)) = self;
        f.write_str(why)
    }
}

impl Missing {
    /// The same for an overview: without the places of the search, and what to do.
    pub fn brief(&self) -> &str {
        match self {
            Missing::Nowhere(_) => "not found",
            Missing::Unusable(why) => why,
        }
    }
}

impl Wanted {
    /// Opens the first one found. Returns it with its path, or with the name it was opened by where
    /// the system does not tell the path.
    ///
    /// # Errors
    /// One line: where it was searched for and what to do, or what is wrong with the one found.
    pub fn load<L>(&self, open: impl Fn(&Path) -> Result<L>) -> Result<(L, PathBuf), Missing> {
        let opened = |path: PathBuf| open(&path).map(|library| (library, path));
        if let Some(path) = variable(self.variable) {
            let (variable, shown) = (self.variable, path.display().to_string());
            return opened(path).map_err(|e| Missing::Unusable(format!("{variable}={shown}: {e:#}")));
        }
        let mut why = None;
        for file in self.files {
            match opened(file.into()) {
                Ok((library, name)) => return Ok((library, loaded_from(file).unwrap_or(name))),
                // The first name is the one that is usually installed.
                Err(e) => why = why.or(Some(e)),
            }
        }
        let prefixes = prefixes();
        let toolkits = if self.in_toolkit { toolkits() } else { Vec::new() };
        let packages = prefixes.iter().flat_map(|prefix| self.packages_under(prefix));
        let directories: Vec<PathBuf> = toolkits.into_iter().chain(packages).collect();
        let files =
            directories.iter().flat_map(|directory| self.files.iter().map(|file| directory.join(file)));
        if let Some(path) = files.into_iter().find(|path| path.is_file()) {
            let shown = path.display().to_string();
            return opened(path).map_err(|e| Missing::Unusable(format!("{} at {shown}: {e:#}", self.name)));
        }
        let Wanted { name, files, variable, packages, install, .. } = self;
        let why = why.map(|e| format!("{e:#}")).unwrap_or_default();
        Err(Missing::Nowhere(format!(
            "{name} was not found: the loader has no {} ({why}), and there is no nvidia/{} in the Python packages under {}; \
             install it ({install}), or name {} in {variable}",
            files.join(" or "),
            packages.join(" or nvidia/"),
            prefixes.iter().map(|prefix| prefix.display().to_string()).collect::<Vec<_>>().join(", "),
            files[0],
        )))
    }

    /// Returns the directories of NVIDIA's packages in a Python installation or virtual
    /// environment.
    fn packages_under(&self, prefix: &Path) -> Vec<PathBuf> {
        let pattern = prefix.join("lib*/python3*/*-packages/nvidia");
        let found = pattern.to_str().and_then(|pattern| glob::glob(pattern).ok());
        let nvidia: Vec<PathBuf> = found.into_iter().flatten().filter_map(Result::ok).collect();
        nvidia.iter().flat_map(|dir| self.packages.iter().map(|package| dir.join(package))).collect()
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn toolkits() -> Vec<PathBuf> {
    let homes = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable);
    homes.chain(["/usr/local/cuda".into()]).flat_map(|home| [home.join("lib64"), home.join("lib")]).collect()
}

/// Prefixes of installed Pythons, the most likely first.
fn prefixes() -> Vec<PathBuf> {
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable);
    let on_path = env::var_os("PATH").map(|path| pythons_on(&path)).unwrap_or_default();
    let local = variable("HOME").map(|home| home.join(".local"));
    let mut all: Vec<PathBuf> = Vec::new();
    for prefix in environments.chain(on_path).chain(local).chain(["/usr/local".into(), "/usr".into()]) {
        if !all.contains(&prefix) {
            all.push(prefix);
        }
    }
    all
}

/// Returns the prefixes of the first `python3` and `python` on a search path: of each the directory
/// above `bin`, which may be a virtual environment, and that of the file it links to.
fn pythons_on(path: &OsStr) -> Vec<PathBuf> {
    let find = |name: &str| env::split_paths(path).map(|dir| dir.join(name)).find(|python| python.is_file());
    let found = ["python3", "python"].into_iter().filter_map(find);
    let prefix = |python: &Path| Some(python.parent()?.parent()?.to_path_buf());
    let files = found.flat_map(|python| [Some(python.clone()), fs::canonicalize(python).ok()]);
    files.flatten().filter_map(|file| prefix(&file)).collect()
}

/// Returns the path of a loaded library whose file name starts with `name`, if the system tells.
/// The name may be that of a link: `libnccl.so` also finds `libnccl.so.2.27.7`, but not the other
/// way round.
pub fn loaded_from(name: &str) -> Option<PathBuf> {
    mapped(&fs::read_to_string("/proc/self/maps").ok()?, name)
}

/// Finds the path in `/proc/self/maps`, whose sixth column has it.
fn mapped(maps: &str, name: &str) -> Option<PathBuf> {
    let path = |line: &str| line.find('/').map(|start| PathBuf::from(&line[start..]));
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().starts_with(name));
    maps.lines().filter_map(path).find(named)
}

/// Describes an error of the CUDA driver, which must be loaded:
/// `cuMemAlloc: CUDA_ERROR_OUT_OF_MEMORY (out of memory)`.
pub fn cuda_error(what: &str, error: DriverError) -> anyhow::Error {
    let explained = error.error_string().map(|text| text.to_string_lossy().into_owned());
    anyhow!("{what}: {:?} ({})", error.0, explained.unwrap_or_else(|_| "unknown error".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    const NCCL: Wanted = Wanted {
        name: "NCCL",
        files: &["libnccl-of-a-test.so.2"],
        variable: "WARPSMITH_TEST_OF_LIBRARIES",
        packages: &["nccl/lib", "cu13/lib"],
        in_toolkit: false,
        install: "pip install nvidia-nccl-cu13",
    };

    /// A Python installation, and a virtual environment that links to it.
    fn pythons() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(dir.path()).unwrap();
        let (base, venv) = (root.join("base"), root.join("venv"));
        for prefix in [&base, &venv] {
            fs::create_dir_all(prefix.join("bin")).unwrap();
        }
        fs::write(base.join("bin/python3.12"), "").unwrap();
        symlink("python3.12", base.join("bin/python3")).unwrap();
        symlink(base.join("bin/python3"), venv.join("bin/python3")).unwrap();
        (dir, base, venv)
    }

    #[test]
    fn a_python_on_the_path_leads_to_its_environment_and_to_what_it_links_to() {
        let (_dir, base, venv) = pythons();
        let path = env::join_paths([Path::new("/nowhere"), &venv.join("bin"), &base.join("bin")]).unwrap();
        assert_eq!(pythons_on(&path), [venv.clone(), base.clone()]);
        // By its other name.
        fs::rename(venv.join("bin/python3"), venv.join("bin/python")).unwrap();
        assert_eq!(pythons_on(&path), [base.clone(), base.clone(), venv, base]);
        assert_eq!(pythons_on(OsStr::new("/nowhere")), Vec::<PathBuf>::new());
    }

    #[test]
    fn packages_are_those_of_nvidia() {
        let python = tempfile::tempdir().unwrap();
        let nvidia = python.path().join("lib/python3.12/site-packages/nvidia");
        fs::create_dir_all(&nvidia).unwrap();
        assert_eq!(NCCL.packages_under(python.path()), [nvidia.join("nccl/lib"), nvidia.join("cu13/lib")]);
    }

    #[test]
    fn a_missing_library_is_one_line() {
        let missing = NCCL.load(|path| Err::<(), _>(anyhow!("{}: no such file", path.display())));
        let Err(Missing::Nowhere(why)) = missing else { panic!("{missing:?}") };
        let start = "NCCL was not found: the loader has no libnccl-of-a-test.so.2 (libnccl-of-a-test.so.2: no such file), and there is \
                     no nvidia/nccl/lib or nvidia/cu13/lib in the Python packages under ";
        assert!(why.starts_with(start), "{why}");
        assert!(
            why.contains("/usr/local, /usr; install it (pip install nvidia-nccl-cu13), or name "),
            "{why}"
        );
        assert!(why.ends_with("libnccl-of-a-test.so.2 in WARPSMITH_TEST_OF_LIBRARIES"), "{why}");
    }

    #[test]
    fn a_loaded_library_is_found_by_its_name() {
        let maps =
            "7f00-7f01 r--p 00000000 08:01 11   /opt/a b/libnccl.so.2.27\n7f02-7f03 rw-p 00000000 00:00 0\n";
        assert_eq!(mapped(maps, "libnccl.so"), Some(PathBuf::from("/opt/a b/libnccl.so.2.27")));
        assert_eq!(mapped(maps, "libnccl.so.3"), None);
        assert_eq!(loaded_from("a library that does not exist"), None);
    }
}
