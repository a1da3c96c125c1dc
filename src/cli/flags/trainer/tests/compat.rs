//! Presets, and what `train_gpt2.py` understands.

use super::*;
use crate::optim::optimizer::OptimizerKind;
use crate::optim::schedule::CooldownShape;

#[test]
fn a_switch_alone_is_on() {
    let a = ok("--write_tensors --compile -b 2 --resume -o log --overfit-single-batch");
    assert!(a.compat.write_tensors && a.compat.compile && a.files.resume && a.batch.overfit_single_batch);
    assert_eq!(a.batch.batch_size, 2);
    assert!(!ok("--write_tensors 0 --compile").compat.write_tensors);
    assert!(!ok("--compile=0 --write-tensors").compat.compile);
    assert!(!ok("--tensorcores 0").device.tf32 && ok("--tf32").device.tf32);
    // -h alone asks for help, and -lg takes a number.
    assert!(error("-h").contains("for help use --help"));
    assert!(error("--batch_size").contains("expected a value"));
}

#[test]
fn what_means_nothing_here_is_explained() {
    assert_eq!(ok("").notes, Vec::<String>::new());
    let notes = ok("--compile 1 --flash 1 --tensorcores 1").notes;
    let starts: Vec<_> = notes.iter().map(|note| note.split(':').next().unwrap()).collect();
    assert_eq!(starts, ["--compile 1", "--flash 1", "--tensorcores 1"], "{notes:?}");
    assert!(
        error("--flash 0").starts_with("--flash: expected 1 on the cpu device: attention is always fused")
    );
}

#[test]
fn presets_supply_defaults() {
    let a = ok("--preset gpt2-124m -o log");
    assert_eq!(
        (a.batch.num_iterations, a.schedule.warmup_iters, a.schedule.learning_rate, a.optim.weight_decay),
        (19073, 715, 6e-4, 0.1)
    );
    assert_eq!(
        (a.schedule.learning_rate_decay_frac, a.batch.batch_size, a.batch.sequence_length),
        (0.1, 64, 1024)
    );
    assert_eq!((a.total_batch_tokens(), a.grad_accum_steps(), a.files.checkpoint_every), (524_288, 8, 5000));
    assert_eq!((a.eval.val_loss_every, a.eval.sample_every, a.eval.hellaswag_eval), (250, 250, true));
    assert_eq!(a.model_source().unwrap(), ModelSource::Shape(ModelConfig::from_descriptor("d12").unwrap()));

    let a = ok("--preset llmc-124m -o log");
    assert_eq!(a.batch.shuffle, Some(Shuffle::Llmc));
    assert_eq!(
        (a.batch.num_iterations, a.schedule.warmup_iters, a.schedule.learning_rate_decay_frac),
        (18865, 700, 0.0)
    );
    assert_eq!(
        (a.eval.sample_every, a.eval.sample_len, a.device.recompute, a.files.resume),
        (20000, 144, Recompute::Nothing, false)
    );
    assert!(a.files.input_bin.ends_with("fineweb10B/fineweb_train_*.bin"));
}

#[test]
fn presets_with_fewer_tokens_take_another_schedule_whole() {
    for (name, optimizer) in [("tuned", OptimizerKind::Adamw), ("muon", OptimizerKind::Muon)] {
        let a = ok(&format!("--preset gpt2-124m-{name} -o log"));
        assert_eq!(a.files.input_bin, "dev/data/edu_fineweb10B/edu_fineweb_train_*.bin");
        assert_eq!((a.total_batch_tokens(), a.update.kind), (524_288, optimizer));
        let s = a.schedule(9536, &a.batches()).unwrap();
        assert_eq!((s.kind, s.warmup, s.cooldown), (ScheduleKind::Wsd, 250, (3815, CooldownShape::Linear)));
        assert_eq!((s.max_lr, s.final_frac), (1.8e-3, 0.0));
        // Another schedule or optimizer takes nothing from the preset's.
        let a = ok(&format!("--preset gpt2-124m-{name} -o log -k cosine --optimizer adamw"));
        assert_eq!((a.schedule.cooldown_frac, a.schedule.cooldown_shape), (None, None));
        let rows = startup_rows(&a);
        assert!(
            rows.iter().all(|row| !row.0.starts_with("cooldown") && !row.0.starts_with("muon")),
            "{rows:?}"
        );
    }
}

#[test]
fn flags_beside_a_preset_win() {
    let a = ok("--preset gpt3-1.3b -o log");
    assert_eq!(
        (
            a.schedule.train_tokens,
            a.schedule.decay_tokens,
            a.schedule.warmup_tokens,
            a.schedule.learning_rate
        ),
        (Some(300_000_000_000), Some(260_000_000_000), Some(375_000_000), 2e-4)
    );
    assert_eq!((a.total_batch_tokens(), a.batch.sequence_length, a.grad_accum_steps()), (1 << 20, 2048, 64));
    assert_eq!(a.schedule(286_102, &a.batches()).unwrap().decay_steps, 247_955);
    let a = ok("--preset gpt2-large -o log");
    let d36 = ModelConfig { qkv_bias: false, ..ModelConfig::from_descriptor("d36").unwrap() };
    assert_eq!(a.model_source().unwrap(), ModelSource::Shape(d36));
    assert_eq!((a.batch.batch_size, a.schedule.learning_rate, a.batch.max_hours), (2, 5e-5, Some(24.0)));
    let a = ok("--preset tinystories -o log --layers 2");
    assert_eq!(a.model_source().unwrap(), ModelSource::Shape(ModelConfig::new(512, 2, 8, 512)));
    assert_eq!(ok("--preset gpt2-124m -o log -s 0").eval.sample_every, 0);

    let a = ok("-b 16 -x 50 -l 3e-4 --preset gpt2-124m -o log -e d24 -n 0");
    assert_eq!(
        (a.batch.batch_size, a.batch.num_iterations, a.schedule.learning_rate, a.schedule.warmup_iters),
        (16, 50, 3e-4, 715)
    );
    assert_eq!((a.model.source.as_str(), a.grad_accum_steps(), a.files.checkpoint_every), ("d24", 32, 0));
    assert_eq!(ok("--preset gpt2-124m -o log --epochs 2").batch.num_iterations, -1);
}
