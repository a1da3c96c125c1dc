//! `warpsmith watch`: the page that shows runs.

use super::{note, print};
use crate::cli::flags::warpsmith::WatchArgs;
use crate::files;
use crate::watch::{Watch, http::Server};
use anyhow::Result;

pub fn watch(args: &WatchArgs) -> Result<()> {
    let watch = Watch::new(&args.dirs)?;
    if let Some(path) = &args.export {
        let page = watch.export()?;
        files::write(path, |out| Ok(out.write_all(page.as_bytes())?))?;
        return print(format_args!("{}\n", path.display()));
    }
    let server = Server::listen(args.port)?;
    print(format_args!("{}\n", server.url()?))?;
    note("open that address in a browser; Ctrl-C ends it");
    server.serve(move |path| watch.answer(path))
}
