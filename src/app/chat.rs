//! `warpsmith chat`: a conversation with a model.

mod lines;

use crate::app::model::{Loaded, load, open_decoder};
use crate::app::{error_line, note, print, sample, sft};
use crate::cli::flags::warpsmith::{ChatArgs, ChatForm};
use crate::data::sft::{Dialog, Form};
use crate::data::tokenizer::Tokenizer;
use crate::files;
use crate::hub::CATALOG;
use crate::ops::Ops;
use crate::sample::{Ending, Sampler, Session, UpToMark};
use anyhow::{Result, bail, ensure};
use lines::{Line, Lines};
use std::ops::ControlFlow;
use std::path::Path;

/// The commands, as `/help` lists them.
const HELP: &str = "\
/reset      forget the conversation
/save FILE  write it as JSON lines, which `warpsmith sft` reads
/help       show this list
/exit       leave, as Ctrl-D does

Ctrl-C ends an answer. A line that ends with \\ goes on in the next one. // at the start of a line is
a / of the text.
";

pub fn chat(args: &ChatArgs) -> Result<()> {
    let form = args.form.map(|form| match form {
        ChatForm::Messages => Form::Messages,
        ChatForm::Pair => Form::Pair,
    });
    let dialog = Dialog::new(&sft::template(args.template.as_deref())?, form, args.system.as_deref())?;
    let sampler = Sampler::new(sample::options(&args.sampler, 0))?;
    let (file, tokenizer) = load(&args.model, args.adapter.as_deref(), &args.numbers)?;
    let tokenizer = tokenizer.known()?;
    if is_base_model(args) {
        note("this model was not fine-tuned for conversations, so it continues text");
    }
    let Loaded { dev, model } = open_decoder(&args.numbers, file)?;
    let session = Session::new(model);
    let max_new = args.max_tokens;
    let mut chat = Chat { dev, session, sampler, dialog, tokenizer, max_new, said_that_it_is_full: false };
    let mut lines = Lines::open()?;
    if lines.is_terminal() {
        note("/help lists the commands, Ctrl-C ends an answer, Ctrl-D leaves");
    }
    loop {
        let done = match lines.next()? {
            Line::End => return Ok(()),
            Line::Text(text) => chat.take(&text, &lines),
        };
        match done {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => return Ok(()),
            // A script must not go on without what it asked for.
            Err(error) if lines.is_terminal() && error.is::<Refused>() => note(error_line("chat", &error)),
            Err(error) => return Err(error),
        }
    }
}

/// Whether the model is known not to have been fine-tuned.
fn is_base_model(args: &ChatArgs) -> bool {
    let name = args.model.to_str().filter(|_| !args.model.exists() && args.adapter.is_none());
    CATALOG.iter().any(|entry| entry.is_model() && Some(entry.name) == name)
}

/// A command that cannot be carried out, after which the conversation may go on.
#[derive(Debug)]
struct Refused(String);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refused {}

/// A model in a conversation.
struct Chat<'a> {
    dev: Box<dyn Ops>,
    session: Session,
    sampler: Sampler,
    dialog: Dialog,
    tokenizer: &'a Tokenizer,
    max_new: usize,
    said_that_it_is_full: bool,
}

impl Chat<'_> {
    /// Carries out a command, or answers.
    fn take(&mut self, text: &str, lines: &Lines) -> Result<ControlFlow<()>> {
        let Some(command) = text.strip_prefix('/').filter(|rest| !rest.starts_with('/')) else {
            self.answer(text.strip_prefix('/').unwrap_or(text), lines)?;
            return Ok(ControlFlow::Continue(()));
        };
        let (name, argument) = command.trim().split_once(char::is_whitespace).unwrap_or((command.trim(), ""));
        match (name, argument.trim()) {
            ("exit" | "quit", "") => return Ok(ControlFlow::Break(())),
            ("reset", "") => self.dialog.reset(),
            ("help", "") => print(HELP)?,
            ("save", "") => bail!(Refused("/save: expected a file, found nothing".to_owned())),
            ("save", path) => {
                self.save(Path::new(path)).map_err(|error| Refused(format!("/save: {error:#}")))?
            }
            _ => bail!(Refused(format!("/{}: unknown command; /help lists all", command.trim()))),
        }
        Ok(ControlFlow::Continue(()))
    }

    fn save(&self, path: &Path) -> Result<()> {
        ensure!(!self.dialog.is_empty(), "nothing has been said");
        let exists = path.symlink_metadata().is_ok();
        ensure!(!exists, "{}: already exists; choose another name", path.display());
        files::write(path, |out| Ok(out.write_all(self.dialog.json_lines().as_bytes())?))?;
        note(format_args!("{}: written", path.display()));
        Ok(())
    }

    /// Says something to the model, and prints its answer as it is written.
    fn answer(&mut self, said: &str, lines: &Lines) -> Result<()> {
        self.dialog.say(said);
        let tokens = self.make_room();
        let (tokenizer, mut text) = (self.tokenizer, UpToMark::new(self.dialog.marks()));
        let mut answer = String::new();
        lines.forget_interrupt();
        let ending = self.session.answer(
            self.dev.as_mut(),
            &mut self.sampler,
            &tokens,
            (tokenizer.eot(), self.max_new),
            &|| !lines.is_interrupted(),
            &mut |token| {
                let piece = text.push(tokenizer.token_bytes(token).unwrap_or_default());
                answer += &piece;
                print(piece)?;
                Ok(if text.is_over() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            },
        )?;
        let is_over = text.is_over();
        let rest = text.finish();
        answer += &rest;
        let end = if answer.ends_with('\n') { "" } else { "\n" };
        print(format_args!("{rest}{end}"))?;
        // A model that begins the next turn has put a line break before it.
        self.dialog.answer(if is_over { answer.trim_end() } else { &answer });
        if ending == Ending::Full {
            note(format_args!("the answer is cut: the context of {} tokens is full", self.session.context()));
        }
        Ok(())
    }

    /// Leaves out the oldest turns until the others leave room for an answer, and returns the
    /// tokens to continue.
    fn make_room(&mut self) -> Vec<u32> {
        let context = self.session.context();
        let room = (context - self.max_new.min(context / 2)).max(1);
        let mut tokens = self.dialog.tokens(self.tokenizer);
        let mut is_full = false;
        while tokens.len() > room && self.dialog.leave_out_one() {
            is_full = true;
            tokens = self.dialog.tokens(self.tokenizer);
        }
        if is_full && !std::mem::replace(&mut self.said_that_it_is_full, true) {
            note(format_args!(
                "the context of {context} tokens is full, so the model no longer reads the oldest turns"
            ));
        }
        if tokens.len() > room {
            let len = tokens.len();
            log::warn!("the text has {len} tokens; the model reads only the last {room}");
            tokens.drain(..len - room);
        }
        tokens
    }
}
