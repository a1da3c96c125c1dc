//! The flags of schedules. Lengths are given in steps, or in tokens by a flag of their own.

use super::TrainArgs;
use crate::cli::values;
use crate::optim::schedule::{CooldownShape, ScheduleKind};
use anyhow::{Result, bail};
use clap::Args;

/// The learning rate and the batch over a run.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Learning rate and batch over the run")]
pub struct ScheduleFlags {
    /// Learning-rate schedule; wsd is constant, then cools down, over the last fifth by default
    #[arg(id = "LR scheduler", short = 'k', long = "lr-scheduler", value_enum, default_value = "cosine")]
    pub lr_scheduler: ScheduleKind,
    /// Maximum learning rate
    #[arg(id = "learning rate (LR)", short = 'l', long = "learning-rate", value_name = "LR",
          value_parser = values::non_negative,
          default_value = "3e-4")]
    pub learning_rate: f32,
    /// Step at which the learning rate reaches its final value, where it then stays [default: -x]
    #[arg(id = "decay_steps", long = "decay-steps", alias = "lr-decay-iters", value_name = "STEPS",
          value_parser = values::count)]
    pub decay_steps: Option<usize>,
    /// --decay-steps in tokens, to the nearest step: 260B
    #[arg(id = "decay_tokens", long = "decay-tokens", value_name = "TOKENS", value_parser = values::tokens)]
    pub decay_tokens: Option<usize>,
    /// Steps of linear learning-rate warmup
    #[arg(id = "warmup iterations", short = 'u', long = "warmup-iters", value_name = "STEPS",
          value_parser = values::whole,
          default_value = "0")]
    pub warmup_iters: usize,
    /// -u in tokens, to the nearest step: 375M
    #[arg(id = "warmup_tokens", long = "warmup-tokens", value_name = "TOKENS", value_parser = values::tokens)]
    pub warmup_tokens: Option<usize>,
    /// Length of wsd's cooldown, as a fraction of the steps to its end [default: 0.2]
    #[arg(id = "cooldown_frac", long = "cooldown-frac", value_name = "FRACTION",
          value_parser = values::probability)]
    pub cooldown_frac: Option<f32>,
    /// Length of wsd's cooldown in steps
    #[arg(id = "cooldown_steps", long = "cooldown-steps", value_name = "STEPS", value_parser = values::count)]
    pub cooldown_steps: Option<usize>,
    /// Length of wsd's cooldown in tokens, to the nearest step
    #[arg(id = "cooldown_tokens", long = "cooldown-tokens", value_name = "TOKENS", value_parser = values::tokens)]
    pub cooldown_tokens: Option<usize>,
    /// Shape of wsd's cooldown [default: 1-sqrt, as in llm.c]
    #[arg(id = "cooldown_shape", long = "cooldown-shape", value_enum)]
    pub cooldown_shape: Option<CooldownShape>,
    /// Final learning rate, as a fraction of the maximum (1 = no decay)
    #[arg(id = "final LR fraction", short = 'q', long = "learning-rate-decay-frac", value_name = "FRACTION",
          value_parser = values::fraction,
          default_value = "1.0")]
    pub learning_rate_decay_frac: f32,
    /// Begin with a total batch of FROM tokens, and raise it to -d linearly over TOKENS, in
    /// multiples of B*T*processes: 32768:4B
    #[arg(id = "batch_ramp", long = "batch-ramp", value_name = "FROM:TOKENS", value_parser = values::batch_ramp)]
    pub batch_ramp: Option<(usize, usize)>,
    /// Tokens to train on, to the nearest step, instead of -x: 300B
    #[arg(id = "train_tokens", long = "train-tokens", value_name = "TOKENS", value_parser = values::tokens)]
    pub train_tokens: Option<usize>,
}

/// Flags that give the same length in different units, by id and name.
const LENGTHS: [&[(&str, &str)]; 4] = [
    &[("max_steps", "-x/--num-iterations"), ("epochs", "--epochs"), ("train_tokens", "--train-tokens")],
    &[("decay_steps", "--decay-steps"), ("decay_tokens", "--decay-tokens")],
    &[("warmup iterations", "-u/--warmup-iters"), ("warmup_tokens", "--warmup-tokens")],
    &[
        ("cooldown_frac", "--cooldown-frac"),
        ("cooldown_steps", "--cooldown-steps"),
        ("cooldown_tokens", "--cooldown-tokens"),
    ],
];

/// Flags that only `-k wsd` takes.
const COOLDOWN: [&str; 4] = ["cooldown_frac", "cooldown_steps", "cooldown_tokens", "cooldown_shape"];

/// Keeps one flag of each length: the one that was typed, else that of a preset in the units that
/// come last. A preset's cooldown goes where another schedule was typed. Returns the ids of the
/// others, which have no effect.
///
/// # Errors
/// If two flags of one length were typed.
pub(super) fn choose_lengths(
    args: &mut TrainArgs,
    typed: &dyn Fn(&str) -> bool,
) -> Result<Vec<&'static str>> {
    let mut unused = Vec::new();
    for flags in LENGTHS {
        let given: Vec<_> = flags.iter().filter(|flag| typed(flag.0)).collect();
        if let [first, second, ..] = given[..] {
            bail!("{}: expected this or {}, found both", second.1, first.1);
        }
        let kept =
            given.first().map_or_else(|| flags.iter().rev().find(|flag| is_set(args, flag.0)), |f| Some(*f));
        for (id, _) in flags.iter().filter(|flag| Some(*flag) != kept) {
            clear(args, id);
            unused.push(*id);
        }
    }
    if args.schedule.lr_scheduler != ScheduleKind::Wsd {
        for id in COOLDOWN.into_iter().filter(|id| !typed(id)) {
            clear(args, id);
            unused.push(id);
        }
    }
    Ok(unused)
}

fn is_set(args: &TrainArgs, id: &str) -> bool {
    let TrainArgs { batch, schedule, .. } = args;
    match id {
        "epochs" => batch.epochs.is_some(),
        "train_tokens" => schedule.train_tokens.is_some(),
        "decay_steps" => schedule.decay_steps.is_some(),
        "decay_tokens" => schedule.decay_tokens.is_some(),
        "warmup_tokens" => schedule.warmup_tokens.is_some(),
        "cooldown_frac" => schedule.cooldown_frac.is_some(),
        "cooldown_steps" => schedule.cooldown_steps.is_some(),
        "cooldown_tokens" => schedule.cooldown_tokens.is_some(),
        _ => true,
    }
}

fn clear(args: &mut TrainArgs, id: &str) {
    let TrainArgs { batch, schedule, .. } = args;
    match id {
        "max_steps" => batch.num_iterations = -1,
        "epochs" => batch.epochs = None,
        "train_tokens" => schedule.train_tokens = None,
        "decay_steps" => schedule.decay_steps = None,
        "decay_tokens" => schedule.decay_tokens = None,
        "warmup iterations" => schedule.warmup_iters = 0,
        "warmup_tokens" => schedule.warmup_tokens = None,
        "cooldown_frac" => schedule.cooldown_frac = None,
        "cooldown_steps" => schedule.cooldown_steps = None,
        "cooldown_tokens" => schedule.cooldown_tokens = None,
        "cooldown_shape" => schedule.cooldown_shape = None,
        _ => unreachable!("{id} is not cleared"),
    }
}
