//! Weighted mixing of inputs: `web/=0.7 code.jsonl=0.3`.

use crate::data::order::lags_most;
use crate::data::remote::is_remote;
use crate::files;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};

/// Inputs that are read one after another.
#[derive(Debug, PartialEq)]
pub(super) struct Part {
    /// As it was given, for messages.
    pub name: String,
    /// The share of the text that comes from here, before it is divided by the sum of all. `None`
    /// if there is one part, whose inputs have no weights.
    pub weight: Option<f64>,
    pub inputs: Vec<PathBuf>,
}

/// Reads the inputs: each its own part if they have weights, otherwise one part with all of them.
/// Patterns with `*`, `?` and `[` stand for the files they match.
///
/// # Errors
/// One line, if some inputs have weights and others do not, a weight is no positive number, or no
/// file matches a pattern.
pub(super) fn parts(inputs: &[PathBuf]) -> Result<Vec<Part>> {
    let split: Vec<(PathBuf, Option<f64>)> =
        inputs.iter().map(|input| weight_of(input)).collect::<Result<_>>()?;
    let weighted = split.iter().filter(|(_, weight)| weight.is_some()).count();
    if weighted == 0 {
        let mut all = Vec::new();
        for (path, _) in split {
            all.extend(matching(&path)?);
        }
        return Ok(vec![Part { name: String::new(), weight: None, inputs: all }]);
    }
    if let Some((path, _)) = split.iter().find(|(_, weight)| weight.is_none()) {
        let path = path.display();
        ensure!(
            weighted == split.len(),
            "{path}: has no weight, but another input has; give each one: {path}=0.5"
        );
    }
    let part = |(path, weight): (PathBuf, Option<f64>)| {
        Ok(Part { name: path.display().to_string(), weight, inputs: matching(&path)? })
    };
    split.into_iter().map(part).collect()
}

/// Splits `PATH=WEIGHT`. A file whose name has this form is a file.
fn weight_of(input: &Path) -> Result<(PathBuf, Option<f64>)> {
    let text = input.to_string_lossy();
    let Some((path, weight)) = text.rsplit_once('=').filter(|_| !input.exists()) else {
        return Ok((input.to_owned(), None));
    };
    let number = weight.parse::<f64>().ok().filter(|weight| weight.is_finite() && *weight > 0.0);
    let number = number.with_context(|| {
        format!("{text}: no such file, and expected a weight above 0 after =, found {weight:?}")
    })?;
    Ok((PathBuf::from(path), Some(number)))
}

/// The files that a pattern matches, by name; anything else as it is.
fn matching(path: &Path) -> Result<Vec<PathBuf>> {
    let text = path.to_string_lossy();
    if path.exists() || is_remote(path) || !text.contains(['*', '?', '[']) {
        return Ok(vec![path.to_owned()]);
    }
    let paths = files::matching(&text)?;
    ensure!(!paths.is_empty(), "{text}: no file matches");
    Ok(paths)
}

/// The shares of parts in the text so far.
pub(super) struct Shares {
    weights: Vec<f64>,
    /// Bytes of text from each part.
    pub bytes: Vec<u64>,
}

impl Shares {
    pub fn new(parts: &[Part]) -> Self {
        let weights = parts.iter().map(|part| part.weight.unwrap_or(1.0)).collect();
        Shares { weights, bytes: vec![0; parts.len()] }
    }

    /// Returns the part that lags behind its share most.
    pub fn next(&self) -> usize {
        lags_most(self.bytes.iter().copied().zip(self.weights.iter().copied()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn weights_and_patterns_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["b.txt", "a.txt", "c=0.5"] {
            fs::write(at(name), "text").unwrap();
        }
        let plain = parts(&[at("b.txt"), at("?.txt"), at("c=0.5"), "-".into()]).unwrap();
        assert_eq!((plain.len(), plain[0].weight), (1, None));
        assert_eq!(plain[0].inputs, [at("b.txt"), at("a.txt"), at("b.txt"), at("c=0.5"), "-".into()]);
        let mixed = parts(&[at("*.txt=0.7"), at("c=0.5=3")]).unwrap();
        assert_eq!(mixed.iter().map(|p| p.weight).collect::<Vec<_>>(), [Some(0.7), Some(3.0)]);
        assert_eq!(mixed[0].inputs, [at("a.txt"), at("b.txt")]);
        assert_eq!(mixed[1].inputs, [at("c=0.5")]);

        let refuse = |inputs: &[PathBuf]| format!("{:#}", parts(inputs).unwrap_err());
        assert!(refuse(&[at("a.txt=1"), at("b.txt")]).contains("b.txt: has no weight, but another"));
        for weight in ["0", "-1", "x", "", "inf", "nan"] {
            let error = refuse(&[at(&format!("a.txt={weight}"))]);
            assert!(error.contains("expected a weight above 0"), "{error}");
        }
        assert!(refuse(&[at("*.none")]).contains("*.none: no file matches"));
    }

    #[test]
    fn shares_follow_the_weights() {
        let part = |weight| Part { name: String::new(), weight: Some(weight), inputs: Vec::new() };
        let mut shares = Shares::new(&[part(6.0), part(3.0), part(1.0)]);
        for i in 0..10_000 {
            let next = shares.next();
            shares.bytes[next] += 100 + i % 17;
        }
        let total: u64 = shares.bytes.iter().sum();
        for (bytes, expected) in shares.bytes.iter().zip([0.6, 0.3, 0.1]) {
            assert!((*bytes as f64 / total as f64 - expected).abs() < 1e-3, "{bytes} of {total}");
        }
    }
}
