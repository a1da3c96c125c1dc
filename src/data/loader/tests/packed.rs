use super::*;
use crate::data::mask::{MaskedShardWriter, path_of};
use crate::data::order::packed::Document;
use std::fs;

const EOT: u32 = 50256;

/// Examples of `lengths` tokens, whose first half is given; token `t` of example `e` is 100 e + t.
fn masked(dir: &TempDir, name: &str, first: u32, lengths: &[u32]) {
    let mut writer = MaskedShardWriter::create(&dir.path().join(name), TokenizerId::GPT2).unwrap();
    for (e, &length) in (first..).zip(lengths) {
        let tokens: Vec<u32> = (0..length).map(|t| 100 * e + t).collect();
        let counts: Vec<bool> = (0..length).map(|t| t >= length / 2).collect();
        writer.write(&tokens, &counts).unwrap();
    }
    writer.seal().unwrap().into_iter().for_each(|file| file.publish().unwrap());
}

fn packed_options(pattern: &str, T: usize, shuffle: bool) -> LoaderOptions<'_> {
    LoaderOptions { B: 2, T, sample: Sample::Sequence, ..options(pattern, shuffle) }
}

#[test]
fn whole_examples_are_packed_and_only_answers_count() {
    let dir = TempDir::new().unwrap();
    masked(&dir, "s_0.bin", 0, &[5, 9]);
    masked(&dir, "s_1.bin", 2, &[4]);
    let pattern = pattern(&dir);
    let mut loader = DataLoader::open(packed_options(&pattern, 8, false)).unwrap();
    assert_eq!((loader.packed_documents(), loader.batches_per_epoch()), (Some(3), 1));
    assert_eq!((loader.num_tokens(), loader.epoch_tokens()), (18, 16));
    // The targets 2, 3, 4 of example 0 count, 2 and 3 of example 2, then 4 to 8 of example 1.
    assert_eq!((loader.counted(1), loader.counted(2)), (10, 20));
    let batch = loader.next_batch().unwrap();
    let eot = EOT as i32;
    assert_eq!(batch.inputs[..8], [0, 1, 2, 3, 200, 201, 202, eot]);
    assert_eq!(batch.targets[..8], [-100, 2, 3, 4, -100, 202, 203, -100]);
    assert_eq!(batch.inputs[8..], (100..108).collect::<Vec<_>>());
    assert_eq!(batch.targets[8..], [-100, -100, -100, 104, 105, 106, 107, 108]);
    let packed = batch.packed.unwrap();
    assert_eq!(packed.positions, [0, 1, 2, 3, 0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(packed.rows_by_position[..4], [0, 4, 7, 8]);
}

#[test]
fn long_examples_are_cut_or_left_out() {
    let dir = TempDir::new().unwrap();
    masked(&dir, "s_0.bin", 0, &[4, 9, 30]);
    let pattern = pattern(&dir);
    let documents = |T, skip_long| {
        let packing = Packing { documents: false, skip_long };
        let loader = DataLoader::open(LoaderOptions { packing, ..packed_options(&pattern, T, false) });
        let loader = loader.map_err(|error| format!("{error:#}"))?;
        Ok(loader.fetcher.reader.packed.as_ref().unwrap().order.documents().to_vec())
    };
    let of = |start, rows, counted| Document { start, rows, counted };
    // No answer of the last example is within 6 tokens.
    assert_eq!(documents(6, false), Ok(vec![of(0, 3, 2), of(4, 6, 3)]));
    assert_eq!(documents(6, true), Ok(vec![of(0, 3, 2)]));
    assert_eq!(documents(29, true).unwrap().len(), 3);
    let error: Result<Vec<Document>, String> = documents(1, false);
    let error = error.unwrap_err();
    assert!(error.starts_with("-i ") && error.contains("no example has an answer within 1 tokens; raise -t"));
}

#[test]
fn documents_of_plain_shards_are_packed_if_asked() {
    let dir = TempDir::new().unwrap();
    write_shard(&dir, "s_0.bin", &[EOT, 1, 2, EOT, 3]);
    write_shard(&dir, "s_1.bin", &[4, 5, 6, 7, EOT, 8, 9]);
    let packing = Packing { documents: true, skip_long: false };
    let pattern = pattern(&dir);
    let options = LoaderOptions { B: 3, packing, ..packed_options(&pattern, 4, false) };
    let mut loader = DataLoader::open(options).unwrap();
    let batch = loader.next_batch().unwrap();
    let eot = EOT as i32;
    // The end of a document is a target; the second document has 6 tokens, in two pieces.
    assert_eq!(batch.inputs, [eot, 1, 2, eot, eot, 3, 4, 5, 6, 7, eot, 8]);
    assert_eq!(batch.targets, [1, 2, eot, -100, 3, 4, 5, 6, 7, eot, 8, 9]);
    assert_eq!(batch.packed.unwrap().positions, [0, 1, 2, 0, 0, 1, 2, 3, 0, 1, 0, 1]);
}

/// The sequences that steps of 12 read do not depend on ranks and batches, nor on a stop.
#[test]
fn steps_read_the_same_sequences_for_any_split_and_after_a_stop() {
    let dir = TempDir::new().unwrap();
    let lengths: Vec<u32> = (0..90).map(|i| 2 + i * 7 % 15).collect();
    masked(&dir, "s_0.bin", 0, &lengths);
    let pattern = pattern(&dir);
    let steps = |B: usize, num_processes: usize, state: Option<&LoaderState>, steps: usize| {
        let mut ranks: Vec<_> = (0..num_processes)
            .map(|rank| {
                let options = packed_options(&pattern, 16, true);
                let mut loader =
                    DataLoader::open(LoaderOptions { B, rank, num_processes, ..options }).unwrap();
                state.iter().for_each(|state| loader.restore(state).unwrap());
                loader
            })
            .collect();
        let mut read = Vec::new();
        for _ in 0..steps {
            let counted: Vec<usize> = ranks.iter().map(|rank| rank.counted(12 / B)).collect();
            let mut step = Vec::new();
            for _ in 0..12 / B / num_processes {
                for rank in &mut ranks {
                    let batch = rank.next_batch().unwrap();
                    step.extend(
                        batch
                            .inputs
                            .chunks(16)
                            .zip(batch.targets.chunks(16))
                            .map(|(i, t)| (i.to_vec(), t.to_vec())),
                    );
                }
            }
            let targets = step.iter().flat_map(|(_, targets)| targets);
            let found = targets.filter(|&&target| target >= 0).count();
            assert!(counted.iter().all(|&counted| counted == found), "{counted:?}, {found}");
            read.push(step);
        }
        (read, ranks[0].state())
    };
    let (whole, end) = steps(12, 1, None, 20);
    assert!(end.current_shard_idx >= 2, "several epochs: {end:?}");
    for (B, ranks) in [(1, 1), (6, 2), (1, 4), (3, 4)] {
        assert!(steps(B, ranks, None, 20) == (whole.clone(), end.clone()), "{B} x {ranks}");
    }
    for stop in [1, 5, 9, 13] {
        let (_, state) = steps(4, 3, None, stop);
        assert!(steps(2, 2, Some(&state), 20 - stop) == (whole[stop..].to_vec(), end.clone()), "{stop}");
    }
}

#[test]
fn an_evaluation_reads_every_sequence_once_in_whole_batches() {
    let dir = TempDir::new().unwrap();
    masked(&dir, "s_0.bin", 0, &[8; 5]);
    let pattern = pattern(&dir);
    let options = LoaderOptions { sample: Sample::Batch, ..packed_options(&pattern, 8, false) };
    let mut loader = DataLoader::open(options).unwrap();
    assert_eq!(loader.batches_per_epoch(), 3);
    assert_eq!(loader.counted(3), 5 * 4);
    let last = (0..3).map(|_| loader.next_batch().unwrap()).last().unwrap();
    assert!(last.targets[8..].iter().all(|&target| target == -100));
    assert_eq!(loader.next_batch().unwrap().inputs[0], 0);
}

#[test]
fn shards_and_flags_that_do_not_fit_are_refused() {
    let dir = TempDir::new().unwrap();
    masked(&dir, "s_0.bin", 0, &[8; 5]);
    let all = pattern(&dir);
    let open = |pattern: &str, sample| {
        DataLoader::open(LoaderOptions { sample, ..packed_options(pattern, 8, true) })
    };
    for sample in [Sample::Document, Sample::Batch] {
        let error = open(&all, sample).unwrap_err().to_string();
        assert!(error.starts_with("--shuffle: packed documents are shuffled by the sequences"), "{error}");
    }
    assert!(message(open(&format!("{all}=0.5"), Sample::Sequence)).contains("not mixed by weight"));
    let mut loader = open(&all, Sample::Sequence).unwrap();
    let error = message(loader.restore_near(&loader.state(), 9));
    assert!(
        error.contains("-t 8: the checkpoint's documents are packed into sequences of 9 tokens"),
        "{error}"
    );
    write_shard(&dir, "s_1.bin", &[EOT, 1, 2]);
    assert!(message(open(&all, Sample::Sequence)).contains("1 of 2 shards have a mask"));
    fs::remove_file(dir.path().join("s_1.bin")).unwrap();
    fs::remove_file(path_of(&dir.path().join("s_0.bin"))).unwrap();
    assert!(message(open(&all, Sample::Sequence)).contains("s_0.mask: missing, and "));
}
