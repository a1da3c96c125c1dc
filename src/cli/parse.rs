//! From `argv` to matches: llm.c's spelling of flags is rewritten for clap, and clap's errors
//! become one line.

use super::version;
use anyhow::{Result, anyhow, bail};
use clap::builder::{PossibleValue, StyledStr};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgMatches, Command, CommandFactory, FromArgMatches};
use std::error::Error;
use std::ffi::OsString;

/// The request of a command line.
#[derive(Clone, Debug)]
pub enum Parsed<T> {
    /// A run with these arguments.
    Run(T),
    /// Help or the version: print it and stop.
    Print(String),
}

/// Rewrites flags that clap cannot parse: llm.c's two letters after one dash (`-nk 5`, `-nk=5`),
/// `train_gpt2.py`'s underscores (`--batch_size`), and switches without a value (`--compile`). The
/// two-letter flags are the two-letter aliases of `command`.
///
/// # Errors
/// If a token such as `-bs` is unknown; clap would read it as `-b s`.
pub(super) fn respell(command: &Command, argv: Vec<OsString>) -> Result<Vec<OsString>> {
    let respelled = argv.into_iter().map(|token| match token.to_str() {
        Some(text) => respell_token(command, text).map(OsString::from),
        None => Ok(token),
    });
    let mut respelled = respelled.collect::<Result<Vec<_>>>()?;
    for i in 0..respelled.len() {
        let is_flag = |token: &OsString| token.to_str().is_some_and(|text| text.starts_with('-'));
        if is_switch(command, &respelled[i]) && respelled.get(i + 1).is_none_or(is_flag) {
            respelled[i].push("=1");
        }
    }
    Ok(respelled)
}

/// The name of the values of a flag that is on or off.
const SWITCH: &str = "0|1";

/// Whether `token` is the long name of a flag that is on or off.
fn is_switch(command: &Command, token: &OsString) -> bool {
    let Some(name) = token.to_str().and_then(|text| text.strip_prefix("--")) else { return false };
    let named = |arg: &&Arg| arg.get_long() == Some(name) || aliases(arg).any(|alias| alias == name);
    let values = command.get_arguments().find(named).and_then(Arg::get_value_names);
    values.is_some_and(|names| matches!(names, [only] if only.as_str() == SWITCH))
}

fn respell_token(command: &Command, token: &str) -> Result<String> {
    let (flag, value) = match token.split_once('=') {
        Some((flag, value)) => (flag, format!("={value}")),
        None => (token, String::new()),
    };
    if let Some(long) = flag.strip_prefix("--") {
        return Ok(format!("--{}{value}", long.replace('_', "-")));
    }
    let Some(letters) = flag.strip_prefix('-').filter(|l| l.starts_with(char::is_alphabetic)) else {
        return Ok(token.into());
    };
    let attached = &letters[letters.chars().next().map_or(0, char::len_utf8)..];
    if attached.is_empty() || attached.starts_with(|c: char| c.is_ascii_digit() || c == '-' || c == '.') {
        return Ok(token.into());
    }
    let known: Vec<&str> = command.get_arguments().filter_map(two_letters).collect();
    if command.get_arguments().any(|arg| aliases(arg).any(|alias| alias == letters && alias.len() == 2)) {
        return Ok(format!("--{letters}{value}"));
    }
    bail!("{flag}: unknown flag; those of two letters are -{}", known.join(" -"))
}

fn aliases(arg: &Arg) -> impl Iterator<Item = &str> {
    arg.get_all_aliases().unwrap_or_default().into_iter()
}

/// llm.c's two-letter name of a flag.
pub(super) fn two_letters(arg: &Arg) -> Option<&str> {
    aliases(arg).find(|alias| alias.len() == 2)
}

/// Adds what clap's derive cannot express: also two-letter names in the help.
pub(super) fn finish(command: Command) -> Command {
    list_values(command).mut_args(|arg| {
        let help = match (two_letters(&arg), arg.get_help()) {
            (Some(letters), Some(help)) => StyledStr::from(format!("{help} [llm.c: -{letters}]")),
            (_, help) => help.cloned().unwrap_or_default(),
        };
        arg.help(help)
    })
}

/// Lets flags take negative numbers, and shows the possible values of a flag as the name of its
/// value, in `--help` and in the documentation.
pub(super) fn list_values(command: Command) -> Command {
    let list = |arg: Arg| {
        let takes_number = arg.get_action().takes_values() && !arg.is_positional();
        let arg = if takes_number { arg.allow_negative_numbers(true) } else { arg };
        let values = arg.get_possible_values();
        let shown: Vec<_> = values.iter().filter(|v| !v.is_hide_set()).map(PossibleValue::get_name).collect();
        if shown.is_empty() || !arg.get_action().takes_values() {
            return arg;
        }
        let more = arg.get_value_delimiter().map_or(String::new(), |delimiter| format!("{delimiter}…"));
        let name = shown.join("|") + &more;
        arg.value_name(name).hide_possible_values(true)
    };
    // Without a width, all flags have their help on the same line.
    command.mut_args(list).term_width(0).mut_subcommands(list_values)
}

/// Runs clap; `argv` includes the program's name.
///
/// # Errors
/// One line: the flag, what was expected and what was found.
pub(super) fn matches(command: &Command, argv: Vec<OsString>) -> Result<Parsed<ArgMatches>> {
    let (program, detailed) = (command.get_name(), argv.iter().any(|token| token == "--version"));
    match command.clone().try_get_matches_from(argv) {
        Ok(matches) => Ok(Parsed::Run(matches)),
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp => Ok(Parsed::Print(error.render().to_string())),
            ErrorKind::DisplayVersion if detailed => Ok(Parsed::Print(version::details(program))),
            ErrorKind::DisplayVersion => Ok(Parsed::Print(version::line(program))),
            _ => Err(anyhow!(explain(command, &error))),
        },
    }
}

/// Parses the flags of a program without commands; `argv` includes its name.
///
/// # Errors
/// One line: the flag, what was expected and what was found.
pub fn parse_flags<T: CommandFactory + FromArgMatches>(argv: Vec<OsString>) -> Result<Parsed<T>> {
    Ok(match matches(&list_values(T::command()), argv)? {
        Parsed::Run(matches) => Parsed::Run(T::from_arg_matches(&matches)?),
        Parsed::Print(text) => Parsed::Print(text),
    })
}

/// Turns clap's error, which spans paragraphs, into one line.
fn explain(command: &Command, error: &clap::Error) -> String {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        Some(ContextValue::StyledStr(text)) => Some(text.to_string()),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg).map(|shown| label_of(command, &shown)).unwrap_or_default();
    let found = text(ContextKind::InvalidValue).unwrap_or_default();
    match error.kind() {
        ErrorKind::UnknownArgument if flag.starts_with('-') => {
            let near = text(ContextKind::SuggestedArg).filter(|near| is_near(&flag, near));
            let near = near.map(|near| label_of(command, &near));
            let near = near.and_then(|label| label.rsplit('/').next().map(str::to_owned));
            let hint = near.map_or("--help lists all".into(), |near| format!("did you mean {near}?"));
            format!("{flag}: unknown flag; {hint}")
        }
        ErrorKind::UnknownArgument
            if text(ContextKind::Usage).is_some_and(|usage| usage.contains(" -- ")) =>
        {
            format!("{flag}: put -- before the program")
        }
        ErrorKind::UnknownArgument => format!("{flag}: expected a flag here, found a value without one"),
        ErrorKind::ValueValidation => {
            let reason = error.source().map(|e| e.to_string()).unwrap_or_default();
            format!("{flag}: {reason}")
        }
        ErrorKind::InvalidValue if found.is_empty() => {
            let hint = if flag.starts_with("-h/") { "; for help use --help" } else { "" };
            format!("{flag}: expected a value after it, found none{hint}")
        }
        ErrorKind::InvalidValue => {
            let known = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(values)) => one_of(values),
                _ => String::new(),
            };
            format!("{flag}: expected {known}, found {found}")
        }
        ErrorKind::ArgumentConflict => {
            let other =
                text(ContextKind::PriorArg).map(|shown| label_of(command, &shown)).unwrap_or_default();
            format!("{flag}: cannot be used together with {other}")
        }
        ErrorKind::MissingRequiredArgument => format!("{flag}: missing; --help says what it is"),
        ErrorKind::InvalidSubcommand => {
            let name = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            let near = match error.get(ContextKind::SuggestedSubcommand) {
                Some(ContextValue::String(near)) => std::slice::from_ref(near),
                Some(ContextValue::Strings(all)) => all,
                _ => &[],
            };
            let near = near.iter().find(|near| is_near(&name, near));
            let hint = near.map_or(commands(command), |near| format!("did you mean {near}?"));
            format!("{name}: unknown command; {hint}")
        }
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            format!("no command given; {}", commands(command))
        }
        // Rarer kinds keep clap's own first line.
        _ => error.render().to_string().lines().next().unwrap_or("").trim_start_matches("error: ").to_owned(),
    }
}

/// Whether one name can be a misspelling of the other: at most every third letter differs, or one
/// begins with the other.
fn is_near(typed: &str, known: &str) -> bool {
    let bare =
        |name: &str| name.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default().to_owned();
    let (typed, known) = (bare(typed), bare(known));
    let begins =
        typed.len().min(known.len()) >= 3 && (known.starts_with(&typed) || typed.starts_with(&known));
    begins || edits(&typed, &known) * 3 <= known.chars().count().max(3)
}

/// The number of letters to insert, delete or replace that makes one word of the other.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// `cosine, linear or constant`.
fn one_of(names: &[String]) -> String {
    match names {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        _ => names.join(""),
    }
}

fn commands(command: &Command) -> String {
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    let names: Vec<&str> = shown.map(Command::get_name).collect();
    format!("expected {}", names.join(", "))
}

/// Returns `-b/--batch-size` for clap's `--batch-size <B>` or `--batch-size`, and other text
/// unchanged.
fn label_of(command: &Command, shown: &str) -> String {
    let bare = shown.split([' ', '=']).next().unwrap_or(shown);
    let named = |arg: &&Arg| {
        let is = |long| bare.strip_prefix("--") == Some(long);
        arg.get_long().is_some_and(is) || aliases(arg).any(is)
    };
    let arg =
        command.get_arguments().chain(command.get_subcommands().flat_map(Command::get_arguments)).find(named);
    arg.map_or(shown.to_owned(), label)
}

/// All spellings of a flag: `-b/--batch-size`, `-nk/--checkpoints-keep`, `--seed`.
pub(super) fn label(arg: &Arg) -> String {
    let long = arg.get_long().unwrap_or_default();
    match (arg.get_short(), two_letters(arg)) {
        (Some(letter), _) => format!("-{letter}/--{long}"),
        (None, Some(letters)) => format!("-{letters}/--{long}"),
        (None, None) => format!("--{long}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_misspelling_is_near() {
        for (typed, known) in [
            ("--max-token", "--max-tokens"),
            ("--lerning-rate", "--learning-rate"),
            ("--batchsize", "--batch-size"),
            ("--check", "--check-numerics"),
            ("dat", "data"),
            ("smaple", "sample"),
        ] {
            assert!(is_near(typed, known), "{typed} {known}");
        }
        for (typed, known) in [
            ("--unknown", "--nk"),
            ("--unknown", "--num-processes"),
            ("xyz", "data"),
            ("--dropout", "--output-dir"),
        ] {
            assert!(!is_near(typed, known), "{typed} {known}");
        }
        assert_eq!(["", "ab", "abc", "xabc", "abd"].map(|word| edits(word, "abc")), [3, 1, 0, 1, 1]);
    }
}
