use super::*;
use crate::data::buckets::rows_by_token;
use crate::data::shard::ShardWriter;
use crate::data::tokenizer::TokenizerId;
use tempfile::TempDir;

mod mixed;
mod packed;

/// Shards of 50, 33 and 41 tokens; token `t` of shard `s` is 1000 s + t.
fn three_shards() -> TempDir {
    let dir = TempDir::new().unwrap();
    for (s, len) in [50, 33, 41].into_iter().enumerate() {
        let start = 1000 * s as u32;
        write_shard(&dir, &format!("s_{s}.bin"), &(start..start + len).collect::<Vec<_>>());
    }
    dir
}

fn write_shard(dir: &TempDir, name: &str, tokens: &[u32]) {
    let mut writer = ShardWriter::create(&dir.path().join(name), TokenizerId::GPT2).unwrap();
    writer.write(tokens).unwrap();
    writer.seal().unwrap().publish().unwrap();
}

fn options(pattern: &str, shuffle: bool) -> LoaderOptions<'_> {
    LoaderOptions {
        pattern,
        flag: "-i",
        B: 4,
        T: 2,
        rank: 0,
        num_processes: 1,
        sample: Sample::Batch,
        shuffle,
        packing: Packing::default(),
        V: 50257,
    }
}

fn pattern(dir: &TempDir) -> String {
    dir.path().join("s_*.bin").to_str().unwrap().to_owned()
}

fn open(dir: &TempDir, shuffle: bool) -> DataLoader {
    DataLoader::open(options(&pattern(dir), shuffle)).unwrap()
}

fn first_inputs(loader: &mut DataLoader, batches: usize) -> Vec<i32> {
    (0..batches).map(|_| loader.next_batch().unwrap().inputs[0]).collect()
}

/// The error message: one line that names the flag.
fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    let message = format!("{:#}", result.unwrap_err());
    assert!(message.starts_with("-i") && !message.contains('\n'), "{message}");
    message
}

/// The output of llm.c's own loader, compiled, over the same three shards.
#[test]
fn shuffled_order_is_that_of_llmc() {
    let dir = three_shards();
    let expected = [
        2024, 2032, 2000, 2016, 2008, 1008, 1024, 1016, 1000, 8, 0, 32, 16, 24, 40, 1000, 1016, 1008, 1024,
        24, 16, 8, 0, 40, 32, 2000, 2024, 2016, 2008, 2032,
    ];
    let mut loader = open(&dir, true);
    assert_eq!(first_inputs(&mut loader, 30), expected);
    let state = loader.state();
    assert_eq!((state.current_shard_idx, state.current_sample_idx), (2, 5));
    assert_eq!(state.shuffle.unwrap().rng.randint32(), 780_932_287);

    let mut loader = open(&dir, true);
    first_inputs(&mut loader, 5);
    loader.reset();
    assert_eq!(first_inputs(&mut loader, 7), [40, 0, 8, 16, 24, 32, 2000]);
    assert_eq!(loader.state().shuffle.unwrap().rng.randint32(), 613_608_295);
}

#[test]
fn unshuffled_order_is_that_of_the_files() {
    let dir = three_shards();
    let mut loader = open(&dir, false);
    assert_eq!((loader.num_shards(), loader.num_tokens(), loader.batches_per_epoch()), (3, 124, 15));
    let epoch = [0, 8, 16, 24, 32, 40, 1000, 1008, 1016, 1024, 2000, 2008, 2016, 2024, 2032];
    assert_eq!(first_inputs(&mut loader, 15), epoch);
    assert_eq!(first_inputs(&mut loader, 3), epoch[..3]);
    loader.reset();
    let batch = loader.next_batch().unwrap();
    assert_eq!(batch.inputs, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(batch.targets, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(batch.rows_by_token, [0, 1, 2, 3, 4, 5, 6, 7]);
}

/// More than two epochs, so that rounds of ranks span the ends of shards and epochs.
#[test]
fn ranks_take_the_samples_of_one_in_turn() {
    let dir = three_shards();
    let pattern = pattern(&dir);
    for shuffle in [false, true] {
        let alone = first_inputs(&mut open(&dir, shuffle), 36);
        for num_processes in [2, 3, 4] {
            let rounds = 36 / num_processes;
            let mut seen = vec![0; 36];
            for rank in 0..num_processes {
                let options = LoaderOptions { rank, num_processes, ..options(&pattern, shuffle) };
                let mut loader = DataLoader::open(options).unwrap();
                for (round, first) in first_inputs(&mut loader, rounds).into_iter().enumerate() {
                    seen[round * num_processes + rank] = first;
                }
            }
            assert_eq!(seen, alone, "{num_processes} ranks");
        }
    }
}

/// A run can stop with one number of ranks and continue with another.
#[test]
fn a_state_is_that_of_all_ranks() {
    let dir = three_shards();
    let pattern = pattern(&dir);
    let of = |rank, num_processes| {
        DataLoader::open(LoaderOptions { rank, num_processes, ..options(&pattern, true) }).unwrap()
    };
    let [mut first, mut second] = [of(0, 2), of(1, 2)];
    first_inputs(&mut first, 8);
    first_inputs(&mut second, 8);
    assert_eq!(first.state(), second.state());
    let mut alone = of(0, 1);
    alone.restore(&first.state()).unwrap();
    assert_eq!(first_inputs(&mut alone, 14), first_inputs(&mut of(0, 1), 30)[16..]);
}

#[test]
fn a_restored_loader_goes_on_as_if_never_stopped() {
    let dir = three_shards();
    for shuffle in [false, true] {
        // More than two epochs; one ends exactly after 15 and after 30 batches.
        let whole = first_inputs(&mut open(&dir, shuffle), 40);
        let mut stopped = open(&dir, shuffle);
        for stop in 0..32 {
            let state = stopped.state();
            let mut resumed = open(&dir, shuffle);
            first_inputs(&mut resumed, 3);
            resumed.restore(&state).unwrap();
            assert_eq!(resumed.state(), state);
            assert_eq!(first_inputs(&mut resumed, 8), whole[stop..stop + 8], "stopped after {stop}");
            stopped.next_batch().unwrap();
        }
    }
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let dir = three_shards();
    let mut loader = open(&dir, true);
    first_inputs(&mut loader, 7);
    let good = loader.state();
    let mut refuse = |change: fn(&mut LoaderState, &mut ShuffleState)| {
        let mut state = good.clone();
        let mut shuffle = state.shuffle.clone().unwrap();
        change(&mut state, &mut shuffle);
        state.shuffle = state.shuffle.and(Some(shuffle));
        message(loader.restore(&state))
    };
    assert!(refuse(|state, _| state.shuffle = None).contains("did not shuffle"));
    assert!(refuse(|_, shuffle| shuffle.shard_indices.push(3)).contains("4 shards, this run has 3"));
    assert!(refuse(|_, shuffle| shuffle.shard_indices[0] = 3).contains("order of 3 shards has 3,"));
    assert!(refuse(|_, shuffle| shuffle.shard_indices[0] = -1).contains("has -1,"));
    assert!(refuse(|_, shuffle| shuffle.shard_indices[0] = shuffle.shard_indices[1]).contains("or repeated"));
    assert!(refuse(|state, _| state.current_shard_idx = 3).contains("in shard 3 of 3"));
    assert!(refuse(|state, _| state.current_shard_idx = 0).contains("4 samples, here it has 5"));
    assert!(refuse(|_, shuffle| shuffle.intra_shard_indices[1] = 9).contains("order of 4 samples has 9,"));
    assert!(refuse(|state, _| state.current_sample_idx = 5).contains("5 samples into a shard of 4"));
    assert!(refuse(|state, _| state.current_sample_idx = u64::MAX).contains("into a shard of 4"));
    assert_eq!(loader.state(), good, "a refused state changes nothing");
    assert_eq!(first_inputs(&mut loader, 3), [1016, 1000, 8]);

    let mut unshuffled = open(&dir, false);
    assert!(message(unshuffled.restore(&good)).contains("a run that shuffled"));
    let at = |current_shard_idx, current_sample_idx| LoaderState {
        current_shard_idx,
        current_sample_idx,
        shuffle: None,
    };
    assert!(message(unshuffled.restore(&at(3, 0))).contains("at shard 3, but this run has 3"));
    assert!(message(unshuffled.restore(&at(1, 5))).contains("at sample 5 of a shard of 4"));
}

/// The starts of the sequences that all ranks read in each of `steps` steps of 24 sequences of 2
/// tokens, in the order in which they are dealt. The loaders start at `state`, if there is one, and
/// end at the same state, which is returned.
fn sequences(
    dir: &TempDir,
    (B, num_processes): (usize, usize),
    shuffle: bool,
    state: Option<&LoaderState>,
    steps: usize,
) -> (Vec<Vec<i32>>, LoaderState) {
    let pattern = pattern(dir);
    let of = |rank| LoaderOptions {
        sample: Sample::Sequence,
        B,
        rank,
        num_processes,
        ..options(&pattern, shuffle)
    };
    let mut ranks: Vec<_> = (0..num_processes).map(|rank| DataLoader::open(of(rank)).unwrap()).collect();
    if let Some(state) = state {
        ranks.iter_mut().for_each(|loader| loader.restore(state).unwrap());
    }
    let mut step = || {
        let mut starts = Vec::new();
        for _ in 0..24 / (B * num_processes) {
            for loader in &mut ranks {
                let Batch { inputs, targets, rows_by_token: by_token, .. } = loader.next_batch().unwrap();
                assert_eq!(by_token, rows_by_token(&inputs));
                assert!(inputs.iter().zip(&targets).all(|(input, target)| input + 1 == *target));
                assert!(inputs.chunks(2).all(|sequence| sequence[0] + 1 == sequence[1]));
                starts.extend(inputs.chunks(2).map(|sequence| sequence[0]));
            }
        }
        assert_eq!(starts.len(), 24);
        starts
    };
    let starts = (0..steps).map(|_| step()).collect();
    let state = ranks[0].state();
    assert!(ranks.iter().all(|loader| loader.state() == state));
    (starts, state)
}

/// Every way to share 24 sequences: B and the number of ranks.
const SPLITS: [(usize, usize); 10] =
    [(24, 1), (12, 1), (8, 3), (6, 4), (4, 2), (3, 1), (3, 8), (2, 4), (1, 24), (1, 1)];

/// The shards have 24, 16 and 20 sequences, so steps span the ends of shards and epochs.
#[test]
fn a_step_reads_the_same_sequences_for_every_micro_batch_and_number_of_ranks() {
    let dir = three_shards();
    for shuffle in [false, true] {
        let whole = sequences(&dir, (24, 1), shuffle, None, 7);
        for split in SPLITS {
            assert_eq!(sequences(&dir, split, shuffle, None, 7), whole, "{split:?}");
        }
    }
}

#[test]
fn every_sequence_is_read_once_an_epoch() {
    let dir = three_shards();
    let files: Vec<i32> = [(0, 24), (1000, 16), (2000, 20)]
        .into_iter()
        .flat_map(|(start, n)| (0..n).map(move |i| start + 2 * i))
        .collect();
    let read = |shuffle| sequences(&dir, (4, 2), shuffle, None, 5).0.concat();
    assert_eq!(read(false), [&files[..], &files].concat());
    let shuffled = read(true);
    let epochs: Vec<_> = shuffled.chunks(files.len()).map(<[i32]>::to_vec).collect();
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, files);
        assert_ne!(*epoch, files);
    }
    assert_ne!(epochs[0], epochs[1]);
}

/// Five epochs, resumed after every step in another way to share it.
#[test]
fn sequences_go_on_from_a_state_in_any_other_split() {
    let dir = three_shards();
    for shuffle in [false, true] {
        let whole = sequences(&dir, (24, 1), shuffle, None, 12).0;
        let mut state = None;
        for (step, split) in whole.iter().zip(SPLITS.iter().cycle()) {
            let (starts, after) = sequences(&dir, *split, shuffle, state.as_ref(), 1);
            assert_eq!(starts.concat(), *step, "{split:?}");
            state = Some(after);
        }
    }
}

#[test]
fn short_shards_are_skipped() {
    let dir = three_shards();
    write_shard(&dir, "s_0a.bin", &[7; 8]);
    write_shard(&dir, "s_9.bin", &[7]);
    let mut loader = open(&dir, false);
    let short: Vec<_> = loader.short_shards().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(short, ["s_0a.bin", "s_9.bin"]);
    assert_eq!((loader.num_shards(), loader.num_tokens(), loader.batches_per_epoch()), (5, 133, 15));
    let expected = [0, 8, 16, 24, 32, 40, 1000, 1008, 1016, 1024, 2000, 2008, 2016, 2024, 2032, 0];
    assert_eq!(first_inputs(&mut loader, 16), expected);

    let mut shuffled = open(&dir, true);
    let mut seen = first_inputs(&mut shuffled, 15);
    seen.sort_unstable();
    assert_eq!(seen, expected[..15]);
    let mut resumed = open(&dir, true);
    resumed.restore(&shuffled.state()).unwrap();
    assert_eq!(first_inputs(&mut resumed, 20), first_inputs(&mut shuffled, 20));
}

#[test]
fn a_shard_holds_a_sample_from_one_token_more_than_its_inputs() {
    let dir = TempDir::new().unwrap();
    write_shard(&dir, "s_0.bin", &[1, 2, 3, 4, 5, 6, 7, 8]);
    let error = message(DataLoader::open(options(&pattern(&dir), false)));
    assert!(error.contains("no shard is long enough") && error.contains("has 8 tokens, 9 are"), "{error}");
    write_shard(&dir, "s_0.bin", &[1, 2, 3, 4, 5, 6, 7, 8, 9]);
    let mut loader = open(&dir, false);
    for _ in 0..3 {
        assert_eq!(loader.next_batch().unwrap().targets, [2, 3, 4, 5, 6, 7, 8, 9]);
    }
}

/// Shards 0 and 1 stay below 1033; shard 2 starts at 2000. Twelve batches are good: the last target
/// of the thirteenth is 2024.
#[test]
fn a_token_outside_the_vocabulary_is_named_when_its_batch_is_due() {
    let dir = three_shards();
    let pattern = pattern(&dir);
    let bad = LoaderOptions { V: 2024, ..options(&pattern, false) };
    let mut loader = DataLoader::open(bad).unwrap();
    // The background check is left out, so that only the batches are looked at.
    loader.check = VocabularyCheck::none();
    assert_eq!(first_inputs(&mut loader, 11).last(), Some(&2000));
    let state = loader.state();
    let mut refused = || {
        loader.next_batch().unwrap();
        message(loader.next_batch())
    };
    let error = refused();
    assert!(error.contains("s_2.bin: token 24 is 2024") && error.contains("vocabulary of 2024"), "{error}");
    loader.restore(&state).unwrap();
    assert_eq!(first_inputs(&mut loader, 1), [2008]);
    assert!(loader.next_batch().is_err() && loader.next_batch().is_err());
    loader.reset();
    assert_eq!(first_inputs(&mut loader, 1), [0]);
}

#[test]
fn a_token_outside_the_vocabulary_is_found_before_its_batch_is_due() {
    let dir = three_shards();
    let pattern = pattern(&dir);
    let of = |rank, num_processes| {
        let options = LoaderOptions { V: 2024, rank, num_processes, ..options(&pattern, false) };
        let mut loader = DataLoader::open(options).unwrap();
        loader.check.wait();
        loader
    };
    let expected = message(Err::<Batch, _>(of(0, 1).next_batch().unwrap_err()));
    assert!(expected.contains("s_2.bin: token 24 is 2024, outside the vocabulary of 2024"), "{expected}");
    // Rank 2 of 3 checks the third shard.
    assert_eq!(message(of(2, 3).next_batch()), expected);
    let mut other = of(0, 3);
    assert_eq!(first_inputs(&mut other, 2), [0, 24]);

    let options = LoaderOptions { V: 2041, ..options(&pattern, false) };
    let mut good = DataLoader::open(options).unwrap();
    good.check.wait();
    assert_eq!(first_inputs(&mut good, 16).len(), 16);
}

#[test]
fn a_shard_cut_short_while_it_is_read_is_an_error() {
    let dir = three_shards();
    let mut loader = open(&dir, false);
    loader.check.wait();
    first_inputs(&mut loader, 2);
    let path = dir.path().join("s_1.bin");
    std::fs::File::options().write(true).open(&path).unwrap().set_len(1024).unwrap();
    let mut read = (0..20).map(|_| loader.next_batch().map(|batch| batch.inputs[0]));
    let error = message(read.find(Result::is_err).unwrap());
    assert!(error.contains("s_1.bin: expected 1090 bytes, found 1024; it was cut short"), "{error}");
}

#[test]
fn shards_that_two_loaders_share_are_found_by_whatever_name() {
    let dir = three_shards();
    let all = open(&dir, false);
    let one = |name: &str| {
        let pattern = dir.path().join(name).to_str().unwrap().to_owned();
        DataLoader::open(options(&pattern, false)).unwrap()
    };
    assert_eq!(all.shared_shard(&one("s_2.bin")).unwrap().file_name().unwrap(), "s_2.bin");
    std::os::unix::fs::symlink(dir.path().join("s_2.bin"), dir.path().join("link.bin")).unwrap();
    assert_eq!(all.shared_shard(&one("link.bin")).unwrap().file_name().unwrap(), "s_2.bin");
    write_shard(&dir, "t.bin", &[1; 50]);
    assert_eq!(all.shared_shard(&one("t.bin")), None);
}

#[test]
fn bad_patterns_and_sizes_are_refused() {
    let dir = three_shards();
    let refuse = |pattern: &str| message(DataLoader::open(options(pattern, true)));
    assert!(refuse("/nonexistent/*.bin").contains("no file matches"));
    assert!(refuse(&format!("{}/s_7.bin", dir.path().display())).contains("no file matches"));
    assert!(refuse("").contains("no file matches"));
    assert!(refuse("a/***.bin").contains("not a valid file pattern"));
    std::fs::write(dir.path().join("s_5.bin"), "text").unwrap();
    assert!(
        refuse(&pattern(&dir)).contains("s_5.bin: expected a token shard (magic 20240520), found 4 bytes")
    );
    for (B, T) in [(0, 2), (2, 0), (usize::MAX, 2)] {
        let options = LoaderOptions { B, T, ..options("x", true) };
        assert!(DataLoader::open(options).unwrap_err().to_string().contains("batch"));
    }
}

#[test]
fn a_dropped_loader_ends_its_thread() {
    let dir = three_shards();
    let mut loader = open(&dir, true);
    loader.next_batch().unwrap();
    let reader = Arc::downgrade(&loader.fetcher.reader);
    drop(loader);
    assert!(reader.upgrade().is_none());
}
