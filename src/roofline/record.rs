//! Measured times of kernels on a GPU: files `benches/record/<gpu>/*-kernels.json`, written by the
//! micro-benchmarks.
//!
//! ```json
//! {"gpu": "NVIDIA H200", "kernels": [
//!   {"kernel": "qkv forward", "shape": "65536x2304x768", "us": 312.5}]}
//! ```
//! `kernel` and `shape` are those of [`calls`](super::calls), `us` is the median time of a call
//! in microseconds. Other fields (date, commit, spread, rates) are ignored.

use super::counted::Counted;
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::collections::HashMap;

/// Suffix of the names of files that hold records of kernels.
pub const FILE_SUFFIX: &str = "-kernels.json";

/// Median microseconds by kernel and shape, and the counts of the emulated device.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Records {
    us: HashMap<(String, String), f64>,
    pub counted: Counted,
}

#[derive(Deserialize)]
struct File {
    kernels: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    kernel: String,
    shape: String,
    us: f64,
}

impl Records {
    /// Adds the entries of a file. An entry for the same kernel and shape replaces the earlier one.
    ///
    /// # Errors
    /// If the text is not such a file, or a time is not one.
    pub fn add(&mut self, json: &str) -> Result<()> {
        let file: File = serde_json::from_str(json).context("expected a record of kernels")?;
        for Entry { kernel, shape, us } in file.kernels {
            ensure!(
                us > 0.0 && us.is_finite(),
                "{kernel} {shape}: expected microseconds above 0, found {us}"
            );
            self.us.insert((kernel, shape), us);
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.us.is_empty()
    }

    /// Microseconds of a call, if it was measured.
    pub fn us(&self, kernel: &str, shape: &str) -> Option<f64> {
        self.us.get(&(kernel.to_owned(), shape.to_owned())).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_files_replace_earlier_ones_and_faults_are_named() {
        let entry = |us: &str| {
            format!(
                r#"{{"gpu": "g", "kernels": [{{"kernel": "a b", "shape": "1x2", "us": {us}, "gbs": 1}}]}}"#
            )
        };
        let mut records = Records::default();
        assert!(records.is_empty());
        records.add(&entry("3.5")).unwrap();
        records.add(&entry("2.5")).unwrap();
        assert_eq!((records.us("a b", "1x2"), records.us("a b", "2x2")), (Some(2.5), None));
        assert!(records.add(&entry("0")).unwrap_err().to_string().contains("a b 1x2: expected microseconds"));
        assert!(format!("{:#}", records.add("[1]").unwrap_err()).contains("expected a record of kernels"));
    }
}
