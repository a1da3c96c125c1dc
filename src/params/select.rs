//! Tensors by name: llm.c's names, Hugging Face's, and layers.

use super::{ADAPTERS, PARAMS, Param, ParamSpec};
use crate::config::ModelConfig;
use std::ops::RangeInclusive;

/// Some tensors of a model: one or all, in some or all layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection {
    /// `None` for all that each layer has.
    param: Option<Param>,
    /// `None` for all.
    layers: Option<RangeInclusive<usize>>,
    name: String,
}

impl Selection {
    /// Understands `qkvw` (llm.c's name: that tensor of every layer), `h.3` and `h.0-5` (all
    /// tensors of layers), `h.0-5.qkvw`, and Hugging Face's `wte.weight`, `h.3.attn.c_attn.weight`,
    /// with `transformer.` before it or not.
    ///
    /// # Errors One line with the names that exist, if it is none of these.
    pub fn parse(name: &str) -> Result<Self, String> {
        let unknown = || format!("expected {}, found {name}", Self::known());
        let selected = |param, layers| Ok(Selection { param, layers, name: name.to_owned() });
        let bare = name.strip_prefix("transformer.").unwrap_or(name);
        let Some(rest) = bare.strip_prefix("h.") else {
            let spec = known().find(|spec| spec.name == bare || !spec.per_layer && spec.hf_name == bare);
            return selected(Some(spec.ok_or_else(unknown)?.param), None);
        };
        let (layers, tensor) = rest.split_once('.').map_or((rest, None), |(l, tensor)| (l, Some(tensor)));
        let number = |text: &str| text.parse::<usize>().ok();
        let (first, last) = layers.split_once('-').unwrap_or((layers, layers));
        let (Some(first), Some(last)) = (number(first), number(last)) else { return Err(unknown()) };
        if first > last {
            return Err(format!("{name}: expected layers in ascending order, as in h.{last}-{first}"));
        }
        let of_layer = |tensor: &str| {
            let named = |spec: &&ParamSpec| {
                spec.per_layer && (spec.name == tensor || spec.hf_name.strip_prefix("h.{l}.") == Some(tensor))
            };
            known().find(named).map(|spec| spec.param).ok_or_else(unknown)
        };
        selected(tensor.map(of_layer).transpose()?, Some(first..=last))
    }

    /// The names of tensors.
    fn known() -> String {
        let names: Vec<_> = PARAMS.iter().map(|spec| spec.name).collect();
        format!("{}, h.N, h.N-M, h.N.qkvw or a name of Hugging Face's", names.join(", "))
    }

    /// Checks that the model has these layers, and trains what is named: its adapters alone, if it
    /// has any.
    ///
    /// # Errors
    /// One line, if it has fewer, no such adapter, or freezes that parameter.
    pub fn check(&self, config: &ModelConfig) -> Result<(), String> {
        match &self.layers {
            Some(layers) if *layers.end() >= config.L => {
                Err(format!("{}: the model has layers 0 to {}", self.name, config.L - 1))
            }
            _ => self.check_adapters(config),
        }
    }

    fn check_adapters(&self, config: &ModelConfig) -> Result<(), String> {
        let Some(spec) = self.param.map(Param::spec) else { return Ok(()) };
        match (spec.is_adapter(), config.lora) {
            (true, _) if spec.len_per_layer(config) == 0 => Err(format!(
                "{}: the model has no such adapter; see --lora-rank and --lora-targets",
                self.name
            )),
            (false, Some(_)) => {
                Err(format!("{}: frozen, as adapters are trained; name these, as qkvw.lora_B", self.name))
            }
            _ => Ok(()),
        }
    }

    /// Whether layer `l` of a parameter is among them; 0 for those that exist once.
    pub fn contains(&self, param: Param, l: usize) -> bool {
        let in_layers =
            self.layers.as_ref().is_none_or(|layers| param.spec().per_layer && layers.contains(&l));
        in_layers && self.param.is_none_or(|named| named == param)
    }
}

/// The parameters that have names: those of any model, and of any adapters.
fn known() -> impl Iterator<Item = &'static ParamSpec> {
    const { &PARAMS }.iter().chain(const { &ADAPTERS })
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
            ["", "wqe", "h", "h.", "h.x", "h.1-", "h.1.wte", "h.1.wte.weight", "ln1", "h.-1", "lm_head"]
        {
            let message = Selection::parse(name).unwrap_err();
            assert!(message.starts_with("expected wte, wpe, ln1w, ") && message.ends_with(name), "{message}");
        }
        assert!(Selection::parse("h.5-3").unwrap_err().ends_with("as in h.3-5"));
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
