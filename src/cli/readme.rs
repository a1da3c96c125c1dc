//! The flags of `train_gpt2` and `train_gpt2cu` as Markdown for docs/flags.md, generated
//! from the table that parses them.

use super::flags::trainer as train;
use super::flags::trainer::presets::PRESETS;
use super::{Program, parse};
use anyhow::{Context, Result};
use clap::Arg;
use std::fmt::Write;
use std::fs;
use std::path::Path;

const BEGIN: &str = "<!-- flags: written by `warpsmith flags --write docs/flags.md` -->\n";
const END: &str = "<!-- /flags -->";

/// Renders all flags as Markdown: one table per heading of `--help`, then the presets. Where
/// `train_gpt2cu` differs, the cell shows both.
pub fn flags_markdown() -> String {
    let (command, for_gpus) = (train::command(Program::TrainGpt2), train::command(Program::TrainGpt2cu));
    let mut text = String::new();
    let mut heading = None;
    let both = command.get_arguments().zip(for_gpus.get_arguments());
    for (arg, other) in both.filter(|(arg, _)| arg.get_action().takes_values()) {
        assert_eq!(arg.get_id(), other.get_id(), "both programs have the same flags");
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            let title = heading.unwrap_or_default();
            let _ =
                write!(text, "\n**{title}**\n\n| Flag | Value | Default | Meaning |\n|---|---|---|---|\n");
        }
        let _ = writeln!(text, "{}", row(arg, other));
    }
    text.push_str(&presets());
    text.trim_start().to_owned()
}

fn row(arg: &Arg, other: &Arg) -> String {
    let value = both(&value(arg), &value(other), ", ");
    let default = both(&default(arg), &default(other), ", ");
    format!("| {} | {value} | {default} | {} |", names(arg), both(&help(arg), &help(other), ". "))
}

fn value(arg: &Arg) -> String {
    code(&arg.get_value_names().map(|names| names.join(" ")).unwrap_or_default())
}

fn default(arg: &Arg) -> String {
    let values: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    code(&values.join(" "))
}

/// Returns the help text without the two-letter name, which the first column already shows.
fn help(arg: &Arg) -> String {
    let help = arg.get_help().map(|help| help.to_string()).unwrap_or_default();
    cell(help.split(" [llm.c: -").next().unwrap_or_default())
}

/// Returns `text` alone if both programs agree, else both texts.
fn both(text: &str, other: &str, between: &str) -> String {
    if text == other { text.to_owned() } else { format!("{text}{between}`train_gpt2cu`: {other}") }
}

/// Lists all names of a flag: `-l`, `--learning-rate`, and its aliases from other programs.
fn names(arg: &Arg) -> String {
    let mut names: Vec<String> = parse::label(arg).split('/').map(code).collect();
    let others = arg.get_all_aliases().unwrap_or_default().into_iter().filter(|alias| alias.len() > 2);
    names.extend(others.map(|alias| code(&format!("--{alias}"))));
    names.join(", ")
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{}`", cell(text)) }
}

/// Escapes `|`, which would end the cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

/// Renders the flags that each preset stands for, in the order of the flags.
fn presets() -> String {
    let command = train::command(Program::TrainGpt2);
    let mut text = "\n**Presets**: the flags that each stands for; explicit flags win\n\n\
                    | Preset | Flags |\n|---|---|\n"
        .to_owned();
    for preset in &PRESETS {
        let flag = |arg: &Arg| {
            let value = preset.value(arg.get_id().as_str())?;
            Some(format!("{} {}", parse::label(arg).split('/').next().unwrap_or_default(), quoted(value)))
        };
        let flags: Vec<_> = command.get_arguments().filter_map(flag).collect();
        let _ = writeln!(text, "| {} | {} |", code(preset.name), code(&flags.join(" ")));
    }
    text
}

/// Returns `text` as a shell needs it.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:".contains(c);
    if text.chars().all(plain) { text.to_owned() } else { format!("\"{text}\"") }
}

/// Returns `text` with the current flags between its markers, or `None` if it has no markers.
pub fn with_flags(text: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}{END}{after}", flags_markdown()))
}

/// Updates the flags between the markers of a file.
///
/// # Errors
/// If the file has no markers, or cannot be read or written.
pub fn write_flags(path: &Path) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("{}: cannot read", path.display()))?;
    let text = with_flags(&text).with_context(|| {
        format!("{}: expected the markers {} and {END}, found none", path.display(), BEGIN.trim_end())
    })?;
    fs::write(path, text).with_context(|| format!("{}: cannot write", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_and_preset_is_shown() {
        let text = flags_markdown();
        let (flags, _) = text.split_once("**Presets**").unwrap();
        for arg in train::command(Program::TrainGpt2cu).get_arguments().filter(|arg| arg.get_id() != "help") {
            let long = arg.get_long().unwrap();
            assert_eq!(flags.matches(&format!("`--{long}`")).count(), 1, "--{long}\n{flags}");
        }
        let lines = [
            r"| `-b`, `--batch-size` | `B\|auto` | `4` | Micro-batch size: sequences per forward and backward pass; auto",
            "-e d12 -b 64 -t 1024 -d 524288 -x 19073 -l 6e-4 -u 715 -q 0.1 -c 0.1 -v 250 -s 250 -g 24 --samples 4 \
             --prompt \"Hello, I'm a language model,\" --sample-top-k 50 -h 1` |",
            "-e gpt3:c2048 -b 8 -t 2048 -d 1048576 -l 2e-4 --decay-tokens 260B --warmup-tokens 375M -q 0.1 --train-tokens 300B \
             -c 0.1",
            "| `--dtype` | `f32\\|bf16\\|auto`, `train_gpt2cu`: `bf16\\|fp16\\|f32\\|auto` | \
             `f32`, `train_gpt2cu`: `bf16` | Type of matmul operands; auto is bf16 on CPUs with AMX or \
             AVX512-BF16, else f32. `train_gpt2cu`: Type of parameters, activations and gradients; auto is bf16 |",
        ];
        for line in lines {
            assert!(text.contains(line), "{line}\n{text}");
        }
        assert!(text.contains("`-sg`, `--skip-update-gradz`") && text.contains(r"`0\|1`"), "{text}");
        assert!(text.lines().filter(|l| l.starts_with("| `")).all(|l| !l.contains("[llm.c")), "{text}");
    }

    #[test]
    fn a_section_is_replaced_and_the_rest_stays() {
        let text = format!("# Title\n{BEGIN}stale\n{END}\nrest\n");
        let new = with_flags(&text).unwrap();
        assert!(new.starts_with("# Title\n") && new.ends_with("-->\nrest\n") && !new.contains("stale"));
        assert_eq!(with_flags(&new).as_deref(), Some(&*new));
        assert_eq!(with_flags("no markers"), None);

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flags.md");
        assert!(format!("{:#}", write_flags(&path).unwrap_err()).contains("cannot read"));
        fs::write(&path, text).unwrap();
        write_flags(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), new);
        fs::write(&path, "").unwrap();
        assert!(write_flags(&path).unwrap_err().to_string().contains("expected the markers"));
    }
}
