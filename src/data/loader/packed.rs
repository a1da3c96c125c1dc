//! Sequences of whole documents, and where their targets count.

use super::{LoaderOptions, Sample};
use crate::data::buckets::rows_by_token;
use crate::data::mask::Mask;
use crate::data::order::Place;
use crate::data::order::documents::Documents;
use crate::data::order::packed::{Document, PackedOrder};
use crate::data::shard::Shard;
use crate::words::count;
use anyhow::{Context, Result, ensure};

/// The target of a row that does not count, as in PyTorch; models ignore every negative one.
const IGNORED: i32 = -100;

/// How documents become sequences. Those of masked shards are always packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packing {
    /// Whether the documents of shards without a mask are packed; those too long for a sequence are
    /// cut into several.
    pub documents: bool,
    /// Whether examples of masked shards that are too long for a sequence are left out. Otherwise
    /// their start is kept, unless none of the answer is in there.
    pub skip_long: bool,
}

/// The rows of packed documents in a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedRows {
    /// (B, T): the place of each input in its document.
    pub positions: Vec<i32>,
    /// (B T): rows sorted by position, as `rows_by_token`.
    pub rows_by_position: Vec<i32>,
}

impl PackedRows {
    pub fn new(positions: Vec<i32>) -> Self {
        PackedRows { rows_by_position: rows_by_token(&positions), positions }
    }
}

/// Packed documents of all shards.
#[derive(Debug)]
pub(super) struct Packed {
    pub order: PackedOrder,
    /// One per shard, or none: then every target counts.
    pub masks: Vec<Mask>,
    packing: Packing,
    /// The first token of each shard, and the end of the last.
    shards: Vec<u64>,
    /// The input of rows beyond the documents of a sequence.
    eot: u32,
}

/// Fills a slice with the tokens of a shard from an index on.
type ReadTokens<'a> = dyn FnMut(usize, usize, &mut [u32]) -> Result<()> + 'a;

/// Rows of a batch that is being read.
#[derive(Default)]
pub(super) struct Rows {
    pub inputs: Vec<i32>,
    pub targets: Vec<i32>,
    pub positions: Vec<i32>,
}

/// Examples of masked shards that do not become documents as they are.
#[derive(Default)]
struct Left {
    examples: usize,
    cut: usize,
    long: usize,
    unanswered: usize,
}

impl Packed {
    /// Finds and packs the documents, if the shards are masked or the options ask for it.
    ///
    /// # Errors
    /// One line, if a mask is missing or damaged, only some shards are masked, or there is no
    /// document to read.
    pub fn find(options: &LoaderOptions, shards: &[Shard]) -> Result<Option<Self>> {
        let LoaderOptions { pattern, flag, T, B, .. } = *options;
        let masked = shards.iter().filter(|shard| shard.is_masked()).count();
        if masked == 0 && !options.packing.documents {
            return Ok(None);
        }
        ensure!(
            masked == 0 || masked == shards.len(),
            "{flag} {pattern}: {masked} of {} have a mask and the others have none; give shards of one kind",
            count(shards.len(), "shard")
        );
        let open = |shard| Mask::open(shard).with_context(|| flag.to_owned());
        let masks: Vec<Mask> = shards.iter().filter(|s| s.is_masked()).map(open).collect::<Result<_>>()?;
        let mut ends = vec![0];
        shards.iter().for_each(|shard| ends.push(ends[ends.len() - 1] + shard.len() as u64));
        let (documents, left) = match masks.is_empty() {
            true => (plain_documents(shards, flag, T)?, Left::default()),
            false => examples(&masks, &ends, T, options.packing.skip_long),
        };
        left.say(options);
        ensure!(
            !documents.is_empty(),
            "{flag} {pattern}: no example has an answer within {T} tokens; raise -t, or shorten the prompts"
        );
        // Evaluation goes through all sequences in whole batches.
        let multiple = if options.sample == Sample::Batch { B } else { 1 };
        let order = PackedOrder::new(documents, T, multiple, options.shuffle);
        let rows: u64 = order.documents().iter().map(|document| u64::from(document.rows)).sum();
        log::info!(
            "{flag}: {} packed into {}, {:.1} % of them filled",
            count(order.documents().len(), "document"),
            count(order.sequences(), "sequence"),
            rows as f64 / (order.sequences() * T as u64) as f64 * 100.0
        );
        Ok(Some(Packed {
            order,
            masks,
            packing: options.packing,
            shards: ends,
            eot: shards[0].tokenizer().eot,
        }))
    }

    /// Which documents are packed.
    pub fn describe(&self) -> &'static str {
        match (self.masks.is_empty(), self.packing.skip_long) {
            (true, _) => "documents",
            (false, false) => "examples, long ones cut",
            (false, true) => "examples without long ones",
        }
    }

    /// The rows of a sequence that count.
    pub fn counted(&self, place: &Place) -> usize {
        match *place {
            Place::Sequence(sequence) => self.order.counted(sequence),
            _ => unreachable!("packed documents are read by sequences"),
        }
    }

    /// Appends the rows of a sequence. `read` reads tokens of a shard.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read(&self, sequence: usize, T: usize, rows: &mut Rows, read: &mut ReadTokens) -> Result<()> {
        let end = rows.inputs.len() + T;
        for document in self.order.members(sequence) {
            let n = document.rows as usize;
            let mut tokens = vec![0; n + 1];
            self.read_tokens(document.start, &mut tokens, read)?;
            rows.inputs.extend(tokens[..n].iter().map(|&token| token.cast_signed()));
            let target = |(row, &token): (usize, &u32)| match self.counts(document.start + row as u64 + 1) {
                true => token.cast_signed(),
                false => IGNORED,
            };
            rows.targets.extend(tokens[1..].iter().enumerate().map(target));
            rows.positions.extend(0..n as i32);
        }
        // The rest is a document in which nothing counts.
        let padding = end - rows.inputs.len();
        rows.inputs.resize(end, self.eot.cast_signed());
        rows.targets.resize(end, IGNORED);
        rows.positions.extend(0..padding as i32);
        Ok(())
    }

    /// Fills `tokens` with those from place `start` in all shards on.
    fn read_tokens(&self, mut start: u64, mut tokens: &mut [u32], read: &mut ReadTokens) -> Result<()> {
        while !tokens.is_empty() {
            let shard = self.shard_of(start);
            let left = usize::try_from(self.shards[shard + 1] - start).unwrap_or(usize::MAX);
            let (these, rest) = tokens.split_at_mut(left.min(tokens.len()));
            read(shard, (start - self.shards[shard]) as usize, these)?;
            start += these.len() as u64;
            tokens = rest;
        }
        Ok(())
    }

    fn counts(&self, place: u64) -> bool {
        let shard = self.shard_of(place);
        self.masks.get(shard).is_none_or(|mask| mask.counts((place - self.shards[shard]) as usize))
    }

    fn shard_of(&self, place: u64) -> usize {
        self.shards.partition_point(|&first| first <= place) - 1
    }
}

/// The documents of shards without a mask, in pieces of at most `T` rows. The last target of a
/// document is the end-of-text token that begins the next one.
fn plain_documents(shards: &[Shard], flag: &str, T: usize) -> Result<Vec<Document>> {
    let found = Documents::find(shards).with_context(|| flag.to_owned())?;
    let mut documents = Vec::new();
    for document in 0..found.len() {
        let range = found.range(document);
        let end = range.end.min(found.tokens() - 1);
        let mut start = range.start;
        while start < end {
            let rows = (end - start).min(T as u64) as u32;
            documents.push(Document { start, rows, counted: rows });
            start += u64::from(rows);
        }
    }
    Ok(documents)
}

/// The examples of masked shards that fit `T` rows, if need be without their end.
fn examples(masks: &[Mask], shards: &[u64], T: usize, skip_long: bool) -> (Vec<Document>, Left) {
    let (mut documents, mut left) = (Vec::new(), Left::default());
    for (mask, &first) in masks.iter().zip(shards) {
        for border in mask.borders().windows(2) {
            let (start, all_rows) = (border[0], border[1] - border[0] - 1);
            let rows = all_rows.min(T);
            let counted = (start + 1..start + 1 + rows).filter(|&target| mask.counts(target)).count();
            left.examples += 1;
            if all_rows > T && skip_long {
                left.long += 1;
            } else if counted == 0 {
                left.unanswered += 1;
            } else {
                left.cut += usize::from(all_rows > T);
                let (rows, counted) = (rows as u32, counted as u32);
                documents.push(Document { start: first + start as u64, rows, counted });
            }
        }
    }
    (documents, left)
}

impl Left {
    /// Says how many examples are cut and left out.
    fn say(&self, &LoaderOptions { flag, T, rank, .. }: &LoaderOptions) {
        let Left { examples, cut, long, unanswered } = *self;
        let of = count(examples, "example");
        let say = |number: usize, what: &str| {
            if number > 0 && rank == 0 {
                log::warn!("{flag}: {number} of {of} {what}");
            }
        };
        say(cut, &format!("cut at {T} tokens (-t); --skip-long-examples 1 leaves them out"));
        say(long, &format!("left out, as they are longer than {T} tokens (-t)"));
        say(unanswered, &format!("left out, as none of their answer is within {T} tokens (-t)"));
    }
}
