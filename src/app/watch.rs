//! `warpsmith watch`: the page that shows runs.

use super::{note, print};
use crate::cli::flags::warpsmith::WatchArgs;
use crate::files;
use crate::http::Server;
use crate::watch::{Watch, serve};
use anyhow::Result;
use std::net::Ipv4Addr;

pub fn watch(args: &WatchArgs) -> Result<()> {
    let watch = Watch::new(&args.dirs)?;
    if let Some(path) = &args.export {
        let page = watch.export()?;
        files::write(path, |out| Ok(out.write_all(page.as_bytes())?))?;
        return print(format_args!("{}\n", path.display()));
    }
    let server = Server::listen(Ipv4Addr::LOCALHOST.into(), args.port)?;
    print(format_args!("{}\n", server.url()?))?;
    note("open that address in a browser; Ctrl-C ends it");
    serve(server, watch)
}
