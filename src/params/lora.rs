//! The matrices that have adapters of LoRA, by name and by index.

use super::{PARAMS, Param, ParamSpec};
use crate::config::Lora;

/// The matrices that may have adapters, in the order of [`Lora::targets`].
pub const TARGETS: [Param; 4] = [Param::Qkvw, Param::Attprojw, Param::Fcw, Param::Fcprojw];

/// A (r, in) and B (out, r) of each of [`TARGETS`].
const PAIRS: [[Param; 2]; 4] = [
    [Param::QkvwA, Param::QkvwB],
    [Param::AttprojwA, Param::AttprojwB],
    [Param::FcwA, Param::FcwB],
    [Param::FcprojwA, Param::FcprojwB],
];

/// A and B beside a matrix, if it has them.
pub fn adapters_of(weight: Param, lora: &Lora) -> Option<[Param; 2]> {
    let target = TARGETS.iter().position(|&target| target == weight)?;
    lora.targets[target].then_some(PAIRS[target])
}

/// Hugging Face's name of a target's module in its layer: `attn.c_attn`.
pub fn module(target: Param) -> &'static str {
    let name = target.spec().hf_name;
    let plain = name.strip_prefix("h.{l}.").and_then(|name| name.strip_suffix(".weight"));
    plain.expect("a matrix of a block")
}

/// The targets that `text` lists: llm.c's names (`qkvw`), Hugging Face's modules (`attn.c_attn`, or
/// as PEFT matches them by their end, `c_attn`; `c_proj` is two), or `all`.
///
/// # Errors
/// One line, if a name is unknown.
pub fn parse_targets(text: &str) -> Result<[bool; 4], String> {
    let mut targets = [false; 4];
    for name in text.split(',').map(str::trim) {
        let named = TARGETS.map(|target| name == "all" || is_named(target.spec(), name));
        if named == [false; 4] {
            let own = TARGETS.map(|target| target.spec().name).join(", ");
            let modules = TARGETS.map(module).join(", ");
            return Err(format!("expected {own}, or {modules}, or all, found {name}"));
        }
        targets = [0, 1, 2, 3].map(|i| targets[i] || named[i]);
    }
    Ok(targets)
}

/// Whether llm.c's name of a matrix is `name`, or the path of its module is or ends with it.
fn is_named(spec: &ParamSpec, name: &str) -> bool {
    let module = module(spec.param);
    let at_end =
        || module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'));
    !name.is_empty() && (spec.name == name || at_end())
}

/// The names of the targets in a list that [`parse_targets`] reads: `qkvw,fcw`.
pub fn names(targets: [bool; 4]) -> String {
    let on = TARGETS.iter().zip(targets).filter(|(_, on)| *on);
    on.map(|(target, _)| PARAMS[*target as usize].name).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::params::{self, ParamLayout};

    #[test]
    fn targets_have_the_names_of_llmc_and_of_hugging_face() {
        for (text, expected) in [
            ("qkvw", "qkvw"),
            ("c_attn", "qkvw"),
            ("attn.c_proj", "attprojw"),
            ("c_proj", "attprojw,fcprojw"),
            ("mlp.c_fc, fcprojw", "fcw,fcprojw"),
            ("all", "qkvw,attprojw,fcw,fcprojw"),
        ] {
            let targets = parse_targets(text).unwrap();
            assert_eq!(names(targets), expected, "{text}");
            assert_eq!(parse_targets(&names(targets)), Ok(targets));
        }
        for bad in ["", "wte", "attn", "_attn", "qkvw,", "proj", "ln_1", "mlp.c_attn"] {
            let message = parse_targets(bad).unwrap_err();
            assert!(
                message.starts_with("expected qkvw, attprojw, ") && message.lines().count() == 1,
                "{bad}"
            );
        }
    }

    #[test]
    fn adapters_follow_the_parameters_of_a_model() {
        let plain = ModelConfig::new(8, 3, 2, 24);
        let lora = Lora { rank: 3, alpha: 6.0, targets: [true, false, false, true] };
        let config = ModelConfig { lora: Some(lora), ..plain };
        let (own, with) = (ParamLayout::new(&plain), ParamLayout::new(&config));
        let per_layer = 8 * (24 + 72) + 8 * (96 + 24);
        assert_eq!((own.len(), own.adapters().len()), (with.adapters().start, 0));
        assert_eq!(with.adapters().len(), 3 * per_layer);
        let names: Vec<_> = params::all(&config).skip(16).map(|spec| spec.name).collect();
        assert_eq!(names, ["qkvw.lora_A", "qkvw.lora_B", "fcprojw.lora_A", "fcprojw.lora_B"]);
        assert_eq!(adapters_of(Param::Fcw, &lora), None);
        assert_eq!(adapters_of(Param::Qkvw, &lora), Some([Param::QkvwA, Param::QkvwB]));
        assert_eq!((config.without_lora(), lora.scale()), (plain, 2.0));
        let counts: Vec<_> =
            params::all(&config).skip(16).map(|spec| spec.count_per_layer(&config)).collect();
        assert_eq!(counts, [3 * 24, 72 * 3, 3 * 96, 24 * 3]);
    }
}
