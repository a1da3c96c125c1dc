//! Damaged input for every reader. `FUZZ_CASES` sets how many cases there are in all, `FUZZ_SEED`
//! repeats a sequence; cargo-fuzz runs the same readers from `fuzz/`.

mod mutate;
#[path = "../common/random.rs"]
mod random;
mod targets;

use mutate::mutate;
use random::{Random, amount};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use targets::{TARGETS, Target};

/// Counts the bytes in use, so that a reader that trusts a length in a file is found.
struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: as this function's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as this function's.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// More than any reader needs for inputs of some kilobytes.
const MEMORY: usize = 512 << 20;

const TIME: Duration = Duration::from_secs(20);

/// With `FUZZ_CORPUS` it also writes the input to that directory, for cargo-fuzz to start from.
#[test]
fn valid_input_is_accepted() {
    let corpus = std::env::var_os("FUZZ_CORPUS").map(PathBuf::from);
    for Target { name, seeds, run, .. } in TARGETS {
        for (n, seed) in seeds().iter().enumerate() {
            assert!(run(seed), "{name}");
            if let Some(corpus) = &corpus {
                fs::create_dir_all(corpus.join(name)).unwrap();
                fs::write(corpus.join(name).join(format!("seed{n}")), seed).unwrap();
            }
        }
    }
}

#[test]
fn every_reader_has_a_program_for_cargo_fuzz() {
    let manifest = include_str!("../../fuzz/Cargo.toml");
    let programs = manifest.split("[[bin]]").skip(1).map(|bin| bin.split('"').nth(1).unwrap());
    assert!(
        programs.eq(TARGETS.iter().map(|target| target.name)),
        "fuzz/Cargo.toml lists them in this order"
    );
}

#[test]
fn damaged_input_is_taken_or_refused_in_one_line() {
    let cases = amount("FUZZ_CASES", 20_000);
    let seed = Random::seed("FUZZ_SEED");
    println!("FUZZ_SEED={seed}");
    watch();
    // Each reader gets a share, but the slow ones no more than their share of the time.
    let share = cases / TARGETS.len();
    let longest = cases / 50;
    let mut all = [0; 2];
    for target in TARGETS {
        let count = share.min(longest * 1000 / target.cost).max(20);
        let accepted = fuzz(target, count, &mut Random::new(seed));
        println!("{:18} {count:8} cases, {accepted:8} accepted", target.name);
        all = [all[0] + count, all[1] + accepted];
    }
    println!("{:18} {:8} cases, {:8} accepted", "all readers", all[0], all[1]);
}

/// The case that runs, for the watchdog: its start, its name, its input.
static RUNNING: Mutex<Option<(Instant, String, Vec<u8>)>> = Mutex::new(None);

/// Ends the process if a case hangs, which no test could report.
fn watch() {
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let running = RUNNING.lock().unwrap();
            if let Some((_, name, input)) = running.as_ref().filter(|(started, ..)| started.elapsed() > TIME)
            {
                eprintln!("{name} hangs; input in {}", keep(name, input));
                std::process::abort();
            }
        }
    });
}

/// Writes an input to a file, and returns its path.
fn keep(name: &str, input: &[u8]) -> String {
    let path = std::env::temp_dir().join(format!("fuzz-{name}"));
    fs::write(&path, input).unwrap();
    path.display().to_string()
}

/// Runs a reader on damaged input. Returns how many cases it accepted.
fn fuzz(target: &Target, count: usize, random: &mut Random) -> usize {
    let seeds = (target.seeds)();
    let mut accepted = 0;
    for case in 0..count {
        let input = mutate(&seeds[random.below(seeds.len())], random);
        let name = format!("{}-{case}", target.name);
        *RUNNING.lock().unwrap() = Some((Instant::now(), name.clone(), input.clone()));
        let before = IN_USE.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let taken = catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        let memory = MOST.load(Ordering::Relaxed).saturating_sub(before);
        *RUNNING.lock().unwrap() = None;
        assert!(memory < MEMORY, "{name}: {memory} bytes; input in {}", keep(&name, &input));
        accepted += usize::from(taken.unwrap_or_else(|_| panic!("input in {}", keep(&name, &input))));
    }
    accepted
}
