//! Presets: recipes that supply the defaults of other flags. `recipes/` has a script for each.

use clap::Command;
use clap::builder::PossibleValuesParser;

/// A recipe by its name.
pub struct Preset {
    pub name: &'static str,
    /// Ids of flags and their values. No id is in two parts.
    parts: &'static [Part],
}

type Part = &'static [(&'static str, &'static str)];

impl Preset {
    /// The value of the flag with this id, if the preset has one.
    pub fn value(&self, id: &str) -> Option<&'static str> {
        self.parts.iter().copied().flatten().find(|flag| flag.0 == id).map(|flag| flag.1)
    }
}

const FINEWEB_EDU: Part = &[
    ("train data pattern", "dev/data/edu_fineweb10B/edu_fineweb_train_*.bin"),
    ("val data pattern", "dev/data/edu_fineweb10B/edu_fineweb_val_*.bin"),
];

/// llm.c's path.
const FINEWEB: Part = &[
    ("train data pattern", "dev/data/fineweb10B/fineweb_train_*.bin"),
    ("val data pattern", "dev/data/fineweb10B/fineweb_val_*.bin"),
];

/// Enough text for three epochs in 300 billion tokens.
const FINEWEB_EDU_100B: Part = &[
    ("train data pattern", "dev/data/edu_fineweb100B/edu_fineweb_train_*.bin"),
    ("val data pattern", "dev/data/edu_fineweb100B/edu_fineweb_val_*.bin"),
];

const TINYSTORIES: Part = &[
    ("train data pattern", "dev/data/tinystories/tinystories_train_*.bin"),
    ("val data pattern", "dev/data/tinystories/tinystories_val_*.bin"),
];

/// GPT-2 124M, in all of its recipes.
const GPT2_124M: Part = &[
    ("model", "d12"),
    ("micro batch size B", "64"),
    ("sequence length T", "1024"),
    ("total batch size", "524288"),
    ("weight decay", "0.1"),
    ("checkpoint_every", "5000"),
    ("val_loss_every", "250"),
    ("run hellaswag", "1"),
];

/// Half an epoch at three times the usual learning rate, which is constant until the last two
/// fifths and then falls to 0 in a straight line. The sources are in docs/training.md.
const TUNED: Part = &[
    ("max_steps", "9536"),
    ("LR scheduler", "wsd"),
    ("learning rate (LR)", "1.8e-3"),
    ("warmup iterations", "250"),
    ("cooldown_frac", "0.4"),
    ("cooldown_shape", "linear"),
    ("final LR fraction", "0.0"),
];

/// Four samples of 32 tokens, eight of which are the prompt.
const SAMPLES: Part = &[
    ("sample_every", "250"),
    ("samples", "4"),
    ("genT", "24"),
    ("prompt", "Hello, I'm a language model,"),
    ("sample_top_k", "50"),
];

/// Brown et al. 2020, appendix B: sequences of 2048 tokens, 300 billion tokens; linear warm-up over
/// 375 million, then the learning rate falls to a tenth by 260 billion, and stays there. Their
/// batch begins at 32 thousand tokens and is full after 4 to 12 billion; that is left to
/// `--batch-ramp`, as it asks for small micro-batches.
const GPT3: Part = &[
    ("sequence length T", "2048"),
    ("train_tokens", "300B"),
    ("warmup_tokens", "375M"),
    ("decay_tokens", "260B"),
    ("final LR fraction", "0.1"),
    ("weight decay", "0.1"),
    ("skip update lossz", "7"),
    ("skip update gradz", "7"),
    ("checkpoint_every", "10000"),
    ("checkpoints_keep", "5"),
    ("checkpoints_major", "50000"),
    ("val_loss_every", "250"),
    ("sample_every", "20000"),
    ("genT", "144"),
    ("run hellaswag", "1"),
    ("recompute", "0"),
];

/// 572,205 steps of 2^19 tokens, half a million.
const HALF_A_MILLION: Part = &[("total batch size", "524288")];

/// 286,102 steps of 2^20 tokens, a million.
const A_MILLION: Part = &[("total batch size", "1048576")];

/// Runs of a day on one or two consumer GPUs: no bias on queries, keys and values, and a constant
/// learning rate.
const A_DAY: Part = &[
    ("qkv_bias", "0"),
    ("sequence length T", "1024"),
    ("LR scheduler", "constant"),
    ("max_hours", "24"),
    ("checkpoint_every", "1000"),
    ("checkpoints_keep", "2"),
    ("val_loss_every", "250"),
    ("sample_every", "1000"),
];

pub const PRESETS: [Preset; 11] = [
    Preset {
        name: "gpt2-124m",
        parts: &[
            FINEWEB_EDU,
            GPT2_124M,
            SAMPLES,
            &[
                ("max_steps", "19073"),
                ("learning rate (LR)", "6e-4"),
                ("warmup iterations", "715"),
                ("final LR fraction", "0.1"),
            ],
        ],
    },
    Preset { name: "gpt2-124m-tuned", parts: &[FINEWEB_EDU, GPT2_124M, SAMPLES, TUNED] },
    Preset {
        name: "gpt2-124m-muon",
        parts: &[FINEWEB_EDU, GPT2_124M, SAMPLES, TUNED, &[("optimizer", "muon")]],
    },
    Preset {
        name: "llmc-124m",
        parts: &[
            FINEWEB,
            GPT2_124M,
            &[
                ("shuffle", "llmc"),
                ("max_steps", "18865"),
                ("learning rate (LR)", "6e-4"),
                ("warmup iterations", "700"),
                ("final LR fraction", "0.0"),
                ("sample_every", "20000"),
                ("genT", "144"),
                ("recompute", "0"),
            ],
        ],
    },
    Preset {
        name: "gpt3-125m",
        parts: &[
            FINEWEB_EDU_100B,
            GPT3,
            HALF_A_MILLION,
            &[("model", "gpt3:c768"), ("micro batch size B", "32"), ("learning rate (LR)", "6e-4")],
        ],
    },
    Preset {
        name: "gpt3-350m",
        parts: &[
            FINEWEB_EDU_100B,
            GPT3,
            HALF_A_MILLION,
            &[("model", "gpt3:c1024"), ("micro batch size B", "16"), ("learning rate (LR)", "3e-4")],
        ],
    },
    Preset {
        name: "gpt3-760m",
        parts: &[
            FINEWEB_EDU_100B,
            GPT3,
            HALF_A_MILLION,
            &[("model", "gpt3:c1536"), ("micro batch size B", "16"), ("learning rate (LR)", "2.5e-4")],
        ],
    },
    Preset {
        name: "gpt3-1.3b",
        parts: &[
            FINEWEB_EDU_100B,
            GPT3,
            A_MILLION,
            &[("model", "gpt3:c2048"), ("micro batch size B", "8"), ("learning rate (LR)", "2e-4")],
        ],
    },
    Preset {
        name: "gpt2-medium",
        parts: &[
            FINEWEB_EDU,
            A_DAY,
            &[("model", "d24"), ("micro batch size B", "4"), ("learning rate (LR)", "1e-4")],
        ],
    },
    Preset {
        name: "gpt2-large",
        parts: &[
            FINEWEB_EDU,
            A_DAY,
            &[("model", "d36"), ("micro batch size B", "2"), ("learning rate (LR)", "5e-5")],
        ],
    },
    Preset {
        name: "tinystories",
        parts: &[
            TINYSTORIES,
            &[
                ("num_layers L", "8"),
                ("num_heads NH", "8"),
                ("channels C", "512"),
                ("sequence length T", "512"),
                ("micro batch size B", "64"),
                ("total batch size", "65536"),
                ("max_steps", "7200"),
                ("learning rate (LR)", "1e-3"),
                ("warmup iterations", "100"),
                ("final LR fraction", "0.1"),
                ("weight decay", "0.1"),
                ("checkpoint_every", "500"),
                ("checkpoints_keep", "2"),
                ("val_loss_every", "250"),
                ("sample_every", "500"),
                ("genT", "200"),
                ("prompt", "Once upon a time"),
            ],
        ],
    },
];

/// Whether a preset has a value for the flag with this id.
pub fn sets(preset: &str, id: &str) -> bool {
    PRESETS.iter().any(|known| known.name == preset && known.value(id).is_some())
}

/// The values of `--preset`.
pub fn names() -> PossibleValuesParser {
    PossibleValuesParser::new(PRESETS.each_ref().map(|preset| preset.name))
}

/// Makes the values of presets the defaults of their flags where `--preset` names one.
pub fn defaults(command: Command) -> Command {
    command.mut_args(|arg| {
        let id = arg.get_id().to_string();
        let values = PRESETS.iter().filter_map(|preset| Some((preset.name, preset.value(&id)?)));
        let values: Vec<_> = values.map(|(name, value)| ("preset", name, value)).collect();
        if values.is_empty() { arg } else { arg.default_value_ifs(values) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Parsed;
    use crate::cli::flags::trainer::{Program, command, parse};

    #[test]
    fn presets_name_flags_once() {
        let command = command(Program::TrainGpt2);
        for preset in &PRESETS {
            let mut ids: Vec<_> = preset.parts.iter().copied().flatten().map(|flag| flag.0).collect();
            for id in &ids {
                assert!(command.get_arguments().any(|arg| arg.get_id() == id), "{}: {id}", preset.name);
            }
            ids.sort_unstable();
            assert!(ids.windows(2).all(|pair| pair[0] != pair[1]), "{}: {ids:?}", preset.name);
        }
    }

    #[test]
    fn the_tokens_of_gpt3_are_steps_of_any_batch() {
        for (name, batch) in
            [("gpt3-125m", 524_288.0f64), ("gpt3-760m", 524_288.0), ("gpt3-1.3b", 1_048_576.0)]
        {
            let line = ["train_gpt2", "--preset", name, "-o", "log"];
            let Ok(Parsed::Run(args)) = parse(Program::TrainGpt2, line, &|_| None) else { panic!("{name}") };
            let batches = args.batches();
            let schedule = args.schedule(args.train_steps(1, &batches).unwrap(), &batches).unwrap();
            let steps = [schedule.total_steps, schedule.decay_steps, schedule.warmup];
            for (steps, tokens) in steps.into_iter().zip([300e9, 260e9, 375e6]) {
                assert!((steps as f64 * batch - tokens).abs() <= batch / 2.0, "{name}: {steps} steps");
            }
        }
    }
}
