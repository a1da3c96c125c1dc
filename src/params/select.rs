//! Tensors by name, as flags take them: llm.c's names, Hugging Face's, modules and layers.

use super::{ADAPTERS, PARAMS, Param, ParamSpec};
use crate::config::ModelConfig;
use std::ops::RangeInclusive;

/// Some tensors of a model, in some or all layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// A bit per [`Param`].
    params: u32,
    /// `None` for all.
    layers: Option<RangeInclusive<usize>>,
    name: String,
}

impl Selection {
    /// Understands llm.c's names (`wte`, `qkvw`: of every layer), Hugging Face's, with
    /// `transformer.` before them or not (`h.3.attn.c_attn.weight`, or a module such as `h.3.mlp`
    /// or `ln_f`), layers (`h.N`, `h.N-M`), and either name within them (`h.0-5.fcw`).
    ///
    /// # Errors
    /// One line with the names that exist, if it is none of these.
    pub fn parse(name: &str) -> Result<Self, String> {
        let bare = name.strip_prefix("transformer.").unwrap_or(name);
        let (layers, tensor) =
            match bare.strip_prefix("h.").map(|rest| rest.split_once('.').unwrap_or((rest, "*"))) {
                Some((layers, tensor)) => (Some(range(layers).ok_or_else(|| unknown(name))?), tensor),
                None => (None, bare),
            };
        let named = |spec: &&ParamSpec| match layers {
            Some(_) => spec.per_layer && (tensor == "*" || is_named(spec, tensor)),
            None => is_named(spec, tensor),
        };
        let params = known().filter(named).fold(0, |bits, spec| bits | bit(spec.param));
        match params {
            0 => Err(unknown(name)),
            _ => Ok(Selection { params, layers, name: name.to_owned() }),
        }
    }

    /// Checks that the model has these layers, and trains what is named: its adapters alone, if it
    /// has any.
    ///
    /// # Errors
    /// One line, if it has fewer, no such adapter, or freezes that parameter.
    pub fn check(&self, config: &ModelConfig) -> Result<(), String> {
        let name = &self.name;
        if self.layers.as_ref().is_some_and(|layers| *layers.end() >= config.L) {
            return Err(format!("{name}: the model has layers 0 to {}", config.L - 1));
        }
        let named = || known().filter(|spec| self.params & bit(spec.param) != 0);
        let trains =
            |spec: &ParamSpec| spec.is_adapter() == config.lora.is_some() && spec.len_per_layer(config) > 0;
        if named().any(trains) {
            return Ok(());
        }
        match named().all(ParamSpec::is_adapter) {
            true => Err(format!("{name}: the model has no such adapter; see --lora-rank and --lora-targets")),
            false => Err(format!("{name}: frozen, as adapters are trained; name these, as qkvw.lora_B")),
        }
    }

    /// Whether layer `l` of a parameter is among them; 0 for those that exist once.
    pub fn contains(&self, param: Param, l: usize) -> bool {
        self.params & bit(param) != 0 && self.layers.as_ref().is_none_or(|layers| layers.contains(&l))
    }
}

/// The parameters that have names: those of any model, and of any adapters.
fn known() -> impl Iterator<Item = &'static ParamSpec> {
    const { &PARAMS }.iter().chain(const { &ADAPTERS })
}

fn unknown(name: &str) -> String {
    let names: Vec<_> = PARAMS.iter().map(|spec| spec.name).collect();
    let tied = if name.contains("lm_head") { " (the head is wte)" } else { "" };
    format!(
        "expected {}, h.N, h.N-M, h.N.qkvw or a name of Hugging Face's, found {name}{tied}",
        names.join(", ")
    )
}

fn bit(param: Param) -> u32 {
    1 << param as u32
}

/// `N` or `N-M`, ascending.
fn range(text: &str) -> Option<RangeInclusive<usize>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = first.parse().ok()?..=last.parse().ok()?;
    (!range.is_empty()).then_some(range)
}

/// Whether llm.c's or Hugging Face's name of a parameter is `name`, or that of a module it is in.
fn is_named(spec: &ParamSpec, name: &str) -> bool {
    let hf = spec.hf_name.strip_prefix("h.{l}.").unwrap_or(spec.hf_name);
    let in_module = || hf.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    !name.is_empty() && (spec.name == name || in_module())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Lora;

    /// The tensors of a model of three layers, as `wte` and `qkvw1`.
    fn selected(name: &str) -> Vec<String> {
        let selection = Selection::parse(name).unwrap();
        let all = PARAMS.iter().flat_map(|spec| {
            let layers = if spec.per_layer { 0..3 } else { 0..1 };
            layers.map(move |l| (spec, l))
        });
        let found = all.filter(|(spec, l)| selection.contains(spec.param, *l));
        found.map(|(s, l)| if s.per_layer { format!("{}{l}", s.name) } else { s.name.into() }).collect()
    }

    #[test]
    fn names_of_all_kinds_are_understood() {
        assert_eq!(selected("wte"), ["wte"]);
        assert_eq!(selected("ln_f.bias"), ["lnfb"]);
        assert_eq!(selected("qkvw"), ["qkvw0", "qkvw1", "qkvw2"]);
        assert_eq!(selected("h.1-2.fcw"), ["fcw1", "fcw2"]);
        assert_eq!(selected("transformer.h.2.attn.c_attn.weight"), ["qkvw2"]);
        let layer = selected("h.1");
        assert_eq!((layer.len(), layer[0].as_str(), layer[11].as_str()), (12, "ln1w1", "fcprojb1"));
        assert_eq!(selected("h.0-2").len(), 36);
        assert_eq!(selected("h.1.mlp.c_fc"), ["fcw1", "fcb1"]);
        assert_eq!(selected("ln_f"), ["lnfw", "lnfb"]);
    }

    #[test]
    fn every_tensor_has_both_names() {
        for spec in &PARAMS {
            let hf_name = spec.hf_name.replace("{l}", "1");
            assert!(selected(&hf_name).iter().eq([&selected(spec.name)[usize::from(spec.per_layer)]]));
        }
    }

    #[test]
    fn other_names_are_refused_with_those_that_exist() {
        for name in
            ["", "wqe", "h", "h.", "h.x", "h.1-", "h.1.", "h.1.wte", "h.1.wte.weight", "ln1", "h.-1", "h.5-3"]
        {
            let message = Selection::parse(name).unwrap_err();
            assert!(message.starts_with("expected wte, wpe, ln1w, ") && message.ends_with(name), "{message}");
        }
        assert!(
            Selection::parse("lm_head.weight").unwrap_err().ends_with("lm_head.weight (the head is wte)")
        );
        let config = ModelConfig::new(8, 3, 1, 8);
        let check = |name: &str| Selection::parse(name).unwrap().check(&config);
        assert_eq!(check("h.0-2"), Ok(()));
        assert_eq!(check("h.2-3.fcw"), Err("h.2-3.fcw: the model has layers 0 to 2".to_owned()));
        assert!(check("fcw.lora_B").unwrap_err().contains("no such adapter"));
        let lora = Some(Lora { rank: 4, alpha: 8.0, targets: [false, false, true, false] });
        let config = ModelConfig { lora, ..config };
        let check = |name: &str| Selection::parse(name).unwrap().check(&config);
        assert_eq!(
            [check("fcw.lora_B"), check("h.1.mlp.c_fc.lora_A.weight"), check("h.1")],
            [const { Ok(()) }; 3]
        );
        assert!(check("qkvw.lora_B").unwrap_err().contains("no such adapter"));
        assert!(check("h.1.fcw").unwrap_err().starts_with("h.1.fcw: frozen"));
    }
}
