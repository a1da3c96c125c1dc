//! Directories of checkpoints, also after a kill.

use super::*;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::process::Command;

const CONFIG: ModelConfig =
    ModelConfig { maxT: 4, V: 5, Vp: 8, L: 2, NH: 1, C: 4, qkv_bias: true, lora: None };

fn len() -> usize {
    ParamLayout::new(&CONFIG).len()
}

fn checkpoint(dtype: Dtype, state: State) -> Checkpoint {
    Checkpoint { config: CONFIG, dtype, state: Some(state), base_model: String::new() }
}

fn save_step(dir: &Path, step: u64) {
    let tensors = Tensors::random(step, len());
    let trainer = json!({"loss": 1.5, "step": step});
    checkpoint(Dtype::F32, tiny_state(step, false, true)).save(dir, &trainer, &mut tensors.source()).unwrap();
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn latest_step(dir: &Path) -> Option<u64> {
    latest::<Value>(dir).unwrap().step
}

#[test]
fn what_is_saved_is_resumed() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path().join("out");
    assert_eq!(latest_step(&dir), None);
    ensure_fresh(&dir, &["log"]).unwrap();
    fs::create_dir(&dir).unwrap();
    save_step(&dir, 9);
    save_step(&dir, 12);
    let expected = [
        "DONE_00000009",
        "DONE_00000012",
        "model_00000009.bin",
        "model_00000012.bin",
        "run_00000009.json",
        "run_00000012.json",
        "state_00000009_00000.bin",
        "state_00000012_00000.bin",
    ];
    assert_eq!(names(&dir), expected);
    let found = latest::<Value>(&dir).unwrap();
    assert_eq!((found.step, found.warnings), (Some(12), vec![]));

    let checkpoint = Saved::open(&dir, 12, 0).unwrap();
    assert_eq!((checkpoint.model.config, checkpoint.model.dtype), (CONFIG, Dtype::F32));
    assert_eq!(checkpoint.state.state, tiny_state(12, false, true));
    let run = checkpoint.run.as_ref().unwrap();
    assert_eq!((run.step, run.trainer["step"].as_u64(), run.files.len()), (12, Some(12), 2));
    let (was, mut is) = (Tensors::random(12, len()), Tensors::poisoned(len()));
    checkpoint.restore(&mut is.sink()).unwrap();
    for kind in [TensorKind::Params, TensorKind::M, TensorKind::V] {
        assert_eq!(bits_of(&is.0[kind as usize]), bits_of(&was.0[kind as usize]), "{kind:?}");
    }
    assert_eq!(load_model(&dir).unwrap().params, was.0[0]);

    let refusal = ensure_fresh(&dir, &["log"]).unwrap_err().to_string();
    assert!(refusal.contains("up to step 12") && refusal.contains("-y 1"), "{refusal}");
}

#[test]
fn damaged_checkpoints_are_passed_over_with_a_warning() {
    type Damage = fn(&Path);
    let damages: [(Damage, &str); 9] = [
        (|dir| fs::remove_file(dir.join("model_00000002.bin")).unwrap(), "model_00000002.bin"),
        (|dir| fs::remove_file(dir.join("state_00000002_00000.bin")).unwrap(), "state_00000002_00000.bin"),
        (|dir| fs::write(dir.join("run_00000002.json"), "{").unwrap(), "run_00000002.json"),
        (|dir| cut(&dir.join("model_00000002.bin")), "model_00000002.bin"),
        (|dir| cut(&dir.join("state_00000002_00000.bin")), "state_00000002_00000.bin"),
        (|dir| flip(&dir.join("model_00000002.bin"), 1500), "checksum"),
        (|dir| flip(&dir.join("state_00000002_00000.bin"), 1500), "checksum"),
        (|dir| swap(dir, "model_00000001.bin", "model_00000002.bin"), "checksum"),
        (|dir| swap(dir, "state_00000001_00000.bin", "state_00000002_00000.bin"), "found step 1"),
    ];
    for (damage, expected) in damages {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        save_step(dir, 1);
        save_step(dir, 2);
        damage(dir);
        let found = latest::<Value>(dir).unwrap();
        assert_eq!((found.step, found.warnings.len()), (Some(1), 1), "{expected}");
        assert!(found.warnings[0].contains(expected), "{expected}: {}", found.warnings[0]);
        assert_eq!(found.warnings[0].lines().count(), 1);
        let model = find_model(dir).unwrap().to_string();
        assert!(model.ends_with("model_00000001.bin (step 1)"), "{model}");
        // The run that resumed from step 1 reaches step 2 again.
        save_step(dir, 2);
        assert_eq!(latest_step(dir), Some(2));
    }
}

#[test]
fn without_a_complete_checkpoint_there_is_no_model() {
    let directory = tempfile::tempdir().unwrap();
    save_step(directory.path(), 2);
    cut(&directory.path().join("model_00000002.bin"));
    let message = format!("{:#}", find_model(directory.path()).unwrap_err());
    assert!(
        message.contains("no complete checkpoint: ") && message.contains("model_00000002.bin"),
        "{message}"
    );
}

fn cut(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() - 1]).unwrap();
}

fn swap(dir: &Path, from: &str, to: &str) {
    fs::copy(dir.join(from), dir.join(to)).unwrap();
}

fn flip(path: &Path, byte: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[byte] ^= 1;
    fs::write(path, &bytes).unwrap();
}

#[test]
fn a_damaged_tensor_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    let layout = ParamLayout::new(&CONFIG);
    let (model, state) = (model_path(dir, 1), state_path(dir, 1, 0));
    let cases = [
        (&model, layout.range(Param::Qkvw).start, "tensor qkvw differs"),
        (&state, layout.range(Param::Wpe).end - 1, "tensor m.wpe differs"),
        (&state, len() + layout.range(Param::Lnfb).start, "tensor v.lnfb differs"),
    ];
    for (path, index, expected) in cases {
        save_step(dir, 1);
        flip(path, 1024 + 4 * index);
        let warnings = latest::<Value>(dir).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{expected}: {warnings:?}");
    }
}

/// Bytes all over each file of a checkpoint, changed or cut off.
#[test]
fn no_changed_byte_is_taken_in_silence() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    save_step(dir, 1);
    save_step(dir, 2);
    for path in [done_path(dir, 2), run_path(dir, 2), model_path(dir, 2), state_path(dir, 2, 0)] {
        let good = fs::read(&path).unwrap();
        // The first bytes and the last are among those that are tried.
        let step = (good.len() - 1) / 40;
        for byte in (0..good.len()).step_by(step) {
            let mut damaged = good.clone();
            damaged[byte] ^= 4;
            fs::write(&path, damaged).unwrap();
            let found = latest::<Value>(dir).unwrap();
            assert_eq!((found.step, found.warnings.len()), (Some(1), 1), "{} at {byte}", path.display());
            fs::write(&path, &good[..byte]).unwrap();
            let found = latest::<Value>(dir).unwrap();
            assert_eq!((found.step, found.warnings.len()), (Some(1), 1), "{} to {byte}", path.display());
        }
        fs::write(&path, &good).unwrap();
    }
    assert_eq!(latest_step(dir), Some(2));
}

/// Turns a checkpoint into one of an earlier version.
fn make_early(dir: &Path, step: u64, edit: fn(&mut Value)) {
    let mut run: Value = serde_json::from_slice(&fs::read(run_path(dir, step)).unwrap()).unwrap();
    run["format"] = 1.into();
    for file in run["files"].as_object_mut().unwrap().values_mut() {
        file.as_object_mut().unwrap().remove("tensors");
    }
    edit(&mut run);
    fs::write(run_path(dir, step), run.to_string()).unwrap();
    fs::write(done_path(dir, step), "").unwrap();
}

#[test]
fn checkpoints_of_earlier_versions_and_of_llm_c_are_read_with_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    save_step(dir, 3);
    make_early(dir, 3, |_| {});
    let found = latest::<Value>(dir).unwrap();
    assert_eq!((found.step, found.warnings.len()), (Some(3), 1));
    assert!(found.warnings[0].contains("run_00000003.json"), "{:?}", found.warnings);
    flip(&model_path(dir, 3), 1500);
    assert!(latest::<Value>(dir).unwrap().warnings[0].contains("checksum"));
    flip(&model_path(dir, 3), 1500);

    fs::remove_file(run_path(dir, 3)).unwrap();
    let found = latest::<Value>(dir).unwrap();
    assert_eq!((found.step, found.warnings.len()), (Some(3), 1));
    assert!(found.warnings[0].contains("no checksums"), "{:?}", found.warnings);
    assert!(Saved::open(dir, 3, 0).unwrap().run.is_none());
}

#[test]
fn a_run_file_that_vouches_for_other_files_is_refused() {
    type Edit = fn(&mut Value);
    let edits: [(Edit, &str); 5] = [
        (|run| run["files"] = json!({}), "the digests of the checkpoint's other 2 files"),
        (|run| run["files"]["/dev/zero"] = json!({"bytes": 1, "crc32": 1}), "found others"),
        (|run| run["files"]["model_00000003.bin"]["crc"] = 1.into(), "unknown field `crc`"),
        (|run| run["step"] = 4.into(), "run_00000003.json: expected step 3, found 4"),
        (|run| run["trainer"] = "none".into(), "run_00000003.json"),
    ];
    for (edit, expected) in edits {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        save_step(dir, 3);
        make_early(dir, 3, edit);
        let found = latest::<BTreeMap<String, f64>>(dir).unwrap();
        assert_eq!((found.step, found.warnings.len()), (None, 1), "{expected}");
        assert!(found.warnings[0].contains(expected), "{expected}: {}", found.warnings[0]);
    }
}

/// A copy in memory gives the same bytes on the disk.
#[test]
fn a_copy_is_written_bit_for_bit() {
    for (dtype, master, shuffle) in [(Dtype::F32, false, true), (Dtype::Bf16, true, false)] {
        let [direct, copied] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let tensors = Tensors::random(7, len());
        let checkpoint = checkpoint(dtype, tiny_state(7, master, shuffle));
        checkpoint.save(direct.path(), &"trainer", &mut tensors.source()).unwrap();
        let copy = checkpoint.copy(&mut tensors.source()).unwrap().unwrap();
        checkpoint.save_copy(copied.path(), &"trainer", &copy).unwrap();
        assert_eq!(names(copied.path()), names(direct.path()));
        for name in names(direct.path()) {
            let [a, b] = [&direct, &copied].map(|dir| fs::read(dir.path().join(&name)).unwrap());
            assert!(a == b, "{name}");
        }
        let size = fs::metadata(state_path(direct.path(), 7, 0)).unwrap().len();
        assert_eq!(size, tiny_state(7, master, shuffle).size(&CONFIG) as u64);
    }
}

#[test]
fn a_copy_that_does_not_fit_reads_no_tensor() {
    let config =
        ModelConfig { maxT: 1, V: 1, Vp: 1, L: 10_000, NH: 1, C: 1 << 20, qkv_bias: true, lora: None };
    let huge = Checkpoint { config, dtype: Dtype::F32, state: None, base_model: String::new() };
    let copied = huge.copy(&mut |kind, _, _| panic!("{kind:?} is read")).unwrap();
    assert!(copied.is_none());
}

#[test]
fn models_given_by_name_are_checked() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    save_step(dir, 1);
    let best = Checkpoint { config: CONFIG, dtype: Dtype::F32, state: None, base_model: String::new() };
    best.save(dir, &(), &mut Tensors::random(1, len()).source()).unwrap();
    let copy = best.copy(&mut Tensors::random(1, len()).source()).unwrap().unwrap();
    best.save_copy(dir, &(), &copy).unwrap();
    for (path, expected) in
        [(model_path(dir, 1), "tensor wte differs"), (dir.join("model_best.bin"), "checksum")]
    {
        load_model(&path).unwrap();
        flip(&path, 1024);
        assert_refused(load_model(&path), &path, expected);
        // Elsewhere nothing is known about it.
        let other = dir.join("other.bin");
        fs::copy(&path, &other).unwrap();
        load_model(&other).unwrap();
    }
}

#[test]
fn other_names_are_not_taken_for_checkpoints() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    for name in
        ["DONE_", "DONE_12", "DONE_0000000x", "DONE_000000012", "DONE_00000012.bak", ".DONE_00000012.tmp"]
    {
        fs::write(dir.join(name), "").unwrap();
    }
    assert!(steps(dir).unwrap().is_empty());
    fs::write(dir.join("DONE_123456789"), "").unwrap();
    assert_eq!(steps(dir).unwrap(), [123_456_789]);
}

/// The environment variable with the point at which to die: during a tensor's first chunk, or while
/// the run file is written.
const KILL_AT: &str = "WARPSMITH_TEST_KILL_AT";

/// A trainer state that ends the process instead of being written.
struct Fatal(bool);

impl Serialize for Fatal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 {
            std::process::abort();
        }
        serializer.serialize_bool(self.0)
    }
}

/// The process that `a_killed_save_leaves_the_previous_checkpoint` kills. It does nothing in an
/// ordinary test run.
#[test]
fn victim() {
    let Ok(setting) = std::env::var(KILL_AT) else { return };
    let (point, dir) = setting.split_once(' ').unwrap();
    let tensors = Tensors::random(2, len());
    let mut source = tensors.source();
    let mut fatal = |kind: TensorKind, start: usize, out: &mut [f32]| {
        if format!("{kind:?}") == point {
            std::process::abort();
        }
        source(kind, start, out)
    };
    let state = tiny_state(2, true, true);
    checkpoint(Dtype::Bf16, state).save(Path::new(dir), &Fatal(point == "Run"), &mut fatal).unwrap();
}

#[test]
fn a_killed_save_leaves_the_previous_checkpoint() {
    for point in ["Params", "M", "V", "Master", "Run", "none"] {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        save_step(dir, 1);
        // Once into an empty step, and once over an earlier checkpoint of the same step.
        for again in [false, true] {
            if again {
                save_step(dir, 2);
            }
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "checkpoint::tests::directory::victim"])
                .env(KILL_AT, format!("{point} {}", dir.display()))
                .output()
                .unwrap()
                .status;
            assert_eq!(status.success(), point == "none", "{point}: {status}");
            let found = latest::<Value>(dir).unwrap();
            assert_eq!(
                found.step,
                Some(if point == "none" { 2 } else { 1 }),
                "{point}: {:?}",
                found.warnings
            );
            assert!(found.warnings.is_empty(), "{point}: {:?}", found.warnings);
        }
        // The next checkpoint removes half-written files.
        let half_written = |dir: &Path| names(dir).iter().any(|name| name.ends_with(".tmp"));
        assert_eq!(
            half_written(dir),
            ["Params", "M", "V", "Master"].contains(&point),
            "{point}: {:?}",
            names(dir)
        );
        save_step(dir, 3);
        prune(dir, 3, 0, 0).unwrap();
        assert!(!half_written(dir));
        assert_eq!(latest_step(dir), Some(3));
    }
}

#[test]
fn a_kill_between_the_last_files_leaves_the_previous_checkpoint() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    save_step(dir, 1);
    save_step(dir, 2);
    for path in [done_path(dir, 2), run_path(dir, 2), state_path(dir, 2, 0), model_path(dir, 2)] {
        fs::remove_file(path).unwrap();
        let found = latest::<Value>(dir).unwrap();
        assert_eq!((found.step, found.warnings), (Some(1), vec![]));
    }
}

#[test]
fn a_failed_save_is_one_line_and_harmless() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    save_step(dir, 1);
    let mut full = |kind: TensorKind, _: usize, out: &mut [f32]| {
        out.fill(0.0);
        anyhow::ensure!(kind != TensorKind::V, "No space left on device");
        Ok(())
    };
    let second = checkpoint(Dtype::F32, tiny_state(2, false, false));
    let result = second.save(dir, &(), &mut full);
    assert_refused(result, &state_path(dir, 2, 0), "No space left on device");
    assert_eq!(latest_step(dir), Some(1));
    assert!(!names(dir).iter().any(|name| name.ends_with(".tmp")));
    // A file where a directory should be.
    let file = model_path(dir, 1);
    assert_refused(second.save(&file, &(), &mut full), &file, "cannot");
}

#[test]
fn pruning_keeps_the_newest_and_the_major_ones() {
    let kept = |keep, major_every| {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        for step in [10, 20, 30, 40, 50, 55] {
            save_step(dir, step);
        }
        // Files that are not of a checkpoint, of one that was not finished, and of a later one.
        for other in ["main.log", "model_best.bin", "model_15.bin"] {
            fs::write(dir.join(other), "").unwrap();
        }
        for unfinished in ["model_00000015.bin", "state_00000025_00000.bin", "state_00000060_00000.bin"] {
            fs::write(dir.join(unfinished), "").unwrap();
        }
        prune(dir, 50, keep, major_every).unwrap();
        let kept = steps(dir).unwrap();
        assert_eq!(names(dir).len(), 4 * kept.len() + 4, "{:?}", names(dir));
        kept
    };
    assert_eq!(kept(0, 0), [10, 20, 30, 40, 50, 55]);
    assert_eq!(kept(1, 0), [50, 55]);
    assert_eq!(kept(2, 0), [40, 50, 55]);
    assert_eq!(kept(1, 20), [20, 40, 50, 55]);
    assert_eq!(kept(2, 30), [30, 40, 50, 55]);
    assert_eq!(kept(99, 0), [10, 20, 30, 40, 50, 55]);
    assert_eq!(kept(0, 20), [10, 20, 30, 40, 50, 55]);
}

#[test]
fn a_removal_cut_short_is_finished_by_the_next() {
    // The order in which the files of a checkpoint are removed.
    for gone in 1..=3 {
        let directory = tempfile::tempdir().unwrap();
        let dir = directory.path();
        save_step(dir, 1);
        save_step(dir, 2);
        let order = [done_path(dir, 1), model_path(dir, 1), state_path(dir, 1, 0)];
        for path in &order[..gone] {
            fs::remove_file(path).unwrap();
        }
        let found = latest::<Value>(dir).unwrap();
        assert_eq!((found.step, found.warnings), (Some(2), vec![]));
        prune(dir, 2, 1, 0).unwrap();
        assert_eq!(names(dir).len(), 4, "{:?}", names(dir));
    }
}

#[test]
fn a_removal_starts_with_done() {
    let directory = tempfile::tempdir().unwrap();
    let dir = directory.path();
    save_step(dir, 1);
    save_step(dir, 2);
    // The files after DONE cannot be removed.
    fs::remove_file(model_path(dir, 1)).unwrap();
    fs::create_dir(model_path(dir, 1)).unwrap();
    assert_refused(prune(dir, 2, 1, 0), &model_path(dir, 1), "cannot remove");
    assert_eq!(steps(dir).unwrap(), [2]);
    assert!(run_path(dir, 1).exists());
}
