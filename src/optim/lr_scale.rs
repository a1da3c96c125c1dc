//! `--lr-scale`: factors on the learning rate of some tensors.

use crate::config::ModelConfig;
use crate::params::Param;
use crate::params::select::Selection;
use std::fmt;
use std::str::FromStr;

/// Tensors by name, each with the factor on their learning rate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LrScales(Vec<(Selection, f32, String)>);

impl LrScales {
    /// The factor of layer `l` of a parameter: the last that is given for it, or 1.
    pub fn of(&self, param: Param, l: usize) -> f32 {
        let last = self.0.iter().rev().find(|(selection, ..)| selection.contains(param, l));
        last.map_or(1.0, |(_, factor, _)| *factor)
    }

    /// Checks that the model has what is named.
    ///
    /// # Errors
    /// One line, if it lacks a layer.
    pub fn check(&self, config: &ModelConfig) -> Result<(), String> {
        self.0.iter().try_for_each(|(selection, ..)| selection.check(config))
    }
}

impl FromStr for LrScales {
    type Err = String;

    /// Parses `wte=0.1,h.0-3=0.5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let entry = |entry: &str| {
            let expected = || format!("expected NAME=FACTOR, found {entry}");
            let (name, factor) = entry.split_once('=').ok_or_else(expected)?;
            let factor = factor.parse::<f32>().ok().filter(|f| f.is_finite() && *f >= 0.0);
            let factor = factor.ok_or_else(|| format!("expected a factor of at least 0, found {entry}"))?;
            Ok((Selection::parse(name)?, factor, entry.to_owned()))
        };
        text.split(',').map(|part| entry(part.trim())).collect::<Result<_, String>>().map(LrScales)
    }
}

/// As it was given.
impl fmt::Display for LrScales {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let entries: Vec<_> = self.0.iter().map(|(.., entry)| entry.as_str()).collect();
        f.write_str(&entries.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_factor_for_a_tensor_counts() {
        let scales: LrScales = "h.0-1=0.5, qkvw=2,h.1.qkvw=3,wte=0".parse().unwrap();
        let of = |param, l| scales.of(param, l);
        assert_eq!([0, 1, 2].map(|l| of(Param::Qkvw, l)), [2.0, 3.0, 2.0]);
        assert_eq!([0, 1, 2].map(|l| of(Param::Fcb, l)), [0.5, 0.5, 1.0]);
        assert_eq!([of(Param::Wte, 0), of(Param::Lnfw, 0)], [0.0, 1.0]);
        assert_eq!(scales.to_string(), "h.0-1=0.5,qkvw=2,h.1.qkvw=3,wte=0");
    }

    #[test]
    fn what_is_no_name_or_factor_is_refused() {
        let refusal = |text: &str| text.parse::<LrScales>().unwrap_err();
        assert_eq!(refusal("wte"), "expected NAME=FACTOR, found wte");
        for text in ["wte=-1", "wte=x", "wte=inf", "wte=NaN", "wte="] {
            assert_eq!(refusal(text), format!("expected a factor of at least 0, found {text}"));
        }
        assert!(refusal("wte=1,h.x=2").contains("expected wte, wpe, "));
        assert!(refusal("").starts_with("expected NAME=FACTOR"));
    }
}
