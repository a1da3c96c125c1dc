//! Names for what people train and evaluate on, and where each is kept.

use super::source::RepoKind;

/// A data set or a model with a name of its own.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// `NAME`, or `NAME:SAMPLE`.
    pub name: &'static str,
    pub about: &'static str,
    /// Size of the download, in words.
    pub size: &'static str,
    pub kept: Kept,
}

/// The place of a data set or a model.
#[derive(Clone, Copy, Debug)]
pub enum Kept {
    /// Files of a repository of the hub that match one of these patterns.
    Hub { id: &'static str, kind: RepoKind, include: &'static [&'static str] },
    /// One file on GitHub.
    GitHub { path: &'static str, sha256: &'static str },
}

/// Samples of a name that has several, the default first.
const DEFAULT_SAMPLE: &str = "10BT";

/// Files that make up a model and its tokenizer.
pub(super) const MODEL_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "model-*-of-*.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
];

const fn dataset(id: &'static str, include: &'static [&'static str]) -> Kept {
    Kept::Hub { id, kind: RepoKind::Dataset, include }
}

const fn model(id: &'static str) -> Kept {
    Kept::Hub { id, kind: RepoKind::Model, include: MODEL_FILES }
}

/// All names. Sizes are those that the data sets' cards and the hub state.
#[rustfmt::skip]
pub const CATALOG: &[Entry] = &[
    Entry { name: "tinyshakespeare", about: "Shakespeare's plays, one text", size: "1.1 MB",
        kept: Kept::GitHub { path: "karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            sha256: "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed" } },
    Entry { name: "tinystories", about: "short stories by GPT-4, texts for training and validation", size: "2.2 GB",
        kept: dataset("roneneldan/TinyStories", &["TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"]) },
    Entry { name: "fineweb-edu:10BT", about: "educational web pages, 10 billion tokens", size: "28 GB",
        kept: dataset("HuggingFaceFW/fineweb-edu", &["sample/10BT/*.parquet"]) },
    Entry { name: "fineweb-edu:100BT", about: "the same, 100 billion tokens", size: "280 GB",
        kept: dataset("HuggingFaceFW/fineweb-edu", &["sample/100BT/*.parquet"]) },
    Entry { name: "fineweb-edu:350BT", about: "the same, 350 billion tokens", size: "1 TB",
        kept: dataset("HuggingFaceFW/fineweb-edu", &["sample/350BT/*.parquet"]) },
    Entry { name: "fineweb:10BT", about: "web pages, 10 billion tokens", size: "28 GB",
        kept: dataset("HuggingFaceFW/fineweb", &["sample/10BT/*.parquet"]) },
    Entry { name: "fineweb:100BT", about: "the same, 100 billion tokens", size: "280 GB",
        kept: dataset("HuggingFaceFW/fineweb", &["sample/100BT/*.parquet"]) },
    Entry { name: "fineweb:350BT", about: "the same, 350 billion tokens", size: "1 TB",
        kept: dataset("HuggingFaceFW/fineweb", &["sample/350BT/*.parquet"]) },
    Entry { name: "hellaswag", about: "10,042 questions, for eval --hellaswag", size: "12 MB",
        kept: Kept::GitHub { path: "rowanz/hellaswag/master/data/hellaswag_val.jsonl",
            sha256: "0aa3b88843990f3f10a97b9575c94d7b71fb2205240ba04ae4884d9e9c992588" } },
    Entry { name: "piqa", about: "questions on everyday physics", size: "4 MB",
        kept: dataset("baber/piqa", &["*.parquet"]) },
    Entry { name: "copa", about: "questions on causes and effects, from SuperGLUE", size: "0.1 MB",
        kept: dataset("aps/super_glue", &["copa/*.parquet"]) },
    Entry { name: "gpt2", about: "OpenAI's GPT-2, 124M parameters", size: "0.6 GB",
        kept: model("openai-community/gpt2") },
    Entry { name: "gpt2-medium", about: "355M parameters", size: "1.5 GB",
        kept: model("openai-community/gpt2-medium") },
    Entry { name: "gpt2-large", about: "774M parameters", size: "3.3 GB",
        kept: model("openai-community/gpt2-large") },
    Entry { name: "gpt2-xl", about: "1.6B parameters", size: "6.4 GB",
        kept: model("openai-community/gpt2-xl") },
];

impl Entry {
    /// The place, in words.
    pub fn place(&self) -> String {
        match self.kept {
            Kept::Hub { id, kind, .. } => format!("hub: {}{id}", kind.prefix()),
            Kept::GitHub { path, .. } => {
                let repository: Vec<&str> = path.split('/').take(2).collect();
                format!("github: {}", repository.join("/"))
            }
        }
    }

    /// The path of a file on GitHub.
    pub(super) fn place_of_github(&self) -> Option<&'static str> {
        match self.kept {
            Kept::GitHub { path, .. } => Some(path),
            Kept::Hub { .. } => None,
        }
    }

    /// Whether it is a model.
    pub fn is_model(&self) -> bool {
        matches!(self.kept, Kept::Hub { kind: RepoKind::Model, .. })
    }
}

/// Finds a name. A name that has samples stands for its smallest.
pub(super) fn find(name: &str) -> Option<&'static Entry> {
    let (base, sample) = name.split_once(':').unwrap_or((name, DEFAULT_SAMPLE));
    let sample = sample.strip_prefix("sample-").unwrap_or(sample);
    let is_it = |entry: &&Entry| match entry.name.split_once(':') {
        Some((known, of)) => known == base && of.eq_ignore_ascii_case(sample),
        None => entry.name == name,
    };
    CATALOG.iter().find(is_it)
}

/// All names, in words.
pub(super) fn names() -> String {
    CATALOG.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::digest::Digest;

    #[test]
    fn names_and_samples_are_found() {
        for entry in CATALOG {
            assert_eq!(find(entry.name).unwrap().name, entry.name);
        }
        for (name, expected) in [
            ("fineweb-edu", "fineweb-edu:10BT"),
            ("fineweb:100bt", "fineweb:100BT"),
            ("fineweb-edu:sample-350BT", "fineweb-edu:350BT"),
        ] {
            assert_eq!(find(name).unwrap().name, expected);
        }
        for name in ["", "gpt", "fineweb:20BT", "gpt2:10BT", "tinystories:10BT", "fineweb:"] {
            assert!(find(name).is_none(), "{name}");
        }
    }

    #[test]
    fn digests_have_the_length_of_digests() {
        for entry in CATALOG {
            if let Kept::GitHub { sha256, .. } = entry.kept {
                assert!(matches!(Digest::parse(sha256), Some(Digest::Sha256(_))), "{}", entry.name);
            }
        }
    }
}
