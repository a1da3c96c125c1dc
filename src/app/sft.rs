//! `warpsmith sft`: prompts and answers to masked token shards.

use crate::app::print;
use crate::cli::flags::warpsmith::SftArgs;
use crate::data::sft::{self, Columns, SftOptions, SftReport, SplitReport, Template, prepare};
use crate::data::tokenizer::Tokenizer;
use crate::report::progress::counting;
use crate::words::count;
use anyhow::{Context, Result, ensure};
use std::path::Path;

/// GPT-2's context, to which the lengths of examples are compared.
const CONTEXT: usize = 1024;

pub fn sft(args: &SftArgs) -> Result<()> {
    let is_piped = |path: &Path| path.as_os_str() == "-";
    ensure!(
        args.val.is_empty() || !args.val.iter().any(|path| is_piped(path)),
        "--val: expected files, found - for standard input"
    );
    let template = template(args.template.as_deref())?;
    let options = SftOptions {
        inputs: args.inputs.clone(),
        val: args.val.clone(),
        val_examples: args.val_examples,
        seed: args.seed,
        template,
        columns: Columns { prompt: args.prompt_column.clone(), response: args.response_column.clone() },
        skip_bad_lines: args.skip_bad_lines,
        output: args.output.clone(),
        tokenizer: Tokenizer::open(&args.tokenizer).context("--tokenizer")?,
        name: args.name.clone(),
        shard_size: args.shard_size as u64,
        force: args.force,
    };
    let report = counting("tokenizing", |progress| prepare(&options, progress))?;
    print_report(&report)
}

/// The template of `--template`, or the default one.
pub(super) fn template(path: Option<&Path>) -> Result<Template> {
    path.map_or_else(|| Ok(Template::default()), sft::template)
}

fn print_report(SftReport { val, train, lengths, shards }: &SftReport) -> Result<()> {
    for (split, &SplitReport { examples, tokens, counted }) in [("training", train), ("validation", val)] {
        let (examples, tokens) = (count(examples, "example"), count(tokens, "token"));
        print(format_args!("{split}: {examples}, {tokens}, of which {counted} count\n"))?;
    }
    let (longest, middle) = (lengths[lengths.len() - 1], lengths[lengths.len() / 2]);
    let long = lengths.len() - lengths.partition_point(|&length| length <= CONTEXT + 1);
    let more = match long {
        0 => String::new(),
        long => format!("; {long} do not fit GPT-2's context of {CONTEXT}"),
    };
    print(format_args!("tokens of an example: {middle} in the median, {longest} at most{more}\n"))?;
    shards.iter().try_for_each(|path| print(format_args!("{}\n", path.display())))
}
