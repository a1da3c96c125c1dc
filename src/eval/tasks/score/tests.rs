use super::*;
use crate::config::{DropoutRates, ModelConfig};
use crate::data::tokenizer::TokenizerId;
use crate::device::cpu::Cpu;
use crate::eval::testing::{cpu, randomize};
use crate::model::ModelOptions;
use crate::model::activations::Recompute;
use crate::model::hooks::NoHooks;
use crate::params::Param;
use crate::params::frozen::Frozen;
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
        frozen: Frozen::default(),
    };
    let mut plan = MemoryPlan::new();
    let model = GPT2::plan_for_evaluation(&config, &options, Dtype::F32, &mut plan);
    let mut dev = cpu(&plan);
    randomize(&mut dev, &model.weights, 3);
    (dev, model)
}

/// Examples of many lengths, with tokens from the whole vocabulary.
fn data() -> Questions {
    let tokens = |seed: usize, len: usize| {
        (0..len).map(|i| ((seed * 7919 + i * 104_729) % 50257) as u32).collect::<Vec<_>>()
    };
    let choice = |i: usize, e: usize| {
        let tokens_of = tokens(100 + i * 4 + e, 1 + (i * 3 + e * e) % 11);
        Choice { ctx: tokens(i, 1 + i * 5 % 17).into(), length: tokens_of.len(), tokens: tokens_of }
    };
    let example = |i: usize| {
        let choices: Vec<_> = (0..2 + i % 4).map(|e| choice(i, e)).collect();
        Example { gold: i % choices.len(), choices }
    };
    let (path, tokenizer) = ("made-up.bin".into(), TokenizerId::GPT2);
    Questions { task: Task::HellaSwagLlmc, path, tokenizer, examples: (0..7).map(example).collect() }
}

fn evaluate_all(maxT: usize, rows: usize, data: &Questions) -> Result<Evaluation> {
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

fn counts(score: Score) -> [usize; 3] {
    [score.total, score.correct, score.correct_norm]
}

#[track_caller]
fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
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
    let mut score = Score::default();
    for (i, (item, example)) in evaluation.items.iter().zip(&data.examples).enumerate() {
        assert_eq!((item.index, item.gold), (i, example.gold));
        let choices = example.choices.iter();
        let losses: Vec<_> = choices.map(|c| naive(&mut dev, &model, &c.ctx, &c.tokens)).collect();
        let sums: Vec<f32> = losses.iter().map(|l| l.iter().sum()).collect();
        let means: Vec<f32> = losses.iter().map(|l| l.iter().sum::<f32>() / l.len() as f32).collect();
        assert_close(&item.sum_loss, &sums);
        assert_close(&item.avg_loss, &means);
        let lowest = |x: &[f32]| x.iter().all(|&other| x[example.gold] <= other);
        score.total += 1;
        score.correct += usize::from(lowest(&sums));
        score.correct_norm += usize::from(lowest(&means));
        score.guessed += 1.0 / sums.len() as f64;
    }
    assert_eq!(counts(evaluation.score()), counts(score));
    assert!((evaluation.score().chance() - score.chance()).abs() <= 1e-12);
    let differ = evaluation.items.iter().any(|item| item.pred() != item.pred_norm());
    assert!(differ, "the examples do not tell the sum from the mean");
}

#[test]
fn packing_changes_nothing() {
    let data = data();
    let one_row = evaluate_all(64, data.longest(), &data).unwrap();
    for rows in [100, 2000] {
        let packed = evaluate_all(64, rows, &data).unwrap();
        assert_eq!(counts(packed.score()), counts(one_row.score()));
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
    let mut sum = Score::default();
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
    assert_eq!(counts(sum), counts(whole.score()));
    assert!((sum.nats - whole.score().nats).abs() <= 1e-4 * sum.nats);
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
        for (i, Choice { ctx, tokens, .. }) in example.choices.iter().enumerate() {
            let keep = ctx.len().min(maxT + 1 - tokens.len());
            let losses = naive(&mut dev, &model, &ctx[ctx.len() - keep..], tokens);
            assert_close(&item.sum_loss[i..=i], &[losses.iter().sum::<f32>()]);
        }
    }
}

/// The text that a model decodes greedily is found to be, whatever stands beside it in a batch.
#[test]
fn greedy_text_is_recognized() {
    let (mut dev, model) = model(64, 256);
    let mut data = Questions { task: Task::Lambada, ..data() };
    let mut greedy = Vec::new();
    for (i, example) in data.examples.iter_mut().enumerate() {
        example.choices.truncate(1);
        example.gold = 0;
        let Choice { ctx, tokens, .. } = &mut example.choices[0];
        let mut text: Vec<i32> = ctx.iter().map(|&token| token.cast_signed()).collect();
        for token in tokens.iter_mut() {
            let shape = BatchShape::new(1, text.len());
            model.load_batch(&mut dev, shape, &text, &text).unwrap();
            model.forward(&mut dev, &mut NoHooks, shape).unwrap();
            let mut last = Vec::new();
            let keep = &mut |row: &[f32]| {
                last = row.to_vec();
                Ok(())
            };
            model.read_logits(&mut dev, shape, keep).unwrap();
            let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
            *token = best as u32;
            text.push(best as i32);
        }
        // Another last token in every other example.
        if i % 2 == 1 {
            *tokens.last_mut().unwrap() ^= 1;
        }
        greedy.push(i % 2 == 0);
    }
    let evaluation = evaluate(&model, &mut dev, &mut NoHooks, &data, (0, 1), &mut |_, _| {}).unwrap();
    assert_eq!(evaluation.items.iter().map(|item| item.greedy).collect::<Vec<_>>(), greedy);
    let score = evaluation.score();
    assert_eq!((score.correct, score.total, score.chance()), (4, 7, 0.0));
    let nats: f32 = evaluation.items.iter().map(|item| item.sum_loss[0]).sum();
    let [(_, acc), (name, perplexity)] = score.measures(Task::Lambada)[..] else { panic!("two measures") };
    assert_eq!((acc, name), (4.0 / 7.0, "perplexity"));
    let expected = f64::from(nats / 7.0).exp();
    assert!((perplexity - expected).abs() <= 1e-5 * expected, "{perplexity} against {expected}");
}

#[test]
fn examples_with_an_ending_beyond_the_context_are_left_out_and_counted() {
    let maxT = 12;
    let (mut dev, model) = model(maxT, maxT);
    let mut data = data();
    data.examples[2].choices[1].tokens = vec![5; maxT + 1];
    // Its first ending is all that fits: one token of the context stays.
    data.examples[3].choices[0].tokens = vec![5; maxT];
    let warning = data.check(&model.weights.config).unwrap().unwrap();
    let expected = "made-up.bin: leaves out 1 example of 7, as an ending is longer than the model's context";
    assert!(warning.starts_with(expected), "{warning}");
    let mut whole = Score::default();
    for rank in 0..3 {
        let part = evaluate(&model, &mut dev, &mut NoHooks, &data, (rank, 3), &mut |_, _| {}).unwrap();
        assert!(part.items.iter().all(|item| item.index != 2 && item.index % 3 == rank));
        whole = whole + part.score();
    }
    assert_eq!(whole.total, data.examples.len() - 1);
    for example in &mut data.examples {
        example.choices[1].tokens = vec![5; maxT + 1];
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
    data.examples[2].choices[3].tokens = vec![50257];
    let error = data.check(&ModelConfig::new(64, 1, 2, 16)).unwrap_err().to_string();
    assert_eq!(error, "made-up.bin: example 2 has token 50257, but the model knows 50257 tokens");
}

#[test]
fn a_diverged_model_has_no_score() {
    let (mut dev, model) = model(64, 256);
    dev.fill(model.weights.get(Param::Wte, 0), f32::NAN).unwrap();
    let error =
        evaluate(&model, &mut dev, &mut NoHooks, &data(), (0, 1), &mut |_, _| {}).unwrap_err().to_string();
    assert!(error.contains("loss is NaN"), "{error}");
}
