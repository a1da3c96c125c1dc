//! Lengths in steps and in tokens, cooldowns, and the ramp of the batch.

use super::*;
use crate::optim::schedule::{CooldownShape, Schedule};

fn schedule(line: &str, steps: usize) -> Result<Schedule> {
    let args = ok(line);
    args.schedule(steps, &args.batches())
}

#[test]
fn schedules_must_fit() {
    assert!(error("-k constant -u 5").contains("no warmup"));
    assert!(error("-k constant --warmup-tokens 5K").starts_with("--warmup-tokens: "));
    assert!(error("-k constant -q 0.1").contains("does not decay"));
    assert!(error("-k constant --decay-steps 9").contains("does not decay"));
    for flag in
        ["--cooldown-frac 0.5", "--cooldown-steps 5", "--cooldown-tokens 5K", "--cooldown-shape linear"]
    {
        assert!(error(flag).contains("only -k wsd cools down"), "{flag}");
    }
    assert_eq!(schedule("--decay-steps 80", 100).unwrap().decay_steps, 80);
    assert_eq!(schedule("--lr-decay-iters 80", 100).unwrap().decay_steps, 80);
    assert_eq!(schedule("", 100).unwrap().decay_steps, 100);
    let wsd = schedule("-k wsd -u 5 -l 0.5 -q 0.25", 100).unwrap();
    assert_eq!((wsd.warmup, wsd.total_steps, wsd.max_lr), (5, 100, 0.5));
    assert_eq!((wsd.final_frac, wsd.kind), (0.25, ScheduleKind::Wsd));
    assert_eq!(wsd.cooldown, (20, CooldownShape::OneMinusSqrt));
}

#[test]
fn a_cooldown_is_given_as_a_fraction_in_steps_or_in_tokens() {
    let cooldown = |line: &str| schedule(&format!("-k wsd -b 2 -t 32 {line}"), 100).unwrap().cooldown;
    assert_eq!(cooldown("--cooldown-frac 0.2"), (20, CooldownShape::OneMinusSqrt));
    assert_eq!(cooldown("--cooldown-frac 0.5 --cooldown-shape linear"), (50, CooldownShape::Linear));
    assert_eq!(cooldown("--cooldown-steps 7").0, 7);
    assert_eq!(cooldown("--cooldown-tokens 640").0, 10);
    assert_eq!(cooldown("--cooldown-tokens 640 --decay-steps 50").0, 10);
    assert_eq!(cooldown("--cooldown-frac 0.001").0, 1);
    for line in ["-k wsd -u 90 --cooldown-steps 11", "-k wsd -b 1 -t 64 -u 90 --cooldown-tokens 704"] {
        let message = schedule(line, 100).unwrap_err().to_string();
        assert!(
            message.contains("expected at most the 10 steps") && message.contains("found 11"),
            "{message}"
        );
    }
}

#[test]
fn tokens_are_steps() {
    let s = schedule("-b 2 -t 32 --warmup-tokens 1K --decay-tokens 0.005M", 100).unwrap();
    assert_eq!((s.warmup, s.decay_steps), (16, 78));
    // Five steps of 64 tokens, three of 128, two of 192, then 256.
    let s =
        schedule("-b 2 -t 32 -d 256 --batch-ramp 64:960 --warmup-tokens 320 --decay-tokens 4K", 50).unwrap();
    let batches = ok("-b 2 -t 32 -d 256 --batch-ramp 64:960").batches();
    assert!(batches.tokens_before(s.warmup).abs_diff(320) <= batches.tokens(s.warmup) as u64 / 2);
    assert_eq!(batches.tokens_before(batches.end_of_ramp()), 1088);
    assert_eq!((batches.end_of_ramp(), s.warmup, s.decay_steps), (10, 5, 21));
    for (text, tokens) in [("375M", 375_000_000), ("0.5B", 500_000_000), ("1.5K", 1500), ("77", 77)] {
        assert_eq!(ok(&format!("--train-tokens {text}")).schedule.train_tokens, Some(tokens));
    }
    for text in ["", "M", "1e3K", "-1M", "1.5", "2000B", "3m", "0K", "1.2.3M"] {
        assert!(error(&format!("--train-tokens={text}")).starts_with("--train-tokens: expected "), "{text}");
    }
}

#[test]
fn one_flag_gives_a_length() {
    for (both, second, first) in [
        ("-x 5 --epochs 2", "--epochs", "-x/--num-iterations"),
        ("--train-tokens 1M -x 5", "--train-tokens", "-x/--num-iterations"),
        ("--train-tokens 1M --epochs 5", "--train-tokens", "--epochs"),
        ("-u 5 --warmup-tokens 1M", "--warmup-tokens", "-u/--warmup-iters"),
        ("--decay-tokens 1M --decay-steps 5", "--decay-tokens", "--decay-steps"),
        ("-k wsd --cooldown-steps 5 --cooldown-frac 0.1", "--cooldown-steps", "--cooldown-frac"),
    ] {
        assert_eq!(error(both), format!("{second}: expected this or {first}, found both"));
    }
    // A typed flag wins over a preset in either unit.
    let a = ok("--preset gpt3-125m -o log");
    let steps = |a: &TrainArgs| (a.batch.num_iterations, a.schedule.train_tokens);
    assert_eq!(steps(&a), (-1, Some(300_000_000_000)));
    let rows = startup_rows(&a);
    assert!(
        rows.contains(&("train_tokens".into(), "300B".into())) && rows.iter().all(|row| row.0 != "max_steps")
    );
    assert_eq!(steps(&ok("--preset gpt3-125m -o log -x 20")), (20, None));
    let a = ok("--preset gpt3-125m -o log --epochs 2 -u 9 --decay-steps 100");
    assert_eq!((steps(&a), a.batch.epochs), ((-1, None), Some(2)));
    let s = a.schedule(200, &a.batches()).unwrap();
    assert_eq!((s.warmup, s.decay_steps), (9, 100));
    let a = ok("--preset gpt2-124m -o log --train-tokens 1B --warmup-tokens 1M");
    assert_eq!((steps(&a), a.schedule.warmup_iters), ((-1, Some(1_000_000_000)), 0));
}

#[test]
fn a_ramp_moves_in_micro_batches() {
    let ramp = |line: &str| ok(&format!("-b 2 -t 32 -d 512 --batch-ramp {line}")).batches();
    assert_eq!((ramp("128:4K").first(), ramp("128:4K").full()), (128, 512));
    assert!(
        error("-b 2 -t 32 -d 512 --batch-ramp 96:4K")
            .starts_with("--batch-ramp: expected a multiple of B * T = ")
    );
    assert!(error("-b 2 -t 32 -d 512 --batch-ramp 512:4K").contains("expected to begin below"));
    for bad in ["128", "128:", ":4K", "128:x", "0:4K", "128:0"] {
        assert!(
            error(&format!("-b 2 -t 32 -d 512 --batch-ramp {bad}")).starts_with("--batch-ramp: expected ")
        );
    }
}

#[test]
fn early_stop_needs_evaluations() {
    assert_eq!(ok("--early-stop 3").eval.early_stop, 3);
    assert!(error("--early-stop 3 -v 0").starts_with("--early-stop 3: looks at the validation loss"));
    assert!(error("--early-stop 3 --inference-only 1").contains("nothing is trained"));
}
