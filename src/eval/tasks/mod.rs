//! Multiple choice in one form: an example has any number of choices, each a context and a
//! continuation, of which one is right. HellaSwag, PIQA, COPA, ARC and WinoGrande are such tasks;
//! LAMBADA has one choice, which greedy decoding must write.
//!
//! Prompts and measures are those of EleutherAI's lm-evaluation-harness (`lm_eval` 0.4) without
//! examples in the prompt, so that numbers agree with published ones. [`read`] reads the files of
//! each task, [`bin`] llm.c's file of HellaSwag, [`score`] scores the examples.

mod bin;
mod encode;
mod read;
mod score;

pub use score::{Evaluation, Item, Score, evaluate};

use crate::config::ModelConfig;
use crate::data::tokenizer::{Tokenizer, TokenizerId};
use crate::files;
use crate::words::count;
use anyhow::{Result, anyhow, bail, ensure};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

/// Size limit of a file. HellaSwag's largest has 48 MB.
const FILE_BYTES: u64 = 1 << 30;

/// The tasks, by their names in `lm_eval`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    HellaSwag,
    /// HellaSwag as llm.c and build-nanogpt measure it: the text as it is, losses averaged over
    /// tokens. GPT-2 124M answers 29.55 % of the validation split.
    HellaSwagLlmc,
    Piqa,
    Copa,
    ArcEasy,
    ArcChallenge,
    WinoGrande,
    Lambada,
    /// Any other questions, with the fields `context`, `choices` and `gold`.
    MultipleChoice,
}

/// The measure of a choice that `acc_norm` compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// There is none: choices are as long as each other, or their contexts differ.
    None,
    /// Loss per token.
    Tokens,
    /// Loss per character of the choice, without the space before it.
    Characters,
}

impl Task {
    pub const ALL: [Task; 9] = [
        Task::HellaSwag,
        Task::HellaSwagLlmc,
        Task::Piqa,
        Task::Copa,
        Task::ArcEasy,
        Task::ArcChallenge,
        Task::WinoGrande,
        Task::Lambada,
        Task::MultipleChoice,
    ];

    /// Returns the name on command lines.
    pub fn name(self) -> &'static str {
        match self {
            Task::HellaSwag => "hellaswag",
            Task::HellaSwagLlmc => "hellaswag_llmc",
            Task::Piqa => "piqa",
            Task::Copa => "copa",
            Task::ArcEasy => "arc_easy",
            Task::ArcChallenge => "arc_challenge",
            Task::WinoGrande => "winogrande",
            Task::Lambada => "lambada",
            Task::MultipleChoice => "multiple_choice",
        }
    }

    /// Returns the beginning of its keys in logs: `piqa` of `piqa_acc`. Logs called llm.c's
    /// HellaSwag `hellaswag` before there was the other.
    pub fn key(self) -> &'static str {
        match self {
            Task::HellaSwag => "hellaswag_lm_eval",
            Task::HellaSwagLlmc => "hellaswag",
            task => task.name(),
        }
    }

    /// Returns the name for people.
    pub fn title(self) -> &'static str {
        match self {
            Task::HellaSwag => "HellaSwag (lm_eval)",
            Task::HellaSwagLlmc => "HellaSwag",
            Task::Piqa => "PIQA",
            Task::Copa => "COPA",
            Task::ArcEasy => "ARC-easy",
            Task::ArcChallenge => "ARC-challenge",
            Task::WinoGrande => "WinoGrande",
            Task::Lambada => "LAMBADA",
            Task::MultipleChoice => "multiple choice",
        }
    }

    pub fn norm(self) -> Norm {
        match self {
            Task::HellaSwagLlmc => Norm::Tokens,
            Task::Copa | Task::WinoGrande | Task::Lambada => Norm::None,
            _ => Norm::Characters,
        }
    }

    /// Whether an example is right if greedy decoding writes its one choice.
    pub fn is_greedy(self) -> bool {
        self == Task::Lambada
    }
}

impl FromStr for Task {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Task::ALL.map(Task::name).join(", ");
        // The two of lm_eval differ in their files alone.
        let name = if matches!(name, "lambada_openai" | "lambada_standard") { "lambada" } else { name };
        let found = Task::ALL.into_iter().find(|task| task.name() == name);
        found.ok_or_else(|| format!("expected a task ({known}), found {name}"))
    }
}

/// A task and its file: `piqa=valid.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskFile {
    pub task: Task,
    pub path: PathBuf,
}

impl FromStr for TaskFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('=').filter(|(_, path)| !path.is_empty());
        let (name, path) =
            parts.ok_or_else(|| format!("expected NAME=FILE, such as piqa=valid.jsonl, found {text}"))?;
        Ok(TaskFile { task: name.parse()?, path: path.into() })
    }
}

impl fmt::Display for TaskFile {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}={}", self.task.name(), self.path.display())
    }
}

/// A choice as the model reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Not empty: the first token that is scored is predicted from it.
    pub ctx: Arc<[u32]>,
    /// The tokens that are scored; not empty.
    pub tokens: Vec<u32>,
    /// The length by which `acc_norm` divides the loss: tokens or characters, as the task's
    /// [`Norm`] says.
    pub length: usize,
}

impl Choice {
    fn len(&self) -> usize {
        self.ctx.len() + self.tokens.len()
    }
}

/// A question with its choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub choices: Vec<Choice>,
    /// The index of the right choice.
    pub gold: usize,
}

impl Example {
    /// Returns the number of tokens in the longest choice and its context.
    pub fn longest(&self) -> usize {
        self.choices.iter().map(Choice::len).max().unwrap_or(0)
    }

    /// Returns whether a model of `maxT` positions can score every choice. A context may lose its
    /// start, but at least one token of it has to remain.
    fn fits(&self, maxT: usize) -> bool {
        self.choices.iter().all(|choice| choice.tokens.len() <= maxT)
    }
}

/// The examples of a file, in its order.
#[derive(Clone, Debug)]
pub struct Questions {
    pub task: Task,
    /// The file, for messages.
    pub path: PathBuf,
    /// The tokenizer of the examples.
    pub tokenizer: TokenizerId,
    pub examples: Vec<Example>,
}

impl Questions {
    /// Reads the file of a task: JSON lines, or for llm.c's HellaSwag also its `.bin`, which the
    /// first bytes tell. Text is encoded by `tokenizer`.
    ///
    /// # Errors
    /// One line that names the file, the line or example, and the field at fault; or tokens are
    /// those of another tokenizer.
    pub fn open(task: Task, path: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let path = path.as_ref();
        let help = match task {
            Task::HellaSwagLlmc => {
                "; expected HellaSwag's hellaswag_val.jsonl, which `warpsmith get hellaswag` fetches, or llm.c's \
                 .bin of it"
            }
            _ => "",
        };
        let bytes = files::read(path, FILE_BYTES).map_err(|e| anyhow!("{e:#}{help}"))?;
        let bytes = files::strip_bom(&bytes);
        let is_json = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
        let examples = match task {
            Task::HellaSwagLlmc if !is_json => bin::parse(bytes, tokenizer),
            _ => read::examples(task, bytes, path, tokenizer),
        };
        let examples = examples.map_err(|e| anyhow!("{}: {e:#}", path.display()))?;
        ensure!(!examples.is_empty(), "{}: no examples", path.display());
        Ok(Questions { task, path: path.to_path_buf(), tokenizer: tokenizer.id(), examples })
    }

    /// Writes llm.c's `.bin`.
    ///
    /// # Errors
    /// If the number of examples, the size of one or a token exceeds 16 bits, or the file cannot be
    /// written.
    ///
    /// # Panics
    /// If choices of an example differ in their contexts.
    pub fn write_bin(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let bytes =
            bin::write(&self.examples, self.tokenizer).map_err(|e| anyhow!("{}: {e:#}", path.display()))?;
        files::write(path, |out| Ok(out.write_all(&bytes)?))
    }

    /// Returns the number of tokens in the longest row. A model whose buffers hold this many rows,
    /// or `maxT` if that is less, can evaluate all examples; larger buffers are faster.
    pub fn longest(&self) -> usize {
        self.examples.iter().map(Example::longest).max().unwrap_or(0)
    }

    /// Checks that a model can score the examples, so that no evaluation fails later. Returns a
    /// warning if some are left out, because a choice alone is longer than the model's context.
    ///
    /// # Errors
    /// One line, if a token is outside the model's vocabulary, or no example is left.
    pub fn check(&self, config: &ModelConfig) -> Result<Option<String>> {
        let &ModelConfig { V, maxT, .. } = config;
        for (i, example) in self.examples.iter().enumerate() {
            let mut tokens =
                example.choices.iter().flat_map(|choice| choice.ctx.iter().chain(&choice.tokens));
            if let Some(token) = tokens.find(|&&token| token as usize >= V) {
                let what = format!("example {i} has token {token}, but the model knows {V} tokens");
                bail!("{}: {what}", self.path.display());
            }
        }
        let left_out = self.examples.iter().filter(|example| !example.fits(maxT)).count();
        ensure!(
            left_out < self.examples.len(),
            "{}: every example has an ending longer than the model's context of {maxT} tokens",
            self.path.display()
        );
        let (examples, all) = (count(left_out, "example"), self.examples.len());
        let why = format!("as an ending is longer than the model's context of {maxT} tokens");
        Ok((left_out > 0).then(|| format!("{}: leaves out {examples} of {all}, {why}", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_names_that_parse() {
        for task in Task::ALL {
            assert_eq!(task.name().parse(), Ok(task));
        }
        assert_eq!("lambada_openai".parse(), Ok(Task::Lambada));
        let file: TaskFile = "arc_easy=a=b.jsonl".parse().unwrap();
        assert_eq!((file.task, file.path.to_str()), (Task::ArcEasy, Some("a=b.jsonl")));
        assert_eq!(file.to_string(), "arc_easy=a=b.jsonl");
        for (text, error) in [
            ("piqa", "expected NAME=FILE, such as piqa=valid.jsonl, found piqa"),
            ("piqa=", "expected NAME=FILE, such as piqa=valid.jsonl, found piqa="),
        ] {
            assert_eq!(text.parse::<TaskFile>().unwrap_err(), error);
        }
        let unknown = "mmlu=a".parse::<TaskFile>().unwrap_err();
        assert!(unknown.starts_with("expected a task (hellaswag, ") && unknown.ends_with("found mmlu"));
    }

    #[test]
    fn keys_of_logs_are_all_different() {
        let mut keys = Task::ALL.map(Task::key);
        keys.sort_unstable();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "{keys:?}");
    }
}
