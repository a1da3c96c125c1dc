//! Decodes the sequences of all requests together: continuous batching.
//!
//! Sequences join when a slot is free and leave when they end, between steps. A step is one matmul
//! per layer and weight for all of them, so the weights are read once for all.

use super::error::ApiError;
use super::logprobs::token_info;
use super::sequence::Sequence;
use crate::model::decode::BatchDecoder;
use crate::model::hooks::NoHooks;
use crate::ops::Ops;
use anyhow::Result;
use rayon::prelude::*;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvError, TryRecvError};

/// A message to the engine.
pub enum Message {
    Continue(Box<Sequence>),
    /// Nothing new is begun from here on, and the engine ends with the last sequence that runs.
    Stop,
}

/// A decoder, and the sequences in its slots and before them.
pub struct Engine {
    dev: Box<dyn Ops>,
    decoder: BatchDecoder,
    slots: Vec<Option<Box<Sequence>>>,
    waiting: VecDeque<Box<Sequence>>,
    stopping: bool,
}

impl Engine {
    pub fn new(dev: Box<dyn Ops>, decoder: BatchDecoder) -> Self {
        let slots = (0..decoder.slots()).map(|_| None).collect();
        Engine { dev, decoder, slots, waiting: VecDeque::new(), stopping: false }
    }

    /// The number of sequences that run at the same time.
    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    /// Serves messages until one of them is to stop.
    ///
    /// # Errors
    /// If the device fails.
    pub fn run(&mut self, messages: &Receiver<Message>) -> Result<()> {
        loop {
            self.receive(messages);
            self.slots.iter_mut().for_each(|slot| drop(slot.take_if(|sequence| !sequence.is_wanted())));
            self.waiting.retain(|sequence| sequence.is_wanted());
            if self.stopping {
                self.waiting.drain(..).for_each(|sequence| sequence.fail(ApiError::stopping()));
            }
            self.fill_slots()?;
            if !self.is_idle() {
                self.step()?;
            } else if self.stopping {
                return Ok(());
            }
        }
    }

    fn is_idle(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// Takes all messages that are there; waits for one if there is nothing else to do.
    fn receive(&mut self, messages: &Receiver<Message>) {
        while !self.stopping {
            let message = match self.is_idle() && self.waiting.is_empty() {
                true => messages.recv().map_err(|RecvError| TryRecvError::Disconnected),
                false => messages.try_recv(),
            };
            match message {
                Ok(Message::Continue(sequence)) => self.waiting.push_back(sequence),
                Ok(Message::Stop) | Err(TryRecvError::Disconnected) => self.stopping = true,
                Err(TryRecvError::Empty) => return,
            }
        }
        while let Ok(Message::Continue(sequence)) = messages.try_recv() {
            self.waiting.push_back(sequence);
        }
    }

    /// Starts sequences that wait, in the order of their arrival.
    fn fill_slots(&mut self) -> Result<()> {
        while let Some(slot) = self.slots.iter().position(Option::is_none)
            && let Some(sequence) = self.waiting.pop_front()
        {
            self.start(slot, sequence)?;
        }
        Ok(())
    }

    /// Runs a prompt, and picks the token after it.
    fn start(&mut self, slot: usize, mut sequence: Box<Sequence>) -> Result<()> {
        let tokens: Vec<i32> = sequence.prompt.tokens.iter().map(|token| token.cast_signed()).collect();
        let dev = self.dev.as_mut();
        let logits = self.decoder.prefill(dev, &mut NoHooks, slot, &tokens)?;
        let mut after = Vec::new();
        if let Some(top) = sequence.options.logprobs.filter(|_| sequence.scores_prompt()) {
            let mut next = sequence.prompt.tokens[1..].iter();
            self.decoder.prompt_logits(dev, tokens.len(), &mut |logits| {
                // The last row is before the continuation.
                after.extend(next.next().map(|&token| token_info(logits, token, top)));
                Ok(())
            })?;
        }
        sequence.begin(after);
        if sequence.advance(&logits) {
            self.slots[slot] = Some(sequence);
        }
        Ok(())
    }

    /// Appends a token to all sequences in slots.
    fn step(&mut self) -> Result<()> {
        let running = self.slots.iter().enumerate();
        let tokens: Vec<(usize, i32)> = running
            .filter_map(|(slot, sequence)| Some((slot, sequence.as_ref()?.last().cast_signed())))
            .collect();
        let logits = self.decoder.step(self.dev.as_mut(), &mut NoHooks, &tokens)?;
        let running: Vec<_> = self.slots.iter_mut().filter(|slot| slot.is_some()).collect();
        running.into_par_iter().zip(logits.par_chunks_exact(self.decoder.V())).for_each(|(slot, logits)| {
            drop(slot.take_if(|sequence| !sequence.advance(logits)));
        });
        Ok(())
    }
}
