//! Sources that are mixed by weight, and documents that are shuffled.

use super::*;

const EOT: u32 = 50256;

/// Shards of documents: document d is the end of text and then its number, 1 to 9 times. Documents
/// go on from one shard to the next.
fn documents(dir: &TempDir, name: &str, numbers: std::ops::Range<u32>) {
    let document = |d: u32| [vec![EOT], vec![d; 1 + (d as usize * 7) % 9]].concat();
    let tokens: Vec<u32> = numbers.flat_map(document).collect();
    for (i, shard) in tokens.chunks(61).enumerate() {
        write_shard(dir, &format!("{name}_{i:02}.bin"), shard);
    }
}

fn open_ranks(pattern: &str, sample: Sample, (B, num_processes): (usize, usize)) -> Vec<DataLoader> {
    let of = |rank| LoaderOptions { sample, B, T: 4, rank, num_processes, ..options(pattern, true) };
    (0..num_processes).map(|rank| DataLoader::open(of(rank)).unwrap()).collect()
}

/// The inputs of `steps` steps of 12 sequences, and the state after each.
fn read(
    pattern: &str,
    sample: Sample,
    split: (usize, usize),
    state: Option<&LoaderState>,
    steps: usize,
) -> Vec<(Vec<i32>, LoaderState)> {
    let mut ranks = open_ranks(pattern, sample, split);
    if let Some(state) = state {
        ranks.iter_mut().for_each(|loader| loader.restore(state).unwrap());
    }
    let mut step = || {
        let mut inputs = Vec::new();
        for _ in 0..12 / (split.0 * split.1) {
            for loader in &mut ranks {
                let batch = loader.next_batch().unwrap();
                for (input, target) in batch.inputs.chunks(4).zip(batch.targets.chunks(4)) {
                    assert_eq!(input[1..], target[..3]);
                }
                inputs.extend(batch.inputs);
            }
        }
        (inputs, ranks[0].state())
    };
    (0..steps).map(|_| step()).collect()
}

const SPLITS: [(usize, usize); 7] = [(12, 1), (4, 3), (3, 2), (1, 4), (2, 6), (1, 12), (1, 1)];

#[test]
fn order_is_the_same_for_any_number_of_ranks_and_after_any_resume() {
    let dir = TempDir::new().unwrap();
    documents(&dir, "a", 0..60);
    documents(&dir, "b", 100..117);
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mix = format!("{}=0.75,{}=0.25", at("a_*.bin"), at("b_*.bin"));
    for (pattern, sample) in
        [(&at("a_*.bin"), Sample::Document), (&mix, Sample::Document), (&mix, Sample::Sequence)]
    {
        // Several epochs of each source.
        let whole = read(pattern, sample, (12, 1), None, 20);
        let mut state = None;
        for (i, split) in SPLITS.iter().cycle().take(whole.len()).enumerate() {
            let step = read(pattern, sample, *split, state.as_ref(), 1).remove(0);
            assert!(step == whole[i], "{sample:?}, step {i}, {split:?}");
            assert_eq!((step.1.current_shard_idx, &step.1.shuffle), (0, &None));
            state = Some(step.1);
        }
        if pattern == &mix {
            // A step has 9 sequences of a and 3 of b; documents of b have numbers above 100.
            let is_b = |sequence: &&[i32]| sequence.iter().any(|&t| (100..EOT as i32).contains(&t));
            let from_b: Vec<usize> = whole.iter().map(|(x, _)| x.chunks(4).filter(is_b).count()).collect();
            assert!(from_b.iter().all(|&n| n == 3), "{from_b:?}");
        }
    }
}

#[test]
fn every_document_is_read_once_an_epoch_in_an_order_of_its_own() {
    let dir = TempDir::new().unwrap();
    documents(&dir, "a", 0..60);
    let pattern = dir.path().join("a_*.bin").display().to_string();
    let mut loader = open_ranks(&pattern, Sample::Document, (1, 1)).remove(0);
    let samples = loader.batches_per_epoch();
    let mut epoch = || -> Vec<i32> {
        let tokens: Vec<i32> = (0..samples).flat_map(|_| loader.next_batch().unwrap().inputs).collect();
        let mut documents: Vec<Vec<i32>> =
            tokens.split(|&t| t == EOT as i32).skip(1).map(<[i32]>::to_vec).collect();
        // The last may be cut.
        documents.pop();
        assert!(documents.iter().all(|d| d.len() == 1 + (d[0] as usize * 7) % 9), "a document is in parts");
        documents.iter().map(|d| d[0]).collect()
    };
    let (first, second) = (epoch(), epoch());
    for epoch in [&first, &second] {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert!(sorted.len() == epoch.len() && epoch.len() >= 57, "{epoch:?}");
        assert!(!epoch.is_sorted());
    }
    assert_ne!(first[..50], second[..50]);
}

#[test]
fn another_sequence_length_goes_on_at_the_same_token() {
    let dir = TempDir::new().unwrap();
    documents(&dir, "a", 0..60);
    let pattern = dir.path().join("a_*.bin").display().to_string();
    let of = |T| {
        let options = LoaderOptions { sample: Sample::Document, B: 1, T, ..options(&pattern, true) };
        DataLoader::open(options).unwrap()
    };
    let (mut short, mut long) = (of(4), of(8));
    first_inputs(&mut short, 6);
    assert!(long.restore_near(&short.state(), 4).unwrap(), "24 tokens are 3 sequences of 8");
    let next: Vec<i32> = (0..2).flat_map(|_| short.next_batch().unwrap().inputs).collect();
    assert_eq!(long.next_batch().unwrap().inputs, next);
    first_inputs(&mut short, 1);
    assert!(!long.restore_near(&short.state(), 4).unwrap());
}

#[test]
fn senseless_mixes_are_refused() {
    let dir = three_shards();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (all, one) = (at("s_*.bin"), at("s_1.bin"));
    let refuse =
        |pattern: &str, sample| message(DataLoader::open(LoaderOptions { sample, ..options(pattern, true) }));
    let sequence = |pattern: String| refuse(&pattern, Sample::Sequence);
    assert!(sequence(format!("{all}=1,{one}")).contains("s_1.bin: has no weight, but another"));
    for weight in ["0", "-1", "x", "", "inf", "nan"] {
        let error = sequence(format!("{one}={weight}"));
        assert!(error.contains("expected a weight above 0"), "{error}");
    }
    assert!(sequence(format!("{}=1", at("t_*"))).contains("no file matches"));
    assert!(refuse(&format!("{all}=1"), Sample::Batch).contains("weights are for training data"));
    let error = refuse(&all, Sample::Document);
    assert!(error.contains("found a single document"), "{error}");
    let mix = format!("{all}=1,{one}=2");
    let mixed = LoaderOptions { sample: Sample::Sequence, ..options(&mix, true) };
    let mut mixed = DataLoader::open(mixed).unwrap();
    assert_eq!((mixed.weights(), mixed.num_shards()), (vec![1.0, 2.0], 4));
    let shuffled = open(&dir, true).state();
    assert!(message(mixed.restore(&shuffled)).contains("read its data in another order"));
}
