//! The memory that this process has in RAM.

/// Memory of this process in RAM (its resident set), in MiB; `None` where the system does not tell
/// it as Linux does.
pub fn resident_mib() -> Option<f64> {
    const NAME: &str = "VmRSS:";
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let kib = status.lines().find_map(|line| line.strip_prefix(NAME))?.trim().strip_suffix("kB")?;
    Some((kib.trim().parse::<f64>().ok()? / 1024.0 * 10.0).round() / 10.0)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_in_use_counts() {
        let before = resident_mib().unwrap();
        let block = vec![1u8; 64 << 20];
        let after = resident_mib().unwrap();
        assert!(block.iter().all(|&byte| byte == 1));
        assert!(before > 1.0 && after >= before + 32.0, "{before} MiB, then {after} MiB");
    }
}
