//! The lines that a thread logs, for tests.

use log::Level;
use std::cell::RefCell;
use std::sync::Once;

thread_local! {
    static LINES: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

struct Keeper;

impl log::Log for Keeper {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.level() <= Level::Info
    }
    fn log(&self, record: &log::Record) {
        if self.enabled(record.metadata()) {
            let line = (record.level(), record.args().to_string());
            LINES.with_borrow_mut(|lines| lines.push(line));
        }
    }
    fn flush(&self) {}
}

/// Returns the warnings since the last call of either function.
pub fn take_warnings() -> Vec<String> {
    take(|level| level <= Level::Warn)
}

/// Returns the lines of level `info` since the last call of either function.
pub fn take_infos() -> Vec<String> {
    take(|level| level == Level::Info)
}

fn take(wanted: impl Fn(Level) -> bool) -> Vec<String> {
    static SET: Once = Once::new();
    SET.call_once(|| {
        log::set_logger(&Keeper).expect("no other logger in unit tests");
        log::set_max_level(log::LevelFilter::Info);
    });
    LINES.take().into_iter().filter(|(level, _)| wanted(*level)).map(|(_, line)| line).collect()
}
