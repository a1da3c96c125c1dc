//! Scoring: the loss of each choice's tokens given its context, summed (`acc`) and by length
//! (`acc_norm`); and whether they are what greedy decoding writes.

use super::{Choice, Example, Norm, Questions, Task};
use crate::eval::rows::{Row, count_passes, pack, run};
use crate::model::hooks::LayerHooks;
use crate::model::{BatchShape, GPT2};
use crate::ops::Ops;
use anyhow::{Result, ensure};
use std::ops::Add;

/// Counts of right answers. The score of a run is the sum over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Score {
    pub total: usize,
    /// Right by the lowest sum of losses, or by greedy decoding.
    pub correct: usize,
    /// Right by the lowest loss for its length, which does not favor short choices.
    pub correct_norm: usize,
    /// Losses of the right choices in nats, added up.
    pub nats: f64,
    /// Right answers to expect of a guess.
    pub guessed: f64,
}

impl Score {
    /// Returns the measures of a task and their names in logs: `acc`, and `acc_norm` or
    /// `perplexity`. Accuracies are in 0 ..= 1; the perplexity is that of whole last words.
    pub fn measures(&self, task: Task) -> Vec<(&'static str, f64)> {
        let share = |count: usize| count as f64 / self.total as f64;
        let mut measures = vec![("acc", share(self.correct))];
        if task.norm() != Norm::None {
            measures.push(("acc_norm", share(self.correct_norm)));
        }
        if task.is_greedy() {
            measures.push(("perplexity", (self.nats / self.total as f64).exp()));
        }
        measures
    }

    /// Returns the accuracy to expect of a guess; 0 where nobody can guess.
    pub fn chance(&self) -> f64 {
        self.guessed / self.total as f64
    }

    /// Returns a line for each measure: `PIQA acc_norm 12/24 = 0.5000`.
    pub fn lines(&self, task: Task) -> Vec<String> {
        let line = |(name, value): (&str, f64)| match name {
            "perplexity" => format!("{} perplexity {value:.4}", task.title()),
            _ => {
                let count = if name == "acc" { self.correct } else { self.correct_norm };
                format!("{} {name:<8} {count}/{} = {value:.4}", task.title(), self.total)
            }
        };
        self.measures(task).into_iter().map(line).collect()
    }
}

impl Add for Score {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Score {
            total: self.total + other.total,
            correct: self.correct + other.correct,
            correct_norm: self.correct_norm + other.correct_norm,
            nats: self.nats + other.nats,
            guessed: self.guessed + other.guessed,
        }
    }
}

/// The losses of the model on one example, in nats.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// The index of the example in the file, from 0.
    pub index: usize,
    pub gold: usize,
    /// Loss of each choice, summed over its tokens: minus its log-likelihood.
    pub sum_loss: Vec<f32>,
    /// Loss of each choice, averaged over its tokens.
    pub avg_loss: Vec<f32>,
    /// Loss of each choice for its length, as the task's [`Norm`] says.
    pub norm_loss: Vec<f32>,
    /// Whether greedy decoding writes the first choice; `false` in other tasks.
    pub greedy: bool,
}

impl Item {
    fn new(index: usize, gold: usize, greedy: bool) -> Self {
        Item { index, gold, sum_loss: Vec::new(), avg_loss: Vec::new(), norm_loss: Vec::new(), greedy }
    }

    /// Adds the loss of the next choice, summed over its tokens.
    fn add(&mut self, sum: f64, choice: &Choice) {
        self.sum_loss.push(sum as f32);
        self.avg_loss.push((sum / choice.tokens.len() as f64) as f32);
        self.norm_loss.push((sum / choice.length as f64) as f32);
    }

    /// The choice with the lowest sum.
    pub fn pred(&self) -> usize {
        argmin(&self.sum_loss)
    }

    /// The choice with the lowest loss for its length.
    pub fn pred_norm(&self) -> usize {
        argmin(&self.norm_loss)
    }
}

/// The index of the smallest value, the first of equals.
fn argmin(values: &[f32]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] < values[best] { i } else { best })
}

/// The results on one rank's shard of the examples.
#[derive(Clone, Debug)]
pub struct Evaluation {
    pub task: Task,
    /// In order of index.
    pub items: Vec<Item>,
    /// The number of these with a row longer than the model's context, whose text lost its start.
    /// A log should say so.
    pub truncated: usize,
}

impl Evaluation {
    pub fn score(&self) -> Score {
        let count = |hit: fn(&Item) -> bool| self.items.iter().filter(|item| hit(item)).count();
        let guess = |item: &Item| 1.0 / item.sum_loss.len() as f64;
        Score {
            total: self.items.len(),
            correct: match self.task.is_greedy() {
                true => count(|item| item.greedy),
                false => count(|item| item.pred() == item.gold),
            },
            correct_norm: count(|item| item.pred_norm() == item.gold),
            nats: self.items.iter().map(|item| f64::from(item.sum_loss[item.gold])).sum(),
            guessed: if self.task.is_greedy() { 0.0 } else { self.items.iter().map(guess).sum() },
        }
    }
}

/// A choice as a row of a batch.
#[derive(Clone, Copy)]
struct ChoiceRow<'a> {
    example: usize,
    choice: usize,
    row: Row<'a>,
}

/// Scores examples `rank`, `rank + world`, … of `data`, except those with a choice longer than the
/// model's context.
///
/// Each batch takes as many rows as the model's buffers hold, the longest first so that there is
/// little padding; batching changes results only by rounding. `progress` gets the number of
/// examples done and their total.
///
/// # Errors
/// If a loss is NaN.
///
/// # Panics
/// If the longest row, cut to `maxT`, has more tokens than the model's buffers have rows, or in a
/// debug build if [`Questions::check`] refuses the model.
pub fn evaluate(
    model: &GPT2,
    dev: &mut dyn Ops,
    hooks: &mut dyn LayerHooks,
    data: &Questions,
    (rank, world): (usize, usize),
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation> {
    let config = &model.weights.config;
    debug_assert!(data.check(config).is_ok(), "checked before the first evaluation");
    let order = examples_of(data, (rank, world), config.maxT);
    let rows = rows_of(data, &order, config.maxT);
    let plain: Vec<Row> = rows.iter().map(|row| row.row).collect();

    let mut items: Vec<Item> = Vec::with_capacity(order.len());
    let mut done = 0;
    while done < rows.len() {
        let shape = pack(&plain[done..], model.acts.rows);
        let batch = &rows[done..done + shape.B];
        let losses = run(model, dev, hooks, shape, &plain[done..])?;
        let greedy = match data.task.is_greedy() {
            true => greedy_rows(model, dev, shape, &plain[done..done + shape.B])?,
            false => vec![false; batch.len()],
        };
        for ((&ChoiceRow { example, choice, row }, losses), greedy) in
            batch.iter().zip(losses.chunks_exact(shape.T)).zip(greedy)
        {
            let sum = row.sum_loss(losses);
            ensure!(
                !sum.is_nan(),
                "{}: example {}: loss is NaN; the model has diverged or is damaged",
                data.path.display(),
                example
            );
            let Example { choices, gold } = &data.examples[example];
            if choice == 0 {
                items.push(Item::new(example, *gold, greedy));
            }
            let item = items.last_mut().expect("choice 0 comes first");
            item.add(sum, &choices[choice]);
        }
        done += shape.B;
        let whole = rows.get(done).map_or(0, |next| usize::from(next.choice > 0));
        progress(items.len() - whole, order.len());
    }
    let passes: Vec<usize> = (0..world)
        .map(|rank| {
            let examples = examples_of(data, (rank, world), config.maxT);
            let rows: Vec<Row> = rows_of(data, &examples, config.maxT).iter().map(|row| row.row).collect();
            count_passes(&rows, model.acts.rows)
        })
        .collect();
    for _ in passes[rank]..passes.iter().copied().max().unwrap_or(0) {
        model.participate(dev, hooks)?;
    }
    items.sort_by_key(|item| item.index);
    let truncated = order.iter().filter(|&&i| data.examples[i].longest() - 1 > config.maxT).count();
    Ok(Evaluation { task: data.task, items, truncated })
}

/// Whether greedy decoding, given all tokens before, writes each token of each row's choice. The
/// logits are those of the pass that has just run.
fn greedy_rows(model: &GPT2, dev: &mut dyn Ops, shape: BatchShape, batch: &[Row]) -> Result<Vec<bool>> {
    let places = |(b, row): (usize, &Row)| row.scored().map(move |t| b * shape.T + t);
    let wanted: Vec<usize> = batch.iter().enumerate().flat_map(places).collect();
    let mut tokens = model.greedy_tokens(dev, shape, &wanted)?.into_iter();
    let is_greedy = |row: &Row| tokens.by_ref().take(row.tokens.len()).eq(row.tokens.iter().copied());
    Ok(batch.iter().map(is_greedy).collect())
}

/// The examples of a rank that fit, the longest first.
fn examples_of(data: &Questions, (rank, world): (usize, usize), maxT: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (rank..data.examples.len()).step_by(world).collect();
    order.retain(|&i| data.examples[i].fits(maxT));
    order.sort_by_key(|&i| std::cmp::Reverse(data.examples[i].longest()));
    order
}

fn rows_of<'a>(data: &'a Questions, examples: &[usize], maxT: usize) -> Vec<ChoiceRow<'a>> {
    let choices = |&example: &usize| {
        let row = move |(choice, c): (usize, &'a Choice)| {
            let row = Row::new(&c.ctx, &c.tokens, maxT);
            ChoiceRow { example, choice, row }
        };
        data.examples[example].choices.iter().enumerate().map(row)
    };
    examples.iter().flat_map(choices).collect()
}

#[cfg(test)]
mod tests;
