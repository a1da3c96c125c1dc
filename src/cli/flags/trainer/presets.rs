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

/// GPT-2 124M, in both of its reproductions.
const GPT2_124M: Part = &[
    ("model", "d12"),
    ("micro batch size B", "64"),
    ("sequence length T", "1024"),
    ("total batch size", "524288"),
    ("learning rate (LR)", "6e-4"),
    ("weight decay", "0.1"),
    ("checkpoint_every", "5000"),
    ("val_loss_every", "250"),
    ("run hellaswag", "1"),
];

/// Four samples of 32 tokens, eight of which are the prompt.
const SAMPLES: Part = &[
    ("sample_every", "250"),
    ("samples", "4"),
    ("genT", "24"),
    ("prompt", "Hello, I'm a language model,"),
    ("sample_top_k", "50"),
];

/// Brown et al. 2020: sequences of 2048 tokens, 300 billion tokens, over the first 260 billion of
/// which the learning rate falls to a tenth.
const GPT3: Part = &[
    ("sequence length T", "2048"),
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

/// 572,204 steps are 300 billion tokens, 495,911 are 260 billion, 715 are 375 million.
const HALF_A_MILLION: Part = &[
    ("total batch size", "524288"),
    ("max_steps", "572204"),
    ("lr_decay_iters", "495911"),
    ("warmup iterations", "715"),
];

/// 286,102 steps are 300 billion tokens, 247,955 are 260 billion, 358 are 375 million.
const A_MILLION: Part = &[
    ("total batch size", "1048576"),
    ("max_steps", "286102"),
    ("lr_decay_iters", "247955"),
    ("warmup iterations", "358"),
];

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

pub const PRESETS: [Preset; 9] = [
    Preset {
        name: "gpt2-124m",
        parts: &[
            FINEWEB_EDU,
            GPT2_124M,
            SAMPLES,
            &[("max_steps", "19073"), ("warmup iterations", "715"), ("final LR fraction", "0.1")],
        ],
    },
    Preset {
        name: "llmc-124m",
        parts: &[
            FINEWEB,
            GPT2_124M,
            &[
                ("shuffle", "llmc"),
                ("max_steps", "18865"),
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
    use crate::cli::flags::trainer::{Program, command};

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
    fn the_steps_of_gpt3_are_its_tokens() {
        for (part, batch) in [(HALF_A_MILLION, 524_288.0f64), (A_MILLION, 1_048_576.0)] {
            let number = |id| part.iter().find(|flag| flag.0 == id).unwrap().1.parse::<f64>().unwrap();
            assert_eq!(number("total batch size"), batch);
            for (id, tokens) in
                [("max_steps", 300e9), ("lr_decay_iters", 260e9), ("warmup iterations", 375e6)]
            {
                assert!((number(id) * batch - tokens).abs() < batch, "{id}");
            }
        }
    }
}
