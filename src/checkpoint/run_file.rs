//! `run_%08d.json`: the state for which llm.c's files have no room, in a form that people can read.
//!
//! The file holds the digests of the checkpoint's other files, and `DONE` holds its own. Format 1,
//! of earlier versions, had an empty `DONE`, no checksums of tensors, and fewer fields over time.

use super::digest::{self, Digest};
use crate::config::DropoutRates;
use crate::files;
use anyhow::{Context, Result, ensure};
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

const FORMAT: u32 = 2;

/// The format of earlier versions, which is still read.
const EARLIER: u32 = 1;

/// Bytes that a run file may have: thousands of times what one needs.
const MAX_BYTES: u64 = 16 << 20;

/// The state of a run besides its model and optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
        digest::write(path, Vec::new(), |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            Ok(out.write_all(b"\n")?)
        })
    }

    /// Reads the run file at `path`; `done` is the text of the checkpoint's `DONE` file. Returns
    /// whether the digest in there vouches for the file, as it does since format 2.
    ///
    /// # Errors
    /// One line, if the file cannot be read, is not the one that was written, is not JSON of the
    /// expected form, or comes from a newer version.
    pub(super) fn read(path: &Path, done: &str) -> Result<(RunFile, bool)> {
        let at = || path.display();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let text = files::read(path, MAX_BYTES)?;
        let checked = !done.is_empty();
        ensure!(
            !checked || done == Digest::of(&text).line(&name),
            "{}: not the file whose digest is in the DONE file of its checkpoint",
            at()
        );
        let value: Value =
            serde_json::from_slice(&text).with_context(|| format!("{}: expected JSON", at()))?;
        // Checked first, because a newer version may spell the rest differently.
        let format = value.get("format").and_then(Value::as_u64);
        ensure!(
            format.is_some_and(|f| f == u64::from(FORMAT) || f == u64::from(EARLIER)),
            "{}: expected a run file of format {FORMAT}, found {}",
            at(),
            format.map_or("none".into(), |f| format!("format {f}; it was written by a newer warpsmith"))
        );
        let run: RunFile =
            serde_json::from_value(value).with_context(|| format!("{}: not a run file", at()))?;
        ensure!(
            checked || run.format == EARLIER,
            "{}: expected its digest in the DONE file of its checkpoint, found an empty file",
            at()
        );
        Ok((run, checked))
    }

    /// Returns the dropout of the run: none in runs of earlier versions.
    pub fn dropout(&self) -> DropoutRates {
        let setting = |flag| self.trainer.get("settings")?.get(flag)?.as_str()?.parse().ok();
        DropoutRates::from_all(DropoutRates::FLAGS.map(|flag| setting(flag).unwrap_or(0.0)))
    }

    /// Returns the trainer's own state. Only format 1 may lack fields, which then have defaults.
    ///
    /// # Errors
    /// If it is not of that type.
    pub fn trainer<T: DeserializeOwned + Serialize>(&self) -> Result<T> {
        let name = || {
            format!("{}: the trainer's state, written by warpsmith {}", file_name(self.step), self.warpsmith)
        };
        let trainer = T::deserialize(&self.trainer).with_context(name)?;
        if self.format != EARLIER {
            let again = serde_json::to_value(&trainer)?;
            let same = again == self.trainer;
            ensure!(same, "{}: expected the fields of this version, found fewer", name());
        }
        Ok(trainer)
    }
}

pub(super) fn file_name(step: u64) -> String {
    format!("run_{step:08}.json")
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

    /// Reads the file with the digest that was written, and as a file of earlier versions.
    fn read(path: &Path, digest: &Digest) -> [Result<(RunFile, bool)>; 2] {
        [RunFile::read(path, &digest.line("run_00000001.json")), RunFile::read(path, "")]
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run_00000001.json");
        let good = RunFile::new(1, BTreeMap::new(), &[1, 2]).unwrap();
        let digest = good.write(&path).unwrap();
        let [checked, unchecked] = read(&path, &digest);
        assert_eq!(checked.unwrap(), (good, true));
        assert!(format!("{:#}", unchecked.unwrap_err()).contains("found an empty file"));
        let (text, done) = (std::fs::read(&path).unwrap(), digest.line("run_00000001.json"));
        for bit in 0..8 * text.len() {
            let mut damaged = text.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, damaged).unwrap();
            let message = format!("{:#}", RunFile::read(&path, &done).unwrap_err());
            assert!(message.contains("run_00000001.json: not the file whose digest"), "{message}");
        }
        std::fs::write(&path, &text).unwrap();
        for damaged in ["x", "run_00000001.json has 9 bytes and the CRC-32 00000000", &done[..done.len() - 2]]
        {
            assert!(RunFile::read(&path, damaged).is_err(), "{damaged}");
        }
    }

    #[test]
    fn wrong_run_files_are_refused_in_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run_00000001.json");
        for (text, expected) in [
            ("", "expected JSON"),
            ("{\"format\": 3}", "newer"),
            ("{}", "found none"),
            ("[]", "found none"),
            ("{\"format\": 1}", "not a run file"),
            (
                r#"{"format": 1, "warpsmith": "", "step": 1, "files": {}, "trainer": 0, "trainr": 0}"#,
                "unknown field `trainr`",
            ),
        ] {
            std::fs::write(&path, text).unwrap();
            let message = format!("{:#}", RunFile::read(&path, "").unwrap_err());
            assert!(message.contains(expected) && message.contains("run_00000001.json"), "{message}");
            assert_eq!(message.lines().count(), 1, "{message}");
        }
        let large = std::fs::File::create(&path).unwrap();
        large.set_len(MAX_BYTES + 1).unwrap();
        let message = RunFile::read(&path, "").unwrap_err().to_string();
        assert!(message.contains("run_00000001.json: expected at most"), "{message}");
    }

    #[test]
    fn only_format_1_may_lack_fields() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Trainer {
            a: u32,
            #[serde(default)]
            b: u32,
        }
        let mut run = RunFile::new(1, BTreeMap::new(), &Trainer { a: 1, b: 0 }).unwrap();
        assert_eq!(run.trainer::<Trainer>().unwrap(), Trainer { a: 1, b: 0 });
        run.trainer.as_object_mut().unwrap().remove("b");
        let message = format!("{:#}", run.trainer::<Trainer>().unwrap_err());
        assert!(message.starts_with("run_00000001.json: ") && message.contains("found fewer"), "{message}");
        run.format = EARLIER;
        assert_eq!(run.trainer::<Trainer>().unwrap(), Trainer { a: 1, b: 0 });
        let message = format!("{:#}", run.trainer::<String>().unwrap_err());
        assert!(message.starts_with("run_00000001.json: "), "{message}");
    }
}
