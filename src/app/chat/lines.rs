//! The lines of a user: with an editor and a history on a terminal, otherwise read as they are; and
//! Ctrl-C.

use crate::app::note;
use anyhow::{Context, Result};
use rustyline::config::Configurer;
use rustyline::error::ReadlineError;
use rustyline::{DefaultEditor, history::DefaultHistory};
use signal_hook::consts::SIGINT;
use signal_hook::flag;
use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Asks for a line, and for what continues it.
const PROMPTS: [&str; 2] = ["> ", "  "];

/// Lines kept for the arrow keys.
const HISTORY: usize = 1000;

/// Exit status of a process that SIGINT ended, as shells have it.
const INTERRUPTED: i32 = 128 + SIGINT;

/// Something said, or the end of the input.
pub enum Line {
    Text(String),
    End,
}

/// The input of a conversation.
pub struct Lines {
    /// `None` if standard input or output is no terminal.
    editor: Option<Box<DefaultEditor>>,
    interrupted: Arc<AtomicBool>,
    /// Whether SIGINT ends the program: while it waits for a line without an editor.
    is_waiting: Arc<AtomicBool>,
}

impl Lines {
    /// Opens the input. SIGINT no longer ends the program, but what it writes.
    ///
    /// # Errors
    /// If the terminal cannot be used, or the handler cannot be installed.
    pub fn open() -> Result<Lines> {
        let (interrupted, is_waiting) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&is_waiting))
            .and_then(|_| flag::register(SIGINT, Arc::clone(&interrupted)))
            .context("could not listen for signals")?;
        let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
        let editor = is_terminal.then(open_editor).transpose().context("the terminal")?;
        Ok(Lines { editor, interrupted, is_waiting })
    }

    /// Whether a user types the lines and reads the answers.
    pub fn is_terminal(&self) -> bool {
        self.editor.is_some()
    }

    pub fn forget_interrupt(&self) {
        self.interrupted.store(false, Relaxed);
    }

    /// Whether Ctrl-C was pressed since [`Self::forget_interrupt`].
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Relaxed)
    }

    /// Waits for something to be said: a line, and the lines after it while they end with a
    /// backslash. Empty lines are passed over.
    ///
    /// # Errors
    /// If the input cannot be read, or is not UTF-8 text.
    pub fn next(&mut self) -> Result<Line> {
        let mut text = String::new();
        loop {
            if text.trim().is_empty() {
                text.clear();
            }
            let Some(line) = self.read(PROMPTS[usize::from(!text.is_empty())])? else {
                return Ok(if text.is_empty() { Line::End } else { Line::Text(text) });
            };
            if let Some(start) = line.strip_suffix('\\') {
                text += &format!("{start}\n");
                continue;
            }
            text += &line;
            if !text.trim().is_empty() {
                return Ok(Line::Text(text));
            }
        }
    }

    fn read(&mut self, prompt: &str) -> Result<Option<String>> {
        let Some(editor) = &mut self.editor else { return self.read_plain() };
        loop {
            match editor.readline(prompt) {
                Ok(line) => return Ok(Some(line)),
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Interrupted) => note("Ctrl-D or /exit leaves"),
                Err(error) => return Err(error).context("the terminal"),
            }
        }
    }

    fn read_plain(&self) -> Result<Option<String>> {
        let mut line = String::new();
        self.is_waiting.store(true, Relaxed);
        let read = io::stdin().read_line(&mut line);
        self.is_waiting.store(false, Relaxed);
        let is_end = read.context("standard input")? == 0;
        let line =
            line.strip_suffix('\n').map_or(line.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
        Ok((!is_end).then(|| line.to_owned()))
    }
}

fn open_editor() -> rustyline::Result<Box<DefaultEditor>> {
    let mut editor = rustyline::Editor::<(), DefaultHistory>::new()?;
    editor.set_auto_add_history(true);
    editor.set_max_history_size(HISTORY)?;
    Ok(Box::new(editor))
}
