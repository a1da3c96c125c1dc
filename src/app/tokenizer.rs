//! `warpsmith tokenizer`: learns and converts vocabularies.

use crate::app::print;
use crate::checkpoint;
use crate::cli::flags::warpsmith::{TokenizerConvertArgs, TokenizerTool, TokenizerTrainArgs};
use crate::data::learn::{LearnOptions, learn};
use crate::data::tokenizer::Tokenizer;
use crate::files;
use crate::report::progress::counting;
use crate::words::count;
use anyhow::{Result, ensure};
use std::path::Path;

pub fn run(tool: &TokenizerTool) -> Result<()> {
    match tool {
        TokenizerTool::Train(args) => train(args),
        TokenizerTool::Convert(args) => convert(args),
    }
}

fn train(args: &TokenizerTrainArgs) -> Result<()> {
    checkpoint::ensure_free(&args.output, args.force)?;
    ensure_extension(&args.output, &["json"])?;
    let options = LearnOptions {
        inputs: args.inputs.clone(),
        vocab_size: args.vocab_size,
        text_column: args.text_column.clone(),
        skip_bad_lines: args.skip_bad_lines,
    };
    let (tokenizer, report) = counting("counting words", |progress| learn(&options, progress))?;
    write(&tokenizer, &args.output)?;
    let (documents, bytes) = (count(report.documents, "document"), count(report.bytes, "byte"));
    let (out, words) = (args.output.display(), count(report.words, "distinct word"));
    print(format_args!("{out}: {} tokens from {documents}, {bytes}, {words}\n", tokenizer.vocab_size()))
}

fn convert(args: &TokenizerConvertArgs) -> Result<()> {
    checkpoint::ensure_free(&args.output, args.force)?;
    ensure_extension(&args.output, &["json", "bin"])?;
    let tokenizer = Tokenizer::open(&args.input)?;
    write(&tokenizer, &args.output)?;
    let (out, tokens) = (args.output.display(), tokenizer.vocab_size());
    print(format_args!("{out}: {tokens} tokens, {} is {}\n", tokenizer.eot_text(), tokenizer.eot()))
}

fn ensure_extension(path: &Path, known: &[&str]) -> Result<()> {
    let end = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
    let expected: Vec<String> = known.iter().map(|end| format!(".{end}")).collect();
    ensure!(
        known.contains(&end),
        "tokenizer: expected a file that ends in {}, found {}",
        expected.join(" or "),
        path.display()
    );
    Ok(())
}

/// Writes a tokenizer in the format that the extension selects.
fn write(tokenizer: &Tokenizer, path: &Path) -> Result<()> {
    files::make_room(path)?;
    if path.extension().is_some_and(|end| end == "bin") {
        return tokenizer.write_llmc(path);
    }
    files::write(path, |out| Ok(out.write_all(tokenizer.json().as_bytes())?))
}
