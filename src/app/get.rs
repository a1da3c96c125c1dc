//! `warpsmith get`: files of the hub.

use crate::app::print;
use crate::cli::flags::warpsmith::GetArgs;
use crate::hub::{CATALOG, How, Hub, Options, Source, place};
use crate::report::progress::saying;
use crate::words::count;
use anyhow::Result;

pub fn get(args: &GetArgs) -> Result<()> {
    if args.list {
        return print(list());
    }
    // All names are checked before any is fetched.
    let source = |name: &String| {
        let source = Source::parse(name, args.repo_type)?.at_revision(args.revision.as_deref())?;
        source.only(&args.include, &args.exclude)
    };
    let sources: Vec<Source> = args.names.iter().map(source).collect::<Result<_>>()?;
    let retries = u32::try_from(args.retries).unwrap_or(u32::MAX);
    let hub = Hub::from_env(Options { jobs: args.jobs, retries, quiet: false })?;
    sources.iter().try_for_each(|source| fetch(args, &hub, source))
}

/// Fetches a source, and prints the paths of its files.
fn fetch(args: &GetArgs, hub: &Hub, source: &Source) -> Result<()> {
    let listing = saying("asking the hub", false, || hub.list(source))?;
    let (files, missing) = (count(listing.len(), "file"), listing.missing());
    log::info!("{}: {files}, {missing} to fetch into {}", source.name, listing.folder.display());
    for file in hub.fetch(listing)? {
        let path = match &args.output {
            Some(dir) => place(&file, dir, if args.copy { How::Copy } else { How::Link })?,
            None => file.path,
        };
        print(format_args!("{}\n", path.display()))?;
    }
    Ok(())
}

/// The names, as a table.
fn list() -> String {
    let width = |text: fn(&crate::hub::Entry) -> usize| CATALOG.iter().map(text).max().unwrap_or(0);
    let (names, sizes) = (width(|entry| entry.name.len()), width(|entry| entry.size.len()));
    let abouts = width(|entry| entry.about.len());
    let line = |entry: &crate::hub::Entry| {
        let (name, size, about, place) = (entry.name, entry.size, entry.about, entry.place());
        format!("{name:names$}  {size:>sizes$}  {about:abouts$}  {place}\n")
    };
    CATALOG.iter().map(line).collect()
}
