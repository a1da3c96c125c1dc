//! Scoring: the loss of each ending's tokens given the context, summed (`acc`) and averaged
//! (`acc_norm`).

use super::{ENDINGS, HellaSwag};
use crate::model::hooks::LayerHooks;
use crate::model::{BatchShape, GPT2};
use crate::ops::Ops;
use anyhow::{Result, ensure};
use std::ops::Add;

/// Counts of right answers. The score of a run is the sum over all ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HellaSwagScore {
    pub total: usize,
    /// Right by the lowest sum of losses.
    pub correct: usize,
    /// Right by the lowest mean loss, which does not favor short endings.
    pub correct_norm: usize,
}

impl HellaSwagScore {
    /// Accuracy by the sum of losses, in 0 ..= 1; NaN without examples.
    pub fn acc(&self) -> f64 {
        self.correct as f64 / self.total as f64
    }

    /// Accuracy by the mean loss: the figure that is usually quoted.
    pub fn acc_norm(&self) -> f64 {
        self.correct_norm as f64 / self.total as f64
    }
}

impl Add for HellaSwagScore {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        HellaSwagScore {
            total: self.total + other.total,
            correct: self.correct + other.correct,
            correct_norm: self.correct_norm + other.correct_norm,
        }
    }
}

/// The losses of the model on one example, in nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Item {
    /// The index of the example in the file, from 0.
    pub index: usize,
    pub label: usize,
    /// Loss of each ending, summed over its tokens.
    pub sum_loss: [f32; ENDINGS],
    /// Loss of each ending, averaged over its tokens.
    pub avg_loss: [f32; ENDINGS],
}

impl Item {
    /// The ending with the lowest sum.
    pub fn pred(&self) -> usize {
        argmin(&self.sum_loss)
    }

    /// The ending with the lowest mean.
    pub fn pred_norm(&self) -> usize {
        argmin(&self.avg_loss)
    }
}

/// The index of the smallest value, the first of equals.
fn argmin(values: &[f32; ENDINGS]) -> usize {
    (1..ENDINGS).fold(0, |best, i| if values[i] < values[best] { i } else { best })
}

/// The results on one rank's shard of the examples.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// In order of index.
    pub items: Vec<Item>,
    /// The number of these with a row longer than the model's context, whose text lost its start.
    /// A log should say so.
    pub truncated: usize,
}

impl Evaluation {
    pub fn score(&self) -> HellaSwagScore {
        let count = |hit: fn(&Item) -> bool| self.items.iter().filter(|item| hit(item)).count();
        HellaSwagScore {
            total: self.items.len(),
            correct: count(|item| item.pred() == item.label),
            correct_norm: count(|item| item.pred_norm() == item.label),
        }
    }
}

/// A row of a batch: the context and one ending.
#[derive(Clone, Copy)]
struct Row<'a> {
    example: usize,
    ending: usize,
    ctx: &'a [u32],
    tokens: &'a [u32],
}

impl<'a> Row<'a> {
    /// Builds a row, without the start of the context if it has more than `maxT` inputs.
    fn new(data: &'a HellaSwag, example: usize, ending: usize, maxT: usize) -> Self {
        let (ctx, tokens) = (&data.examples[example].ctx, &data.examples[example].endings[ending]);
        let excess = (ctx.len() + tokens.len() - 1).saturating_sub(maxT);
        Row { example, ending, ctx: &ctx[excess..], tokens }
    }

    /// The number of inputs: the last token is only a target.
    fn T(&self) -> usize {
        self.ctx.len() + self.tokens.len() - 1
    }

    /// Fills one row of inputs and targets. Padding after the row stays zero; attention is causal,
    /// so it does not affect the row.
    fn render(&self, inputs: &mut [i32], targets: &mut [i32]) {
        let row = self.ctx.iter().chain(self.tokens).map(|&token| token.cast_signed());
        for (input, token) in inputs.iter_mut().zip(row.clone().take(self.T())) {
            *input = token;
        }
        for (target, token) in targets.iter_mut().zip(row.skip(1)) {
            *target = token;
        }
    }

    /// Sums the losses of the ending: the last token of the context predicts its first token.
    fn sum_loss(&self, losses: &[f32]) -> f64 {
        losses[self.ctx.len() - 1..self.T()].iter().map(|&loss| f64::from(loss)).sum()
    }
}

/// Scores examples `rank`, `rank + world`, … of `data`, except those with an ending longer than the
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
/// debug build if [`HellaSwag::check`] refuses the model.
pub fn evaluate(
    model: &GPT2,
    dev: &mut dyn Ops,
    hooks: &mut dyn LayerHooks,
    data: &HellaSwag,
    (rank, world): (usize, usize),
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Evaluation> {
    let config = &model.weights.config;
    debug_assert!(data.check(config).is_ok(), "checked before the first evaluation");
    let order = examples_of(data, (rank, world), config.maxT);
    let rows = rows_of(data, &order, config.maxT);

    let mut items: Vec<Item> = Vec::with_capacity(order.len());
    let mut done = 0;
    while done < rows.len() {
        let (shape, batch) = pack(&rows[done..], model.acts.rows);
        let losses = run(model, dev, hooks, shape, batch)?;
        for (row, losses) in batch.iter().zip(losses.chunks_exact(shape.T)) {
            let sum = row.sum_loss(losses);
            ensure!(
                !sum.is_nan(),
                "{}: example {}: loss is NaN; the model has diverged or is damaged",
                data.path.display(),
                row.example
            );
            if row.ending == 0 {
                let label = data.examples[row.example].label;
                items.push(Item {
                    index: row.example,
                    label,
                    sum_loss: [0.0; ENDINGS],
                    avg_loss: [0.0; ENDINGS],
                });
            }
            let item = items.last_mut().expect("ending 0 comes first");
            item.sum_loss[row.ending] = sum as f32;
            item.avg_loss[row.ending] = (sum / row.tokens.len() as f64) as f32;
        }
        done += shape.B;
        progress(done / ENDINGS, order.len());
    }
    let passes: Vec<usize> = (0..world)
        .map(|rank| {
            let examples = examples_of(data, (rank, world), config.maxT);
            count_passes(&rows_of(data, &examples, config.maxT), model.acts.rows)
        })
        .collect();
    for _ in passes[rank]..passes.iter().copied().max().unwrap_or(0) {
        model.participate(dev, hooks)?;
    }
    items.sort_by_key(|item| item.index);
    let truncated = order.iter().filter(|&&i| data.examples[i].longest() - 1 > config.maxT).count();
    Ok(Evaluation { items, truncated })
}

/// The examples of a rank that fit, the longest first.
fn examples_of(data: &HellaSwag, (rank, world): (usize, usize), maxT: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (rank..data.examples.len()).step_by(world).collect();
    order.retain(|&i| data.examples[i].fits(maxT));
    order.sort_by_key(|&i| std::cmp::Reverse(data.examples[i].longest()));
    order
}

fn rows_of<'a>(data: &'a HellaSwag, examples: &[usize], maxT: usize) -> Vec<Row<'a>> {
    let endings = |&i: &usize| (0..ENDINGS).map(move |ending| Row::new(data, i, ending, maxT));
    examples.iter().flat_map(endings).collect()
}

/// The number of batches that these rows make.
fn count_passes(mut rows: &[Row], capacity: usize) -> usize {
    let mut passes = 0;
    while !rows.is_empty() {
        rows = &rows[pack(rows, capacity).0.B..];
        passes += 1;
    }
    passes
}

/// Takes as many of the next rows as fit into `capacity` tokens when padded to the longest of them.
fn pack<'a, 'b>(rows: &'b [Row<'a>], capacity: usize) -> (BatchShape, &'b [Row<'a>]) {
    let mut shape = BatchShape::new(1, rows[0].T());
    for row in &rows[1..] {
        let grown = BatchShape::new(shape.B + 1, shape.T.max(row.T()));
        if grown.rows() > capacity {
            break;
        }
        shape = grown;
    }
    (shape, &rows[..shape.B])
}

/// The losses (B, T) of a batch of rows.
fn run(
    model: &GPT2,
    dev: &mut dyn Ops,
    hooks: &mut dyn LayerHooks,
    shape: BatchShape,
    batch: &[Row],
) -> Result<Vec<f32>> {
    let (mut inputs, mut targets) = (vec![0; shape.rows()], vec![0; shape.rows()]);
    let lines = inputs.chunks_exact_mut(shape.T).zip(targets.chunks_exact_mut(shape.T));
    for (row, (inputs, targets)) in batch.iter().zip(lines) {
        row.render(inputs, targets);
    }
    model.load_batch(dev, shape, &inputs, &targets)?;
    model.evaluate(dev, hooks, shape)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DropoutRates, ModelConfig};
    use crate::data::tokenizer::TokenizerId;
    use crate::device::cpu::Cpu;
    use crate::eval::hellaswag::Example;
    use crate::eval::testing::{cpu, randomize};
    use crate::model::ModelOptions;
    use crate::model::activations::Recompute;
    use crate::model::hooks::NoHooks;
    use crate::params::Param;
    use crate::sharding::Sharding;
    use crate::tensor::{Dtype, MemoryPlan};

    /// A random model whose buffers hold `rows` tokens.
    fn model(maxT: usize, rows: usize) -> (Cpu, GPT2) {
        let config = ModelConfig::new(maxT, 1, 2, 16);
        let options = ModelOptions {
            B: 1,
            T: 1,
            min_rows: rows,
            recompute: Recompute::Gelu,
            dropout: DropoutRates::NONE,
            logits_bytes: 1 << 22,
            sharding: Sharding::NONE,
        };
        let mut plan = MemoryPlan::new();
        let model = GPT2::plan_for_evaluation(&config, &options, Dtype::F32, &mut plan);
        let mut dev = cpu(&plan);
        randomize(&mut dev, &model.weights, 3);
        (dev, model)
    }

    /// Examples of many lengths, with tokens from the whole vocabulary.
    fn data() -> HellaSwag {
        let tokens = |seed: usize, len: usize| {
            (0..len).map(|i| ((seed * 7919 + i * 104_729) % 50257) as u32).collect::<Vec<_>>()
        };
        let examples = (0..7)
            .map(|i| Example {
                ctx: tokens(i, 1 + i * 5 % 17),
                endings: [0, 1, 2, 3].map(|e| tokens(100 + i * ENDINGS + e, 1 + (i * 3 + e * e) % 11)),
                label: i % ENDINGS,
            })
            .collect();
        HellaSwag { path: "made-up.bin".into(), tokenizer: TokenizerId::GPT2, examples }
    }

    fn evaluate_all(maxT: usize, rows: usize, data: &HellaSwag) -> Result<Evaluation> {
        let (mut dev, model) = model(maxT, rows);
        evaluate(&model, &mut dev, &mut NoHooks, data, (0, 1), &mut |_, _| {})
    }

    /// Losses of one row without padding, straight from the definition.
    fn naive(dev: &mut Cpu, model: &GPT2, ctx: &[u32], ending: &[u32]) -> Vec<f32> {
        let row: Vec<i32> = ctx.iter().chain(ending).map(|&t| t.cast_signed()).collect();
        let shape = BatchShape::new(1, row.len() - 1);
        model.load_batch(dev, shape, &row[..row.len() - 1], &row[1..]).unwrap();
        let losses = model.evaluate(dev, &mut NoHooks, shape).unwrap();
        losses[losses.len() - ending.len()..].to_vec()
    }

    #[track_caller]
    fn assert_close(a: &[f32], b: &[f32]) {
        for (a, b) in a.iter().zip(b) {
            assert!((a - b).abs() <= 1e-4 * b.abs().max(1.0), "{a} against {b}");
        }
    }

    #[test]
    fn losses_are_those_of_each_row_alone() {
        let data = data();
        let (mut dev, model) = model(64, 256);
        let evaluation = evaluate(&model, &mut dev, &mut NoHooks, &data, (0, 1), &mut |_, _| {}).unwrap();
        assert_eq!((evaluation.items.len(), evaluation.truncated), (7, 0));
        let mut score = HellaSwagScore::default();
        for (i, (item, example)) in evaluation.items.iter().zip(&data.examples).enumerate() {
            assert_eq!((item.index, item.label), (i, example.label));
            let losses =
                example.endings.each_ref().map(|ending| naive(&mut dev, &model, &example.ctx, ending));
            let sums = losses.each_ref().map(|l| l.iter().sum::<f32>());
            let means = losses.each_ref().map(|l| l.iter().sum::<f32>() / l.len() as f32);
            assert_close(&item.sum_loss, &sums);
            assert_close(&item.avg_loss, &means);
            let lowest = |x: [f32; ENDINGS]| x.iter().all(|&other| x[example.label] <= other);
            score.total += 1;
            score.correct += usize::from(lowest(sums));
            score.correct_norm += usize::from(lowest(means));
        }
        assert_eq!(evaluation.score(), score);
        let differ = evaluation.items.iter().any(|item| item.pred() != item.pred_norm());
        assert!(differ, "the examples do not tell the sum from the mean");
    }

    #[test]
    fn packing_changes_nothing() {
        let data = data();
        let one_row = evaluate_all(64, data.longest(), &data).unwrap();
        for rows in [100, 2000] {
            let packed = evaluate_all(64, rows, &data).unwrap();
            assert_eq!(packed.score(), one_row.score());
            for (a, b) in packed.items.iter().zip(&one_row.items) {
                assert_close(&a.sum_loss, &b.sum_loss);
                assert_close(&a.avg_loss, &b.avg_loss);
            }
        }
    }

    #[test]
    fn ranks_share_the_examples() {
        let (mut dev, model) = model(64, 256);
        let data = data();
        let whole = evaluate(&model, &mut dev, &mut NoHooks, &data, (0, 1), &mut |_, _| {}).unwrap();
        let mut sum = HellaSwagScore::default();
        for rank in 0..3 {
            let mut calls = Vec::new();
            let part = evaluate(&model, &mut dev, &mut NoHooks, &data, (rank, 3), &mut |done, of| {
                calls.push((done, of))
            })
            .unwrap();
            assert!(part.items.iter().all(|item| item.index % 3 == rank));
            let of = part.items.len();
            assert_eq!(calls.last(), Some(&(of, of)));
            sum = sum + part.score();
        }
        assert_eq!(sum, whole.score());
        assert_eq!(sum.total, 7);
    }

    #[test]
    fn long_contexts_lose_their_start() {
        let data = data();
        let maxT = 12;
        let (mut dev, model) = model(maxT, maxT);
        let evaluation = evaluate(&model, &mut dev, &mut NoHooks, &data, (0, 1), &mut |_, _| {}).unwrap();
        let long = data.examples.iter().filter(|e| e.longest() > maxT + 1).count();
        assert!(long > 0 && long < data.examples.len());
        assert_eq!(evaluation.truncated, long);
        for (item, example) in evaluation.items.iter().zip(&data.examples) {
            for (e, ending) in example.endings.iter().enumerate() {
                let keep = example.ctx.len().min(maxT + 1 - ending.len());
                let losses = naive(&mut dev, &model, &example.ctx[example.ctx.len() - keep..], ending);
                assert_close(&item.sum_loss[e..=e], &[losses.iter().sum::<f32>()]);
            }
        }
    }

    #[test]
    fn examples_with_an_ending_beyond_the_context_are_left_out_and_counted() {
        let maxT = 12;
        let (mut dev, model) = model(maxT, maxT);
        let mut data = data();
        data.examples[2].endings[1] = vec![5; maxT + 1];
        // Its first ending is all that fits: one token of the context stays.
        data.examples[3].endings[0] = vec![5; maxT];
        let warning = data.check(&model.weights.config).unwrap().unwrap();
        let expected =
            "made-up.bin: leaves out 1 example of 7, as an ending is longer than the model's context";
        assert!(warning.starts_with(expected), "{warning}");
        let mut whole = HellaSwagScore::default();
        for rank in 0..3 {
            let part = evaluate(&model, &mut dev, &mut NoHooks, &data, (rank, 3), &mut |_, _| {}).unwrap();
            assert!(part.items.iter().all(|item| item.index != 2 && item.index % 3 == rank));
            whole = whole + part.score();
        }
        assert_eq!(whole.total, data.examples.len() - 1);
        for example in &mut data.examples {
            example.endings[3] = vec![5; maxT + 1];
        }
        let error = data.check(&model.weights.config).unwrap_err().to_string();
        assert_eq!(
            error,
            "made-up.bin: every example has an ending longer than the model's context of 12 tokens"
        );
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_refused_before_any_evaluation() {
        let mut data = data();
        data.examples[2].endings[3] = vec![50257];
        let error = data.check(&ModelConfig::new(64, 1, 2, 16)).unwrap_err().to_string();
        assert_eq!(error, "made-up.bin: example 2 has token 50257, but the model knows 50257 tokens");
    }

    #[test]
    fn a_diverged_model_has_no_score() {
        let (mut dev, model) = model(64, 256);
        dev.fill(model.weights.get(Param::Wte, 0), f32::NAN).unwrap();
        let error = evaluate(&model, &mut dev, &mut NoHooks, &data(), (0, 1), &mut |_, _| {})
            .unwrap_err()
            .to_string();
        assert!(error.contains("loss is NaN"), "{error}");
    }
}
