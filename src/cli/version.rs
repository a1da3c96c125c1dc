//! `-V`, one line, and `--version`: everything about the program and the machine that a report of a
//! bug needs.

use crate::device::about;
use crate::parallel;
use rustix::system::uname;
use std::fmt::Write;

/// The hash and date of the commit, ` with changes` of it if there are any, or why it is unknown.
const COMMIT: &str = env!("WARPSMITH_COMMIT");

/// Returns `warpsmith 0.1.0 (40c7244c1b2a 2026-11-27)`.
pub(super) fn line(program: &str) -> String {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), short(COMMIT));
    format!("{program} {version} ({commit})\n")
}

/// Returns the commit with a hash of twelve digits, and other text as it is.
fn short(commit: &str) -> String {
    match commit.split_once(' ') {
        Some((hash, rest)) if hash.len() > 12 => format!("{} {rest}", &hash[..12]),
        _ => commit.to_owned(),
    }
}

/// Returns a table. It loads the libraries it names, as their versions are only known then.
pub(super) fn details(program: &str) -> String {
    let built = [
        ("commit", COMMIT.to_owned()),
        (
            "built",
            format!(
                "for {}, {}, by {}",
                env!("WARPSMITH_TARGET"),
                env!("WARPSMITH_PROFILE"),
                env!("WARPSMITH_RUSTC")
            ),
        ),
        ("features", if cfg!(feature = "mpi") { "mpi" } else { "none" }.to_owned()),
    ];
    let system = uname();
    let [name, release] = [system.sysname(), system.release()].map(|text| text.to_string_lossy());
    let mut text = format!("{program} {}\n", env!("CARGO_PKG_VERSION"));
    let rows = built.into_iter().chain(about::kernels()).chain([("system", format!("{name} {release}"))]);
    for (name, value) in rows.chain(about::here()).chain(parallel::libraries()) {
        let _ = writeln!(text, "{name:<16} {value}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_shortened() {
        let hash = "40c7244c1b2a3d4e5f60718293a4b5c6d7e8f901";
        assert_eq!(short(&format!("{hash} 2026-11-27 with changes")), "40c7244c1b2a 2026-11-27 with changes");
        assert_eq!(short("unknown: a development build"), "unknown: a development build");
        assert_eq!(short("unknown"), "unknown");
    }
}
