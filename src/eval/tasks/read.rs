//! The files of tasks: JSON lines with the fields of the Hugging Face data sets, which are those of
//! the authors' own files. Each becomes contexts and continuations in `lm_eval`'s words.

use super::encode::pair;
use super::{Choice, Example, FILE_BYTES, Norm, Task};
use crate::data::tokenizer::Tokenizer;
use crate::eval::is_space;
use crate::files;
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A question as text.
struct Question {
    /// Context and continuation of each choice.
    pairs: Vec<(String, String)>,
    /// The choices alone, whose lengths normalize losses.
    choices: Vec<String>,
    gold: usize,
}

/// Reads the lines of a task's file; `path` is where it is.
pub fn examples(task: Task, bytes: &[u8], path: &Path, tokenizer: &Tokenizer) -> Result<Vec<Example>> {
    let text = std::str::from_utf8(bytes).context("not UTF-8 text")?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let labels = if task == Task::Piqa { Labels::beside(path)? } else { Labels::default() };
    let parse = |(nth, (i, line)): (usize, (usize, &str))| {
        let label = labels.get(nth);
        example(task, line, label, tokenizer).map_err(|e| anyhow!("line {}: {e:#}", i + 1))
    };
    let examples: Vec<Example> = lines.enumerate().map(parse).collect::<Result<_>>()?;
    labels.check(examples.len())?;
    Ok(examples)
}

fn example(task: Task, line: &str, label: Option<&str>, tokenizer: &Tokenizer) -> Result<Example> {
    let mut doc: Value = serde_json::from_str(line)?;
    if let (Some(label), Some(fields)) = (label, doc.as_object_mut()) {
        fields.entry("label").or_insert_with(|| label.into());
    }
    let Question { pairs, choices, gold } = match task {
        Task::HellaSwag => hellaswag(&doc),
        Task::HellaSwagLlmc => return hellaswag_llmc(&doc, tokenizer),
        Task::Piqa => piqa(&doc),
        Task::Copa => copa(&doc),
        Task::ArcEasy | Task::ArcChallenge => arc(&doc),
        Task::WinoGrande => winogrande(&doc),
        Task::Lambada => lambada(&doc),
        Task::MultipleChoice => multiple_choice(&doc),
    }?;
    let encode = |(i, ((ctx, continuation), choice)): (usize, ((String, String), String))| {
        let (ctx, tokens) =
            pair(tokenizer, &ctx, &continuation).with_context(|| format!("choice {}", i + 1))?;
        let length = if task.norm() == Norm::Tokens { tokens.len() } else { choice.chars().count() };
        Ok(Choice { ctx: ctx.into(), tokens, length })
    };
    let choices = pairs.into_iter().zip(choices).enumerate().map(encode).collect::<Result<_>>()?;
    Ok(Example { choices, gold })
}

impl Question {
    /// Returns a question whose choices follow one context and a space.
    fn after(ctx: &str, choices: Vec<String>, gold: usize) -> Self {
        let pairs = choices.iter().map(|choice| (ctx.to_owned(), format!(" {choice}"))).collect();
        Question { pairs, choices, gold }
    }
}

/// `lm_eval`'s HellaSwag: the activity stands before the text, and notes in brackets are removed.
fn hellaswag(doc: &Value) -> Result<Question> {
    let endings = texts(&doc["endings"], "endings")?;
    let gold = label(doc, "label", endings.len())?;
    let [activity, a, b] = ["activity_label", "ctx_a", "ctx_b"].map(|field| text(doc, field));
    let ctx = without_notes(format!("{}: {} {}", activity?, a?, capitalized(b?)));
    Ok(Question::after(&ctx, endings.into_iter().map(without_notes).collect(), gold))
}

/// llm.c's HellaSwag: context and endings as they are, encoded one by one.
fn hellaswag_llmc(doc: &Value, tokenizer: &Tokenizer) -> Result<Example> {
    let filled = |text: &str, field: &str| {
        ensure!(!text.is_empty(), "{field} is \"\"; expected a text");
        Ok(())
    };
    let ctx = text(doc, "ctx")?;
    filled(ctx, "ctx")?;
    let endings = texts(&doc["endings"], "endings")?;
    let gold = label(doc, "label", endings.len())?;
    let ctx: Arc<[u32]> = tokenizer.encode_ordinary(ctx).into();
    let encode = |(i, ending): (usize, &&str)| {
        filled(ending, &format!("endings[{i}]"))?;
        let tokens = tokenizer.encode_ordinary(&format!(" {ending}"));
        Ok(Choice { ctx: ctx.clone(), length: tokens.len(), tokens })
    };
    let choices = endings.iter().enumerate().map(encode).collect::<Result<_>>()?;
    Ok(Example { choices, gold })
}

fn piqa(doc: &Value) -> Result<Question> {
    let [goal, sol1, sol2] = ["goal", "sol1", "sol2"].map(|field| text(doc, field));
    let gold = label(doc, "label", 2)?;
    Ok(Question::after(&format!("Question: {}\nAnswer:", goal?), vec![sol1?.into(), sol2?.into()], gold))
}

/// COPA, where `lm_eval` separates premise and choice by a space of its own and another.
fn copa(doc: &Value) -> Result<Question> {
    let connector = match text(doc, "question")? {
        "cause" => "because",
        "effect" => "therefore",
        other => bail!("question is {other:?}; expected cause or effect"),
    };
    // Without its last character, the period.
    let mut premise = text(doc, "premise")?.trim_matches(is_space).chars();
    premise.next_back();
    let choice = |field| {
        let mut rest = text(doc, field)?.chars();
        let first = rest.next().with_context(|| format!("{field} is \"\"; expected a text"))?;
        Ok::<_, anyhow::Error>(format!(" {}{}", first.to_lowercase(), rest.as_str()))
    };
    let choices = vec![choice("choice1")?, choice("choice2")?];
    Ok(Question::after(&format!("{} {connector}", premise.as_str()), choices, label(doc, "label", 2)?))
}

/// ARC: the fields of the Hugging Face data set, or of the authors' file, where `question` holds
/// `stem` and `choices`.
fn arc(doc: &Value) -> Result<Question> {
    let authors = doc["question"].is_object();
    let question = if authors { text(&doc["question"], "stem")? } else { text(doc, "question")? };
    let (choices, labels) = if authors {
        let all = doc["question"]["choices"].as_array().map_or(&[][..], Vec::as_slice);
        let column = |field| all.iter().map(|choice| text(choice, field)).collect::<Result<Vec<_>>>();
        (column("text")?, column("label")?)
    } else {
        (texts(&doc["choices"]["text"], "choices.text")?, texts(&doc["choices"]["label"], "choices.label")?)
    };
    ensure!(choices.len() == labels.len(), "{} choices, but {} labels", choices.len(), labels.len());
    let key = text(doc, "answerKey")?;
    let gold = labels.iter().position(|label| *label == key);
    let gold =
        gold.with_context(|| format!("answerKey is {key:?}; expected one of {}", labels.join(", ")))?;
    let choices = choices.into_iter().map(Into::into).collect();
    Ok(Question::after(&format!("Question: {question}\nAnswer:"), choices, gold))
}

/// WinoGrande by partial scoring: each option fills the blank, and the text after it is scored.
fn winogrande(doc: &Value) -> Result<Question> {
    let (before, after) = text(doc, "sentence")?.split_once('_').context("sentence has no blank, _")?;
    let choices = ["option1", "option2"].map(|field| Ok(format!("{before}{}", text(doc, field)?)));
    let choices: Vec<String> = choices.into_iter().collect::<Result<_>>()?;
    let gold = match text(doc, "answer")? {
        "1" => 0,
        "2" => 1,
        other => bail!("answer is {other:?}; expected 1 or 2 (the test split has none)"),
    };
    let target = format!(" {}", after.trim_matches(is_space));
    let pairs = choices.iter().map(|choice| (choice.clone(), target.clone())).collect();
    Ok(Question { pairs, choices, gold })
}

/// LAMBADA: the last word, which a space separates from the text before it.
fn lambada(doc: &Value) -> Result<Question> {
    let (ctx, word) = text(doc, "text")?.rsplit_once(' ').context("text has one word; expected more")?;
    Ok(Question::after(ctx, vec![word.into()], 0))
}

fn multiple_choice(doc: &Value) -> Result<Question> {
    let choices = texts(&doc["choices"], "choices")?;
    let gold = label(doc, "gold", choices.len())?;
    Ok(Question::after(text(doc, "context")?, choices.into_iter().map(Into::into).collect(), gold))
}

fn text<'a>(doc: &'a Value, field: &str) -> Result<&'a str> {
    doc[field].as_str().with_context(|| format!("{field} is {}; expected a text", doc[field]))
}

/// Returns at least two texts.
fn texts<'a>(value: &'a Value, field: &str) -> Result<Vec<&'a str>> {
    let all = value.as_array().with_context(|| format!("{field} is {value}; expected a list of texts"))?;
    ensure!(all.len() >= 2, "{field} has {} entries; expected at least 2", all.len());
    let text = |(i, value): (usize, &'a Value)| {
        value.as_str().with_context(|| format!("{field}[{i}] is {value}; expected a text"))
    };
    all.iter().enumerate().map(text).collect()
}

/// Returns the index of the right one of `choices`. Hugging Face's copies have some in quotes.
fn label(doc: &Value, field: &str, choices: usize) -> Result<usize> {
    let label = &doc[field];
    let number = label.as_u64().or_else(|| label.as_str()?.parse().ok());
    let number = number.and_then(|n| usize::try_from(n).ok()).filter(|&n| n < choices);
    number.with_context(|| {
        format!("{field} is {label}; expected 0 to {} (the test split has no labels)", choices - 1)
    })
}

/// Returns a text without `[notes]` in brackets, as `lm_eval` cleans HellaSwag.
fn without_notes(text: impl AsRef<str>) -> String {
    let text = text.as_ref().trim_matches(is_space).replace(" [title]", ". ");
    let (mut clean, mut rest) = (String::new(), text.as_str());
    while let Some(open) = rest.find('[') {
        let note = rest[open..].find([']', '\n']).filter(|&end| rest[open + end..].starts_with(']'));
        clean += &rest[..open];
        rest = match note {
            Some(end) => &rest[open + end + 1..],
            None => {
                clean.push('[');
                &rest[open + 1..]
            }
        };
    }
    (clean + rest).replace("  ", " ")
}

/// Returns a text whose first letter alone is large, as Python's `str.capitalize` does.
fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().map(|c| {
        let mut large = c.to_uppercase();
        large.next().into_iter().chain(large.flat_map(char::to_lowercase)).collect::<String>()
    });
    first.unwrap_or_default() + &chars.as_str().to_lowercase()
}

/// The labels of PIQA, which its authors put in a file of their own: `valid-labels.lst` beside
/// `valid.jsonl`.
#[derive(Default)]
struct Labels {
    path: PathBuf,
    lines: Option<Vec<String>>,
}

impl Labels {
    fn beside(path: &Path) -> Result<Self> {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let path = path.with_file_name(format!("{stem}-labels.lst"));
        if !path.exists() {
            return Ok(Labels::default());
        }
        let text = files::read_text(&path, FILE_BYTES)?;
        let lines = text.lines().map(|line| line.trim().to_owned()).collect();
        Ok(Labels { path, lines: Some(lines) })
    }

    /// The label of the nth question.
    fn get(&self, nth: usize) -> Option<&str> {
        Some(self.lines.as_ref()?.get(nth)?.as_str())
    }

    fn check(&self, questions: usize) -> Result<()> {
        let found = self.lines.as_ref().map_or(questions, Vec::len);
        ensure!(
            found == questions,
            "{questions} questions, but {} has {found} labels; expected as many",
            self.path.display()
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests;
