mod compat;
mod schedule;

use super::*;
use crate::cli::ModelSource;
use crate::config::ModelConfig;
use crate::device::cuda::{AUTO, MatmulChoice};
use crate::device::open::DtypeChoice;
use crate::model::activations::Recompute;
use crate::optim::schedule::ScheduleKind;
use crate::tensor::Dtype;
use std::path::PathBuf;

/// A shape stands in for the checkpoint file, so that only what is tested can fail.
fn argv(line: &str) -> Vec<String> {
    std::iter::once("train_gpt2").chain(line.split_whitespace()).map(str::to_owned).collect()
}

fn ok(line: &str) -> TrainArgs {
    match parse(Program::TrainGpt2, argv(line), &|_| None) {
        Ok(Parsed::Run(args)) => args,
        other => panic!("{line}: {other:?}"),
    }
}

fn error(line: &str) -> String {
    let message = match parse(Program::TrainGpt2, argv(line), &|_| None) {
        Err(error) => format!("{error:#}"),
        other => panic!("{line}: {other:?}"),
    };
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn the_table_is_sound() {
    for program in [Program::TrainGpt2, Program::TrainGpt2cu] {
        command(program).debug_assert();
    }
}

#[test]
fn defaults_are_those_of_llmc() {
    let a = ok("");
    assert_eq!(a.files.input_bin, "dev/data/tinyshakespeare/tiny_shakespeare_train.bin");
    assert_eq!(a.files.input_val_bin, "dev/data/tinyshakespeare/tiny_shakespeare_val.bin");
    assert_eq!(a.model.source, DEFAULT_MODEL);
    assert_eq!(
        (a.files.output_dir.clone(), a.recipe.preset.clone(), a.eval.prompt.clone()),
        (None, None, None)
    );
    assert_eq!(
        (a.files.checkpoint_every, a.files.checkpoints_keep, a.files.checkpoints_major_every, a.files.resume),
        (0, 0, 0, false)
    );
    assert_eq!((a.batch.batch_size, a.batch.sequence_length, a.batch.total_batch_size), (4, 1024, None));
    assert_eq!((a.total_batch_tokens(), a.grad_accum_steps()), (4096, 1));
    assert_eq!((a.batch.num_iterations, a.batch.epochs, a.schedule.warmup_iters), (-1, None, 0));
    assert_eq!((a.batch.shuffle, Shuffle::default()), (None, Shuffle::Sequences));
    assert_eq!((a.schedule.lr_scheduler, a.schedule.learning_rate), (ScheduleKind::Cosine, 3e-4));
    assert_eq!(
        (a.schedule.learning_rate_decay_frac, a.optim.weight_decay, a.optim.grad_clip),
        (1.0, 0.0, 1.0)
    );
    assert_eq!((a.optim.beta1, a.optim.beta2, a.optim.adam_eps), (0.9, 0.95, 1e-8));
    assert_eq!((a.optim.skip_update_lossz, a.optim.skip_update_gradz), (0.0, 0.0));
    assert_eq!(
        (a.eval.val_loss_every, a.eval.val_max_steps, a.eval.sample_every, a.eval.sample_len),
        (20, 20, 20, 64)
    );
    assert_eq!(
        (a.eval.hellaswag_eval, a.batch.overfit_single_batch, a.device.tf32, a.device.recompute),
        (false, false, true, Recompute::Gelu)
    );
    assert_eq!((a.eval.sample_temperature, a.eval.sample_top_k), (1.0, 0));
    assert_eq!(
        (a.model.seed, a.device.threads, a.device.dtype, a.device.name),
        (42, 0, DtypeChoice::Fixed(Dtype::F32), DeviceName::Cpu)
    );
    assert_eq!(a.eval.hellaswag_data.to_str(), Some("dev/data/hellaswag/hellaswag_val.bin"));
}

/// Every flag of llm.c, in each of its spellings, changes its own field and nothing else.
#[test]
fn every_flag_of_llmc_is_understood() {
    let cases = [
        ("-i a.bin", "--input_bin", "a.bin", "train data pattern"),
        ("-j b.bin", "--input_val_bin", "b.bin", "val data pattern"),
        ("-o out", "--output_dir", "out", "output log dir"),
        ("-nk 5", "--checkpoints_keep", "5", "checkpoints_keep"),
        ("-nm 7", "--checkpoints_major_every", "7", "checkpoints_major"),
        ("-e d24", "--model", "d24", "model"),
        ("-b 2", "--batch_size", "2", "micro batch size B"),
        ("-t 64", "--sequence_length", "64", "sequence length T"),
        ("-d 8192", "--total_batch_size", "8192", "total batch size"),
        ("-x 9", "--num_iterations", "9", "max_steps"),
        ("-k wsd", "--lr_scheduler", "wsd", "LR scheduler"),
        ("-l 0.5", "--learning_rate", "0.5", "learning rate (LR)"),
        ("-u 3", "--warmup_iters", "3", "warmup iterations"),
        ("-q 0.25", "--learning_rate_decay_frac", "0.25", "final LR fraction"),
        ("-c 0.1", "--weight_decay", "0.1", "weight decay"),
        ("-sl 7", "--skip_update_lossz", "7", "skip update lossz"),
        ("-sg 6", "--skip_update_gradz", "6", "skip update gradz"),
        ("-v 11", "--val_loss_every", "11", "val_loss_every"),
        ("-m -1", "--val_max_steps", "-1", "val_max_steps"),
        ("-s 13", "--sample_every", "13", "sample_every"),
        ("-g 14", "--sample_len", "14", "genT"),
        ("-h 1", "--hellaswag_eval", "1", "run hellaswag"),
        ("-a 1", "--overfit_single_batch", "1", "overfit_single_batch"),
        ("-f 0", "--tensorcores", "0", "tf32"),
        ("-r 2", "--recompute", "2", "recompute"),
    ];
    let baseline = ok("-e d12").rows;
    for (short, long, value, id) in cases {
        let flag = short.split(' ').next().unwrap();
        let spellings = [
            short.to_owned(),
            format!("{flag}={value}"),
            format!("{long} {value}"),
            format!("{}={value}", long.replace('_', "-")),
        ];
        for line in spellings {
            let rows = ok(&format!("-e d12 {line}")).rows;
            assert!(rows.contains(&(id.to_owned(), value.to_owned())), "{line}: {rows:?}");
            let changed = rows.iter().filter(|row| !baseline.contains(row));
            // The batch in tokens follows B and T.
            let own = changed.filter(|(name, _)| name == id || !matches!(&**name, "total batch size"));
            assert_eq!(own.count(), 1, "{line}: {rows:?}");
        }
    }
}

#[test]
fn values_reach_their_fields() {
    let a = ok(
        "-e d12 -i x -j y -o z -n 1 -nk 2 -nm 3 -y 1 -b 5 -t 6 -d 60 -x 7 -k linear -l 0.125 -u 8 -q 0.5 \
                -c 0.25 -sl 9 -sg 10 -v 11 -m 12 -s 13 -g 14 -h 1 -a 1 -f 0 -r 2 --seed 15 --threads 16 --dtype \
                bfloat16 --grad-clip 0 --beta1 0.5 --beta2 0.75 --adam-eps 1e-6 --hellaswag-data h --prompt p \
                --sample-temperature 0 --sample-top-k 17",
    );
    assert_eq!((a.files.input_bin.as_str(), a.files.input_val_bin.as_str()), ("x", "y"));
    assert_eq!(a.files.output_dir, Some(PathBuf::from("z")));
    assert_eq!(
        (a.files.checkpoint_every, a.files.checkpoints_keep, a.files.checkpoints_major_every, a.files.resume),
        (1, 2, 3, true)
    );
    assert_eq!(
        (a.batch.batch_size, a.batch.sequence_length, a.grad_accum_steps(), a.batch.num_iterations),
        (5, 6, 2, 7)
    );
    assert_eq!(
        (a.schedule.lr_scheduler, a.schedule.learning_rate, a.schedule.warmup_iters),
        (ScheduleKind::Linear, 0.125, 8)
    );
    assert_eq!((a.schedule.learning_rate_decay_frac, a.optim.weight_decay), (0.5, 0.25));
    assert_eq!((a.optim.skip_update_lossz, a.optim.skip_update_gradz), (9.0, 10.0));
    assert_eq!(
        (a.eval.val_loss_every, a.eval.val_max_steps, a.eval.sample_every, a.eval.sample_len),
        (11, 12, 13, 14)
    );
    assert!(a.eval.hellaswag_eval && a.batch.overfit_single_batch && !a.device.tf32);
    assert_eq!(
        (a.device.recompute, a.model.seed, a.device.threads, a.device.dtype),
        (Recompute::GeluAndLayernorm, 15, 16, DtypeChoice::Fixed(Dtype::Bf16))
    );
    assert_eq!((a.optim.grad_clip, a.optim.beta1, a.optim.beta2, a.optim.adam_eps), (0.0, 0.5, 0.75, 1e-6));
    assert_eq!((a.eval.hellaswag_data.to_str(), a.eval.prompt.as_deref()), (Some("h"), Some("p")));
    assert_eq!((a.eval.sample_temperature, a.eval.sample_top_k), (0.0, 17));
}

#[test]
fn the_values_that_a_cpu_honors_are_accepted() {
    ok(
        "-lg -1 -w 1 -ge 0 -z 0 -pn 1 -pr 0 -pg 8 -pi mpi --flash 1 --compile 0 --write_tensors 0 --inference_only 0",
    );
    let a = ok("--compile 1 --write_tensors 1 -n 0");
    assert!(a.compat.compile && a.compat.write_tensors && !a.compat.inference_only);
    ok("-pm mpi -pp= -ps= -lg 0 -ge auto --device cpu");
}

#[test]
fn what_a_cpu_cannot_do_is_refused_by_name() {
    let refused = "-lg 10,-w 0,-ge 1,-ge 2,-pn 2,-pr 1,-pm fs,-ps host,-pf dir,--flash 0,\
                   --write_tensors 1 --inference_only 1,--matmul own,--device cuda,--device emulated";
    for line in refused.split(',') {
        let message = error(line);
        let flag = line.split(' ').next().unwrap().replace('_', "-").replace("-pm", "-pi");
        assert!(message.starts_with(&flag), "{line}: {message}");
        assert!(message.contains("expected") || message.contains("drop one of them"), "{line}: {message}");
    }
}

#[test]
fn a_gpu_honors_more() {
    let cu = |line: &str| parse(Program::TrainGpt2cu, argv(&format!("-e d12 {line}")), &|_| None);
    let ok = |line: &str| match cu(line) {
        Ok(Parsed::Run(args)) => args,
        other => panic!("{line}: {other:?}"),
    };
    let error = |line: &str| cu(line).unwrap_err().to_string();
    let a = ok("");
    assert_eq!(
        (a.device.name, a.device.dtype, a.device.tf32, a.gpu.use_master_weights),
        (DeviceName::Cuda, DtypeChoice::Fixed(Dtype::Bf16), true, true)
    );
    assert_eq!(
        (a.gpu.matmul, a.gpu.deterministic, a.gpu.gelu_fusion, a.gpu.gpu_info_every),
        (MatmulChoice::Fastest, false, AUTO, 0)
    );
    assert_eq!(ok("--dtype auto").device.dtype, DtypeChoice::Auto);
    let a = ok("-lg 10 -w 0 -ge 2 -f 0 --matmul own --deterministic 1 --dtype fp16");
    assert_eq!(
        (a.device.name, a.device.dtype, a.device.tf32, a.gpu.use_master_weights),
        (DeviceName::Cuda, DtypeChoice::Fixed(Dtype::F16), false, false)
    );
    assert_eq!(
        (a.gpu.matmul, a.gpu.deterministic, a.gpu.gelu_fusion, a.gpu.gpu_info_every),
        (MatmulChoice::Own, true, 2, 10)
    );
    assert_eq!(
        ["0", "1", "auto", "-1"].map(|ge| ok(&format!("-ge {ge}")).gpu.gelu_fusion),
        [0, 1, AUTO, AUTO]
    );
    assert_eq!(error("-ge 3"), "-ge/--gelu-fusion: expected auto (or llm.c's -1), 0, 1 or 2, found 3");
    for ge in ["auto", "0"] {
        assert_eq!(ok(&format!("--matmul cublaslt -ge {ge}")).gpu.matmul, MatmulChoice::Cublaslt);
    }
    assert_eq!(
        error("--matmul cublaslt -ge 2"),
        "-ge/--gelu-fusion: expected auto or 0 on the cuda device: with --matmul cublaslt GELU is a kernel of its own; drop the flag"
    );
    assert_eq!(
        ["", "--cuda-graphs 0", "--cuda-graphs 1"].map(|graphs| ok(graphs).gpu.cuda_graphs),
        [CudaGraphs::Auto, CudaGraphs::Never, CudaGraphs::Always]
    );
    ok("--check-numerics 1 --cuda-graphs 0");
    assert_eq!(
        error("--check-numerics 1 --cuda-graphs 1"),
        "--cuda-graphs 1: --check-numerics 1 looks at each operation; drop one of them"
    );
    assert_eq!(ok("--device emulated --matmul own").device.name, DeviceName::Emulated);
    assert_eq!(
        error("--device cpu"),
        "--device: expected cuda or emulated, found cpu; train_gpt2 trains on CPUs"
    );
    assert_eq!(error("--dtype fp8"), "--dtype: expected bf16, fp16, f32 or auto, found fp8");
    assert!(
        error("--device emulated -lg 1")
            .starts_with("-lg/--gpu-info-every: expected 0 on the emulated device")
    );
    assert!(error("--device emulated --matmul cublaslt").starts_with("--matmul: expected fastest or own"));
    let rows = startup_rows(&ok("-ge 1"));
    assert!(rows.contains(&("gelu_fusion".to_owned(), "1".to_owned())), "{rows:?}");
    assert!(rows.iter().all(|row| row.0.len() <= 21 && row.0 != "flash"), "{rows:?}");
}

#[test]
fn processes_share_the_total_batch() {
    let of_four = |name: &str| match name {
        "RANK" | "LOCAL_RANK" => Some("2".to_owned()),
        "WORLD_SIZE" => Some("4".to_owned()),
        _ => None,
    };
    let read = |line: &str| parse(Program::TrainGpt2, argv(line), &of_four);
    let args = |line: &str| match read(line).unwrap() {
        Parsed::Run(args) => args,
        Parsed::Print(text) => panic!("{text}"),
    };
    let a = args("-b 2 -t 64 -d 2048");
    assert_eq!((a.process.rank, a.process.world_size, a.grad_accum_steps()), (2, 4, 4));
    assert_eq!(args("-b 2 -t 64").total_batch_tokens(), 512);
    let error = |line: &str| format!("{:#}", read(line).map(drop).unwrap_err());
    assert!(error("-b 2 -t 64 -d 128").contains("B * T * processes = 2 * 64 * 4 = 512"));
    assert!(error("-pn 2").contains("-pn 2: torchrun"));
    if cfg!(feature = "mpi") {
        assert!(args("-b 2 -t 64 -pi mpi").rendezvous().is_ok());
    } else {
        assert!(error("-pi mpi").contains("built without MPI; build it with make train_gpt2 MPI=1"));
    }
    assert!(error("-pi fs").contains("-pf"));
    assert!(
        error("-b 2 -t 64 --write_tensors")
            .starts_with("--write-tensors 1: expected a single process, found 4")
    );
    assert!(error("-ps here").starts_with("-ps here: expected -pi tcp"));
}

#[test]
fn off_is_zero() {
    let a = ok("-v 0 -s 0 -n 0 -h 0 -lg 0 -nm 0");
    assert_eq!(
        (
            a.eval.val_loss_every,
            a.eval.sample_every,
            a.files.checkpoint_every,
            a.files.checkpoints_major_every
        ),
        (0, 0, 0, 0)
    );
    assert_eq!(ok("-s -1").eval.sample_every, 0);
    assert!(!a.eval.hellaswag_eval);
}

#[test]
fn errors_are_one_line_that_names_the_flag() {
    let cases = [
        ("--lerning-rate 1", "--lerning-rate: unknown flag; did you mean --learning-rate?"),
        ("--lerning_rate=1", "--lerning-rate: unknown flag; did you mean --learning-rate?"),
        ("--zzzzz 1", "--zzzzz: unknown flag; --help lists all"),
        ("-Q 1", "-Q: unknown flag; --help lists all"),
        (
            "-bs 4",
            "-bs: unknown flag; those of two letters are -nk -nm -sl -sg -lg -ge -pn -pr -pg -pi -ps -pf",
        ),
        ("stray", "stray: expected a flag here, found a value without one"),
        ("-b 4 5", "5: expected a flag here, found a value without one"),
        ("-b", "-b/--batch-size: expected a value after it, found none"),
        ("-o -b 4", "-o/--output-dir: expected a value after it, found none"),
        ("-h", "-h/--hellaswag-eval: expected a value after it, found none; for help use --help"),
        ("-b 0", "-b/--batch-size: expected auto or a whole number of at least 1, found 0"),
        ("-b -3", "-b/--batch-size: expected auto or a whole number of at least 1, found -3"),
        ("-b 4.5", "-b/--batch-size: expected auto or a whole number of at least 1, found 4.5"),
        (
            "-t 99999999999",
            "-t/--sequence-length: expected a whole number of at most 2147483647, found 99999999999",
        ),
        (
            "-x -2",
            "-x/--num-iterations: expected a whole number of at least 0, or -1 for all the data, found -2",
        ),
        (
            "-m 0",
            "-m/--val-max-steps: expected a whole number of at least 1, or -1 for all the data, found 0",
        ),
        ("-l nan", "-l/--learning-rate: expected a number of at least 0, found nan"),
        ("-l inf", "-l/--learning-rate: expected a number of at least 0, found inf"),
        ("-l -0.3", "-l/--learning-rate: expected a number of at least 0, found -0.3"),
        ("-q 1.5", "-q/--learning-rate-decay-frac: expected a number from 0 to 1, found 1.5"),
        ("-y 2", "-y/--resume: expected 0 (off) or 1 (on), found 2"),
        ("-r 3", "-r/--recompute: expected 0, 1 or 2, found 3"),
        ("-sg x", "-sg/--skip-update-gradz: expected a number of at least 0, found x"),
        ("-k cosin", "-k/--lr-scheduler: expected cosine, linear, constant or wsd, found cosin"),
        ("--beta2 1", "--beta2: expected a number of at least 0 and below 1, found 1"),
        ("--adam-eps 0", "--adam-eps: expected a number above 0, found 0"),
        ("--dtype fp8", "--dtype: expected f32, bf16 or auto, found fp8"),
        ("--seed -1", "--seed: expected a whole number from 0 to 4294967295, found -1"),
        (
            "--preset gpt3",
            "--preset: expected gpt2-124m, gpt2-124m-tuned, gpt2-124m-muon, llmc-124m, gpt3-125m, gpt3-350m, \
             gpt3-760m, gpt3-1.3b, gpt2-medium, gpt2-large or tinystories, found gpt3",
        ),
        ("--log-style wandb", "--log-style: expected llmc or nanogpt, found wandb"),
        ("--samples 0", "--samples: expected a whole number of at least 1, found 0"),
        ("-pi udp", "-pi/--nccl-init-method: expected auto, mpi, tcp or fs, found udp"),
        ("-i=", "-i/--input-bin: expected a name, found nothing"),
        ("--epochs 2 -x 5", "--epochs: expected this or -x/--num-iterations, found both"),
    ];
    for (line, expected) in cases {
        assert_eq!(error(line), expected, "{line}");
    }
}

#[test]
fn the_last_of_two_equal_flags_counts() {
    assert_eq!(ok("-b 2 --batch-size 8 -b 3").batch.batch_size, 3);
    assert_eq!(ok("-sg 1 --skip_update_gradz 2").optim.skip_update_gradz, 2.0);
}

#[test]
fn a_batch_that_does_not_divide_names_the_nearest() {
    let message = error("-b 4 -t 64 -d 700");
    assert!(
        message.starts_with("-d/--total-batch-size: expected a multiple of B * T = 4 * 64 = 256"),
        "{message}"
    );
    assert!(message.ends_with("found 700; the nearest is 768"), "{message}");
    assert!(error("-b 4 -t 64 -d 600").ends_with("the nearest is 512"));
    assert!(error("-b 4 -t 64 -d 3").ends_with("the nearest is 256"));
    assert_eq!(ok("-b 4 -t 64 -d 768").grad_accum_steps(), 3);
    error("-b 2147483647 -t 2147483647 -d 5");
}

#[test]
fn the_length_of_a_run_follows_the_data() {
    let steps = |line: &str, tokens| ok(line).train_steps(tokens, &ok(line).batches());
    assert_eq!(steps("-x 7", 1).unwrap(), 7);
    assert_eq!(steps("-x 0", 1).unwrap(), 0);
    assert_eq!(steps("-d 8192", 100_000).unwrap(), 12);
    assert_eq!(steps("-d 8192 --epochs 3", 100_000).unwrap(), 36);
    assert_eq!(steps("-d 8192 --train-tokens 1M", 1).unwrap(), 122);
    assert!(steps("", 4095).unwrap_err().to_string().contains("holds 4095 tokens"));
    // Steps of 4096, 4096, 8192 and 12288 tokens.
    assert_eq!(steps("-d 12288 --batch-ramp 4096:16K", 28_672).unwrap(), 4);
}

#[test]
fn a_model_is_a_file_or_a_shape() {
    assert_eq!(ok("").model_source().unwrap(), ModelSource::File(DEFAULT_MODEL.into()));
    for name in ["a.safetensors", "a/b.gguf"] {
        assert_eq!(ok(&format!("-e {name}")).model_source().unwrap(), ModelSource::File(name.into()));
    }
    let shape = |line: &str| match ok(line).model_source().unwrap() {
        ModelSource::Shape(config) => config,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(shape("--layers 2 --heads 4 --channels 64 -t 32"), ModelConfig::new(32, 2, 4, 64));
    assert_eq!(
        shape("--layers 2 --heads 4 --channels 64 -t 32 --context 48"),
        ModelConfig::new(48, 2, 4, 64)
    );
    let d12 = ModelConfig::from_descriptor("d12").unwrap();
    assert_eq!(shape("-e d12 --layers 3 --qkv-bias 0"), ModelConfig { L: 3, qkv_bias: false, ..d12 });
    assert_eq!(shape("--preset gpt2-124m -o x --layers 3"), ModelConfig { L: 3, ..d12 });

    assert!(error("--layers 2").starts_with("--heads: missing"));
    assert!(error("--context 2").starts_with("--layers: missing"));
    assert!(error("-e a.bin --layers 2").starts_with("-e/--model a.bin: a checkpoint has its own shape"));
    assert!(error("--qkv-bias 0").contains("a checkpoint has its own shape"));
    assert!(error("-e d13").starts_with("-e/--model: model d13: no GPT-2 shape"));
    assert!(error("-e d12 --heads 7").contains("7 heads"));
    assert!(error("-e d12 -t 1025").starts_with("-t/--sequence-length: expected at most the 1024"));
}

#[test]
fn files_and_schedules_must_fit() {
    assert!(error("-y 1").starts_with("-y/--resume 1: needs a directory"));
    assert!(error("-n 100").starts_with("-n/--checkpoint-every 100: needs a directory"));
}

#[test]
fn help_and_version_are_printed() {
    let print = |line: &str| match parse(Program::TrainGpt2, argv(line), &|_| None) {
        Ok(Parsed::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    };
    let help = print("--help");
    assert!(help.contains("-b, --batch-size <B|auto>") && help.contains("[llm.c: -sg]"), "{help}");
    for arg in command(Program::TrainGpt2cu).get_arguments() {
        assert!(
            arg.get_help().is_some_and(|help| !help.to_string().is_empty()),
            "{} has no help",
            arg.get_id()
        );
    }
    assert!(print("--version").contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn the_start_up_table_shows_what_is_in_force() {
    let rows = startup_rows(&ok("-b 2 -t 32 -l 6e-4 --layers 1 --heads 1 --channels 8"));
    let get = |name: &str| rows.iter().find(|row| row.0 == name).map(|row| row.1.as_str());
    assert_eq!(get("micro batch size B"), Some("2"));
    assert_eq!(get("total batch size"), Some("64"));
    assert_eq!(get("learning rate (LR)"), Some("6e-4"));
    assert_eq!((get("model"), get("num_layers L"), get("preset")), (None, Some("1"), None));
    assert_eq!(get("flash"), None);
    assert!(rows.iter().all(|row| row.0.len() <= 21), "{rows:?}");
}

#[test]
fn the_hours_count_from_the_start_of_the_launcher() {
    let started = |value: String| {
        let variable = |name: &str| (name == "WARPSMITH_STARTED").then(|| value.clone());
        parse(Program::TrainGpt2, argv("--max-hours 3"), &variable)
    };
    let left = |ago: f64| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
        let Ok(Parsed::Run(args)) = started((now - ago).to_string()) else { panic!("refused") };
        args.deadline().unwrap().saturating_duration_since(Instant::now()).as_secs_f64()
    };
    for (ago, want) in [(0.0, 10800.0), (3600.5, 7199.5), (20000.0, 0.0), (-50.0, 10800.0)] {
        assert!((left(ago) - want).abs() < 1.0, "{ago}: {}", left(ago));
    }
    for bad in ["", "noon", "-1", "inf", "1e300"] {
        let message = format!("{:#}", started(bad.to_owned()).unwrap_err());
        assert_eq!(message, format!("WARPSMITH_STARTED={bad}: expected seconds since 1970"));
    }
}
