//! `run_%08d.json`: the state for which llm.c's files have no room, in a form that people can read.

use super::digest::{self, Digest};
use anyhow::{Context, Result, ensure};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

const FORMAT: u32 = 1;

/// The state of a run besides its model and optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunFile {
    /// Version of this file's format.
    pub format: u32,
    /// Version of warpsmith that wrote it.
    pub warpsmith: String,
    pub step: u64,
    /// The other files of the checkpoint by name.
    pub files: BTreeMap<String, Digest>,
    /// The trainer's own state: batch, size of the data, outlier windows, best loss so far.
    pub trainer: Value,
}

impl RunFile {
    pub(super) fn new(
        step: u64,
        files: BTreeMap<String, Digest>,
        trainer: &impl Serialize,
    ) -> Result<RunFile> {
        let trainer = serde_json::to_value(trainer).context("the trainer's state does not fit JSON")?;
        Ok(RunFile { format: FORMAT, warpsmith: env!("CARGO_PKG_VERSION").into(), step, files, trainer })
    }

    pub(super) fn write(&self, path: &Path) -> Result<Digest> {
        digest::write(path, |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            Ok(out.write_all(b"\n")?)
        })
    }

    /// Reads a run file.
    ///
    /// # Errors
    /// One line, if the file cannot be read, is not JSON of the expected form, or comes from a
    /// newer version.
    pub fn read(path: &Path) -> Result<RunFile> {
        let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let value: Value =
            serde_json::from_slice(&text).with_context(|| format!("{}: expected JSON", path.display()))?;
        // Checked first, because a newer version may spell the rest differently.
        let format = value.get("format").and_then(Value::as_u64);
        ensure!(
            format == Some(u64::from(FORMAT)),
            "{}: expected a run file of format {FORMAT}, found {}",
            path.display(),
            format.map_or("none".into(), |f| format!("format {f}; it was written by a newer warpsmith"))
        );
        serde_json::from_value(value).with_context(|| format!("{}: not a run file", path.display()))
    }

    /// Returns the trainer's own state.
    ///
    /// # Errors
    /// If it is not of that type.
    pub fn trainer<T: DeserializeOwned>(&self) -> Result<T> {
        T::deserialize(&self.trainer).with_context(|| {
            format!("run state of step {}, written by warpsmith {}", self.step, self.warpsmith)
        })
    }
}

/// A number that survives JSON bit for bit, including infinities, which JSON's own numbers lack;
/// all NaNs are one. An f32 is stored exactly.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Float(pub f64);

impl Serialize for Float {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_finite() { serializer.serialize_f64(self.0) } else { serializer.collect_str(&self.0) }
    }
}

impl<'de> Deserialize<'de> for Float {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Number(number) => number.as_f64(),
            Value::String(name) => name.parse().ok().filter(|f: &f64| !f.is_finite()),
            _ => None,
        }
        .map(Float)
        .ok_or_else(|| D::Error::custom("expected a number, \"NaN\", \"inf\" or \"-inf\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_come_back_bit_for_bit() {
        let cases = [
            0.0,
            -0.0,
            0.1,
            f64::from(0.1f32),
            f64::MIN_POSITIVE / 3.0,
            f64::MAX,
            1.0 / 3.0,
            // Without serde_json's `float_roundtrip` these are off by one unit in the last place.
            31.245270191439438,
            121.48791951161945,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
        ];
        let text = serde_json::to_string(&cases.map(Float)).unwrap();
        let back: Vec<Float> = serde_json::from_str(&text).unwrap();
        assert_eq!(back.len(), cases.len());
        for (was, is) in cases.iter().zip(back) {
            assert_eq!(was.to_bits(), is.0.to_bits(), "{was} in {text}");
        }
        for wrong in ["null", "\"1.5\"", "\"x\"", "[]", "true"] {
            assert!(serde_json::from_str::<Float>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn wrong_run_files_are_refused_in_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run_00000001.json");
        let good = RunFile::new(1, BTreeMap::new(), &[1, 2]).unwrap();
        good.write(&path).unwrap();
        assert_eq!(RunFile::read(&path).unwrap(), good);
        assert_eq!(good.trainer::<Vec<u32>>().unwrap(), [1, 2]);
        assert!(good.trainer::<String>().is_err());
        for (text, expected) in [
            ("", "expected JSON"),
            ("{\"format\": 2}", "newer"),
            ("{}", "found none"),
            ("[]", "found none"),
            ("{\"format\": 1}", "not a run file"),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = format!("{:#}", RunFile::read(&path).unwrap_err());
            assert!(message.contains(expected) && message.contains("run_00000001.json"), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
    }
}
