//! `--freeze`: the parameters that a run does not change.

use super::select::Selection;
use super::{PARAMS, Param, ParamSpec};
use crate::config::ModelConfig;
use anyhow::{Result, anyhow, ensure};
use std::fmt;

/// A set of parameter tensors, one layer's each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frozen {
    /// By layer, a bit per [`Param`]; those that exist once follow the last layer. Empty if nothing
    /// is frozen.
    units: Vec<u32>,
}

impl Frozen {
    /// The tensors that `text` lists, by names that [`Selection::parse`] takes.
    ///
    /// # Errors
    /// One line, if a name is unknown, a layer does not exist, or nothing is left to train.
    pub fn parse(text: &str, config: &ModelConfig) -> Result<Self> {
        let mut frozen = Frozen { units: vec![0; config.L + 1] };
        for name in text.split(',').map(str::trim) {
            let selection = Selection::parse(name).and_then(|names| names.check(config).map(|()| names));
            let selection = selection.map_err(|message| anyhow!("--freeze {text}: {message}"))?;
            for (unit, bits) in frozen.units.iter_mut().enumerate() {
                let named = |spec: &&ParamSpec| selection.contains(spec.param, unit % config.L);
                *bits = in_unit(config, unit)
                    .filter(named)
                    .fold(*bits, |bits, spec| bits | 1 << spec.param as u32);
            }
        }
        let trains = |unit: usize| in_unit(config, unit).any(|spec| !frozen.contains(spec.param, unit));
        ensure!(
            (0..=config.L).any(trains),
            "--freeze {text}: expected a part of the parameters, found all; nothing would be trained"
        );
        Ok(frozen)
    }

    /// All of a model's own parameters: its adapters alone are trained.
    pub fn all_but_adapters(config: &ModelConfig) -> Self {
        let bits = |unit| in_unit(config, unit).fold(0, |bits, spec| bits | 1 << spec.param as u32);
        Frozen { units: (0..=config.L).map(bits).collect() }
    }

    /// Whether nothing is frozen.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }

    /// Whether a parameter of a layer is frozen; one that exists once is looked up by L, the index
    /// of the shared unit.
    pub fn contains(&self, param: Param, unit: usize) -> bool {
        self.units.get(unit).is_some_and(|bits| bits >> param as u32 & 1 == 1)
    }

    /// The layers in which a parameter is trained; 0 for one that exists once.
    pub fn trained_layers(&self, spec: &ParamSpec, config: &ModelConfig) -> Vec<usize> {
        let unit = |l: usize| if spec.per_layer { l } else { config.L };
        (0..spec.layers(config)).filter(|&l| !self.contains(spec.param, unit(l))).collect()
    }
}

/// The parameters of a layer, or those that exist once.
fn in_unit(config: &ModelConfig, unit: usize) -> impl Iterator<Item = &'static ParamSpec> {
    let per_layer = unit < config.L;
    PARAMS.iter().filter(move |spec| spec.per_layer == per_layer)
}

/// `0-5, 7` of ascending numbers.
pub fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let run = |run: &[usize]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => unreachable!("a run has a number"),
    };
    runs.map(run).collect::<Vec<_>>().join(", ")
}

/// A list that [`Frozen::parse`] reads: one text for each set. `nothing` if it is empty.
impl fmt::Display for Frozen {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Some((shared, layers)) = self.units.split_last() else { return f.write_str("nothing") };
        let bits = |per_layer: bool| {
            let of = PARAMS.iter().filter(move |spec| spec.per_layer == per_layer);
            of.map(|spec| (spec, 1u32 << spec.param as u32))
        };
        let all = bits(true).fold(0, |all, (_, bit)| all | bit);
        let mut names: Vec<String> =
            bits(false).filter(|(_, bit)| shared & bit != 0).map(|(spec, _)| spec.name.to_owned()).collect();
        let mut start = 0;
        for run in layers.chunk_by(|a, b| a == b) {
            let last = start + run.len() - 1;
            let layers = if start == last { format!("h.{start}") } else { format!("h.{start}-{last}") };
            start += run.len();
            match run[0] {
                frozen if frozen == all => names.push(layers),
                frozen => names.extend(
                    bits(true)
                        .filter(|(_, bit)| frozen & bit != 0)
                        .map(|(spec, _)| format!("{layers}.{}", spec.name)),
                ),
            }
        }
        f.write_str(&names.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ModelConfig {
        ModelConfig::new(8, 12, 2, 24)
    }

    fn frozen(text: &str) -> String {
        Frozen::parse(text, &config()).unwrap().to_string()
    }

    #[test]
    fn tensors_have_the_names_of_llmc_and_of_hugging_face() {
        for (text, expected) in [
            ("wte", "wte"),
            ("wte,wpe,h.0-5", "wte,wpe,h.0-5"),
            ("h.0-5, wpe ,wte", "wte,wpe,h.0-5"),
            ("transformer.h.3", "h.3"),
            ("h.0,h.1,h.2-4", "h.0-4"),
            ("qkvw", "h.0-11.qkvw"),
            ("h.3.attn.c_attn.weight", "h.3.qkvw"),
            ("h.3.attn.c_attn", "h.3.qkvw,h.3.qkvb"),
            ("h.1-2.mlp", "h.1-2.fcw,h.1-2.fcb,h.1-2.fcprojw,h.1-2.fcprojb"),
            ("mlp.c_proj.bias", "h.0-11.fcprojb"),
            ("ln_f", "lnfw,lnfb"),
            ("ln_1.weight", "h.0-11.ln1w"),
            ("h.5.fcw", "h.5.fcw"),
            ("wte.weight,lnfb", "wte,lnfb"),
        ] {
            assert_eq!(frozen(text), expected, "{text}");
            assert_eq!(frozen(expected), expected);
        }
        assert_eq!(Frozen::default().to_string(), "nothing");
        assert_eq!(ranges(&[0, 1, 2, 4, 6, 7]), "0-2, 4, 6-7");
    }

    #[test]
    fn unknown_names_are_refused_with_those_that_are_known() {
        let error = |text: &str| Frozen::parse(text, &config()).unwrap_err().to_string();
        for bad in ["", "wt", "h", "attn.c_at", "wte,", "h.0.foo", "lm_head.weight", "embedding", "h.x"] {
            let message = error(bad);
            assert!(message.starts_with("--freeze ") && message.contains("wte, wpe, ln1w"), "{message}");
            assert_eq!(message.lines().count(), 1);
        }
        for bad in ["h.12", "h.3-12"] {
            assert!(error(bad).contains("layers 0 to 11"), "{bad}: {}", error(bad));
        }
        assert!(error("wte,wpe,h.0-11,ln_f").contains("nothing would be trained"));
    }

    #[test]
    fn layers_that_are_trained_are_listed() {
        let (config, frozen) = (config(), Frozen::parse("wte,h.0-5,h.7.qkvw", &config()).unwrap());
        let layers = |param: Param| ranges(&frozen.trained_layers(param.spec(), &config));
        assert_eq!((&*layers(Param::Qkvw), &*layers(Param::Qkvb)), ("6, 8-11", "6-11"));
        assert_eq!((&*layers(Param::Wte), &*layers(Param::Wpe)), ("", "0"));
        assert!(frozen.contains(Param::Wte, 12) && !frozen.contains(Param::Wpe, 12));
    }
}
