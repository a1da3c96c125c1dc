use super::*;

fn line(step: u64, time: f64) -> Line {
    Line { step, time: Some(time), numbers: vec![("loss".to_owned(), 1.0)], sample: None, end: None }
}

/// Lines of two kinds per step, as a run with validation has them, from a time on.
fn lines(steps: std::ops::Range<u64>, from: f64) -> Vec<Line> {
    steps.flat_map(|step| [0.25, 0.5].map(|part| line(step, from + step as f64 + part))).collect()
}

fn open(dir: &Path) -> TensorBoard {
    let mut tracker = TensorBoard::open(dir).unwrap();
    tracker.begin().unwrap();
    tracker
}

/// The events that count, as a fresh reader of the files finds them.
fn found(tracker: &TensorBoard) -> Vec<Place> {
    let mut places = Vec::new();
    for path in tracker.files().unwrap() {
        events::read(&path, &mut places).unwrap();
    }
    places
}

fn places(lines: &[Line]) -> Vec<Place> {
    lines.iter().map(place).collect()
}

#[test]
fn each_line_is_written_once_however_often_it_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let log = lines(0..5, 100.0);
    for part in [3, 4, 7, 10, 10] {
        let mut tracker = open(dir.path());
        let (first, second) = log[..part].split_at(part / 2);
        tracker.take(first, true).unwrap();
        tracker.take(second, false).unwrap();
        assert_eq!(found(&tracker), places(&log[..part]));
        tracker.take(&log[..part], true).unwrap();
        assert_eq!(found(&tracker), places(&log[..part]), "the log was read again");
        drop(tracker);
    }
    assert_eq!(open(dir.path()).files().unwrap().len(), 4, "the last part brought nothing new");
}

#[test]
fn a_run_that_went_back_counts_from_there_on() {
    let dir = tempfile::tempdir().unwrap();
    let old = lines(0..6, 100.0);
    for (back, in_process) in [(4, true), (2, false), (0, false), (0, true)] {
        let mut tracker = open(dir.path());
        tracker.take(&old, true).unwrap();
        let mut new = old[..2 * back].to_vec();
        if !in_process {
            drop(tracker);
            tracker = open(dir.path());
        }
        // At first the log only lacks its end.
        tracker.take(&new, true).unwrap();
        let again = lines(back as u64..7, 1000.0 + back as f64);
        tracker.take(&again[..1], false).unwrap();
        new.push(again[0].clone());
        assert_eq!(found(&tracker), places(&new), "back to {back}");
        tracker.take(&again[1..], false).unwrap();
        new.extend_from_slice(&again[1..]);
        assert_eq!(found(&tracker), places(&new), "back to {back}");
    }
}

#[test]
fn a_change_within_a_step_writes_all_of_the_step_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = lines(0..3, 100.0);
    let mut tracker = open(dir.path());
    tracker.take(&log, true).unwrap();
    log[3].time = Some(900.0);
    tracker.take(&log, true).unwrap();
    assert_eq!(found(&tracker), places(&log));
}

#[test]
fn lines_without_a_time_are_known_by_their_step() {
    let dir = tempfile::tempdir().unwrap();
    let log: Vec<Line> = lines(0..4, 0.0).into_iter().map(|line| Line { time: None, ..line }).collect();
    open(dir.path()).take(&log[..5], true).unwrap();
    let mut tracker = open(dir.path());
    tracker.take(&log, true).unwrap();
    assert_eq!(found(&tracker).len(), 8);
}

#[test]
fn an_event_that_was_cut_off_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let log = lines(0..4, 100.0);
    let mut tracker = open(dir.path());
    tracker.take(&log[..6], true).unwrap();
    let path = tracker.files().unwrap().remove(0);
    let whole = std::fs::read(&path).unwrap();
    for cut in [1, 5, 30, whole.len() - 3, whole.len()] {
        std::fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        // As after an error of the disk, or a crash.
        tracker.begin().unwrap();
        tracker.take(&log, true).unwrap();
        assert_eq!(found(&tracker), places(&log), "cut by {cut}");
        tracker.files().unwrap()[1..].iter().for_each(|path| std::fs::remove_file(path).unwrap());
    }
}

#[test]
fn one_process_writes_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let held = TensorBoard::open(dir.path()).unwrap();
    let error = TensorBoard::open(dir.path()).err().unwrap().to_string();
    assert!(error.contains("is in use by process"), "{error}");
    drop(held);
    TensorBoard::open(dir.path()).unwrap();
}
