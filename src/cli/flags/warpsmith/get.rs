//! The flags of `warpsmith get`.

use crate::cli::values;
use crate::hub::RepoKind;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// Names that --list shows, such as tinystories, fineweb-edu:100BT or gpt2; or OWNER/NAME of a
    /// repository of the Hugging Face hub, also as hf://datasets/OWNER/NAME@REVISION/FILE
    #[arg(value_name = "NAME", required_unless_present = "list")]
    pub names: Vec<String>,
    /// Show the names, their sizes, and where they are kept
    #[arg(long)]
    pub list: bool,
    /// Directory to put the files into, as links to the cache [default: only the cache]
    #[arg(short = 'o', long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Copy the files into -o instead of linking them
    #[arg(long, requires = "output")]
    pub copy: bool,
    /// Branch, tag or commit of a repository [default: main]
    #[arg(long, value_name = "REVISION", value_parser = values::name)]
    pub revision: Option<String>,
    /// Kind of repository that OWNER/NAME is
    #[arg(long, value_enum, default_value = "model")]
    pub repo_type: RepoKind,
    /// Fetch only files whose name matches, with * and ?; may be repeated [default: those that
    /// NAME stands for]
    #[arg(long, value_name = "PATTERN", value_parser = values::name, action = clap::ArgAction::Append)]
    pub include: Vec<String>,
    /// Leave out files whose name matches; may be repeated
    #[arg(long, value_name = "PATTERN", value_parser = values::name, action = clap::ArgAction::Append)]
    pub exclude: Vec<String>,
    /// Files fetched at the same time
    #[arg(long, value_name = "N", default_value = "4", value_parser = values::count)]
    pub jobs: usize,
    /// Attempts after a failure, without a byte of progress between them
    #[arg(long, value_name = "N", default_value = "5", value_parser = values::whole)]
    pub retries: usize,
}
