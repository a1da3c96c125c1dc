//! The memory of this process: what it uses, and what it may still use.

use std::fs;

/// One MiB in bytes.
pub const MIB: usize = 1 << 20;

/// Bytes of memory that this process occupies, as the system counts them: pages that were touched,
/// those of the program and its libraries among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resident {
    pub now: u64,
    /// The most at any time since the process started.
    pub peak: u64,
}

impl Resident {
    /// Reads the counters, which takes some 20 us. `None` on a system without `/proc`.
    pub fn read() -> Option<Self> {
        let status = fs::read_to_string("/proc/self/status").ok()?;
        let bytes = |name: &str| Some(field(&status, name)? * 1024);
        let now = bytes("VmRSS:")?;
        // The system notes a peak when memory shrinks, and so may know of a lower one.
        Some(Resident { now, peak: bytes("VmHWM:")?.max(now) })
    }
}

/// A number for this machine, which its processes have in common and others do not have: by the
/// start of its system. `None` on a system without `/proc`.
pub fn machine() -> Option<u64> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).ok()
}

/// `337.9 MiB`
pub fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / MIB as f64)
}

/// Bytes that the system, and the limit of this process's cgroup (a container, a SLURM job), leave
/// free. `None` where that is unknown.
///
/// Asking for memory does not tell: Linux grants more than there is, and kills the process that
/// uses it.
pub fn available() -> Option<u64> {
    let system = field(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")? * 1024;
    let group = fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| group_directory(&text));
    Some(group.and_then(|directory| left_in_group(&directory)).map_or(system, |left| left.min(system)))
}

/// The directory of the group in cgroup v2, or of its memory in v1.
fn group_directory(text: &str) -> Option<String> {
    let line = |v1: bool| {
        text.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let found =
                if v1 { controllers.split(',').any(|name| name == "memory") } else { controllers.is_empty() };
            found.then_some(path)
        })
    };
    match (line(true), line(false)) {
        (Some(path), _) => Some(format!("/sys/fs/cgroup/memory{path}")),
        (None, path) => path.map(|path| format!("/sys/fs/cgroup{path}")),
    }
}

fn left_in_group(directory: &str) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(format!("{directory}/{name}")).ok();
    let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
    // Without a limit, v2 says "max" instead of a number, and v1 a number beyond all memory.
    let limit = number("memory.max").or_else(|| number("memory.limit_in_bytes"))?;
    let used = number("memory.current").or_else(|| number("memory.usage_in_bytes"))?;
    // The cache of files counts as used and is given up first.
    let cache = read("memory.stat").and_then(|text| field(&text, "inactive_file")).unwrap_or(0);
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest =
        text.lines().find_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '\t'])))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_groups_are_found() {
        let memory = "MemTotal:       24603004 kB\nMemFree:          100 kB\nMemAvailable:   21000000 kB\n";
        assert_eq!(field(memory, "MemAvailable:"), Some(21_000_000));
        assert_eq!(field("total_inactive_file 5\ninactive_file 7\n", "inactive_file"), Some(7));
        assert_eq!(group_directory("0::/job/step\n").as_deref(), Some("/sys/fs/cgroup/job/step"));
        let v1 = "5:cpu,cpuacct:/a\n4:memory:/slurm/job\n0::/\n";
        assert_eq!(group_directory(v1).as_deref(), Some("/sys/fs/cgroup/memory/slurm/job"));
    }

    #[test]
    fn a_group_leaves_its_limit_less_what_is_in_use() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "900\n");
        write("memory.stat", "anon 500\ninactive_file 300\n");
        let left = || left_in_group(directory.path().to_str().unwrap());
        assert_eq!(left(), Some(400));
        write("memory.max", "max\n");
        assert_eq!(left(), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_has_some() {
        assert!(available().unwrap() > 0);
        assert!(machine().is_some_and(|id| Some(id) == machine()));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn touched_pages_count_and_the_peak_remembers_them() {
        const LEN: usize = 64 << 20;
        let before = Resident::read().unwrap();
        let touched = vec![1u8; LEN];
        let during = Resident::read().unwrap();
        assert!(during.now >= before.now + (LEN as u64) * 9 / 10, "{before:?} {during:?}");
        drop(std::hint::black_box(touched));
        let after = Resident::read().unwrap();
        assert!(after.peak >= before.now + (LEN as u64) * 9 / 10, "{before:?} {after:?}");
    }
}
