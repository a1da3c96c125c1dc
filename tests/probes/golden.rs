//! Golden files: the words of a probe on a GPU, as text. `golden/README.md` describes them.

use crate::case::{Case, Expected};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Outputs up to this length are recorded in full.
const MOST_WORDS: usize = 256;
/// The most words that are recorded of a longer output.
const CHECKSUMS: usize = 64;
const SAMPLES: usize = 128;
const WORDS_PER_LINE: usize = 8;

/// The words of an output that are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Excerpt {
    All,
    /// The CRC-32 of every N words, which suffices if all devices output the same.
    ChecksumsOf(usize),
    Every(usize),
}

impl Excerpt {
    pub fn for_case(case: &Case) -> Self {
        let len = case.found.len();
        match case.expected {
            _ if len <= MOST_WORDS => Excerpt::All,
            Expected::Words(_) => Excerpt::ChecksumsOf(len.div_ceil(CHECKSUMS)),
            // An odd step samples all rows and columns of a matrix.
            Expected::Near(_) => Excerpt::Every(len.div_ceil(SAMPLES) | 1),
        }
    }

    pub fn of(self, case: &Case) -> Vec<u32> {
        let checksum = |words: &[u32]| {
            let mut hasher = crc32fast::Hasher::new();
            words.iter().for_each(|&word| hasher.update(&case.format.canonical(word).to_le_bytes()));
            hasher.finalize()
        };
        match self {
            Excerpt::All => case.found.clone(),
            Excerpt::ChecksumsOf(words) => case.found.chunks(words).map(checksum).collect(),
            Excerpt::Every(step) => case.found.iter().copied().step_by(step).collect(),
        }
    }

    /// The index of the `i`th recorded word in the output.
    pub fn index(self, i: usize) -> usize {
        match self {
            Excerpt::All => i,
            Excerpt::ChecksumsOf(words) => i * words,
            Excerpt::Every(step) => i * step,
        }
    }

    /// `word 17`, `words 64 to 127`
    pub fn place(self, i: usize) -> String {
        match self {
            Excerpt::ChecksumsOf(words) => format!("words {} to {}", i * words, (i + 1) * words - 1),
            _ => format!("word {}", self.index(i)),
        }
    }

    pub fn canonical(self, case: &Case, word: u32) -> u32 {
        if matches!(self, Excerpt::ChecksumsOf(_)) { word } else { case.format.canonical(word) }
    }

    pub fn show(self, case: &Case, word: u32) -> String {
        if matches!(self, Excerpt::ChecksumsOf(_)) { format!("checksum {word:08x}") } else { case.show(word) }
    }

    /// The line before the words of a case.
    fn heading(self, case: &Case) -> String {
        let what = match self {
            Excerpt::All => "all".to_owned(),
            Excerpt::ChecksumsOf(words) => format!("checksums of {words}"),
            Excerpt::Every(step) => format!("every {step}"),
        };
        format!("= {}: {} words, {what}", case.name, case.found.len())
    }
}

/// A golden file.
#[derive(Debug)]
pub struct Golden {
    pub path: PathBuf,
    /// Heading and words.
    cases: Vec<(String, Vec<u32>)>,
}

impl Golden {
    /// # Errors
    /// File and line, what was expected and what was found.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        Self::parse(path, &text)
    }

    /// Parses the text of a file.
    pub fn parse(path: &Path, text: &str) -> Result<Self, String> {
        let fault = |number: usize, expected: &str, found: &str| {
            format!("{}:{}: expected {expected}, found {found:?}", path.display(), number + 1)
        };
        let mut cases: Vec<(String, Vec<u32>)> = Vec::new();
        for (number, line) in text.lines().enumerate() {
            if number == 0 {
                let complete =
                    line.starts_with("# ") && ["gpu", "driver", "recorded"].iter().all(|w| line.contains(w));
                if !complete {
                    return Err(fault(number, "`# <probe> | gpu … | driver … | recorded …`", line));
                }
            } else if line.starts_with("= ") {
                cases.push((line.to_owned(), Vec::new()));
            } else {
                let Some((_, words)) = cases.last_mut() else {
                    return Err(fault(number, "a case, `= name: n words, …`", line));
                };
                for word in line.split_whitespace() {
                    let value = u32::from_str_radix(word, 16).ok().filter(|_| word.len() == 8);
                    words.push(value.ok_or_else(|| fault(number, "a word of 8 hexadecimal digits", word))?);
                }
            }
        }
        match cases.is_empty() {
            true => Err(fault(0, "a probe with a case", text)),
            false => Ok(Golden { path: path.to_owned(), cases }),
        }
    }

    /// The recorded words of a case.
    ///
    /// # Errors
    /// If the case was not recorded in this form: the probe has changed since.
    pub fn words_of(&self, case: &Case) -> Result<(Excerpt, &[u32]), String> {
        let excerpt = Excerpt::for_case(case);
        let (heading, count) = (excerpt.heading(case), excerpt.of(case).len());
        let found = self.cases.iter().find(|(found, _)| *found == heading);
        match found {
            Some((_, words)) if words.len() == count => Ok((excerpt, words)),
            found => {
                let found = found.map_or("no such case".to_owned(), |(_, words)| format!("{}", words.len()));
                Err(format!(
                    "{}: expected `{heading}` and {count} words, found {found}; record it again",
                    self.path.display()
                ))
            }
        }
    }
}

/// The machine and the date of a recording.
#[derive(Clone, Debug)]
pub struct Recorder {
    /// `NVIDIA H200`
    pub gpu: String,
    /// `sm_90`
    pub arch: String,
    pub driver: String,
    /// `2026-11-22`
    pub date: String,
}

/// The text of a golden file.
pub fn text(probe: &str, by: &Recorder, cases: &[Case]) -> String {
    let Recorder { gpu, arch, driver, date } = by;
    let mut text = format!("# {probe} | gpu {gpu} ({arch}) | driver {driver} | recorded {date}\n");
    for case in cases {
        let excerpt = Excerpt::for_case(case);
        let _ = writeln!(text, "{}", excerpt.heading(case));
        for line in excerpt.of(case).chunks(WORDS_PER_LINE) {
            let words: Vec<String> = line.iter().map(|word| format!("{word:08x}")).collect();
            let _ = writeln!(text, "{}", words.join(" "));
        }
    }
    text
}

/// Writes `dir/<arch>/<probe>.txt`.
///
/// # Errors
/// If it cannot be written.
pub fn record(dir: &Path, probe: &str, by: &Recorder, cases: &[Case]) -> Result<PathBuf, String> {
    let dir = dir.join(&by.arch);
    let path = dir.join(format!("{probe}.txt"));
    let written = fs::create_dir_all(&dir).and_then(|()| fs::write(&path, text(probe, by, cases)));
    written.map(|()| path.clone()).map_err(|e| format!("{}: {e}", path.display()))
}

/// The golden files under a directory, of one probe or of all, in order.
pub fn files(dir: &Path, probe: Option<&str>) -> Vec<PathBuf> {
    let listed = |dir: &Path| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let mut files: Vec<PathBuf> =
        listed(dir).iter().filter(|path| path.is_dir()).flat_map(|d| listed(d)).collect();
    files.retain(|path| probe.is_none_or(|probe| path.file_name() == Some(format!("{probe}.txt").as_ref())));
    files.sort();
    files
}

/// The date of a number of seconds since 1970, in UTC.
pub fn date(seconds: u64) -> String {
    // Years that begin in March end with the leap day; eras of 400 years are alike.
    let days = seconds / 86400 + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let (of_month, month) = (day - (153 * month + 2) / 5 + 1, (month + 2) % 12 + 1);
    format!("{}-{month:02}-{of_month:02}", era * 400 + year + u64::from(month <= 2))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::Format;

    fn cases() -> Vec<Case> {
        let words = |len: u32| -> Vec<u32> { (0..len).map(|i| i.wrapping_mul(0x9e37_79b9) >> 9).collect() };
        let numbers = |len: usize| -> Vec<u32> { (0..len).map(|i| (i as f32).to_bits()).collect() };
        vec![
            Case::exact("short", Format::Bits, words(20), words(20)),
            Case::exact("long", Format::F16, words(1000), words(1000)),
            Case::near("close", numbers(1000), (0..1000).map(|i| (f64::from(i), 0.5)).collect()),
        ]
    }

    fn recorded(dir: &Path) -> PathBuf {
        let by = Recorder {
            gpu: "Test".to_owned(),
            arch: "sm_90".to_owned(),
            driver: "1.2".to_owned(),
            date: date(0),
        };
        record(dir, "probe", &by, &cases()).unwrap()
    }

    /// The faults of the cases against a file whose text was changed.
    fn after(from: &str, to: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let path = recorded(dir.path());
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} in\n{text}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        match Golden::read(&path) {
            Ok(golden) => cases().iter().filter_map(|case| case.check_golden(&golden).err()).collect(),
            Err(message) => vec![message],
        }
    }

    #[test]
    fn what_was_recorded_compares_as_the_same() {
        assert_eq!(after("", ""), [""; 0]);
        let dir = tempfile::tempdir().unwrap();
        let path = recorded(dir.path());
        assert_eq!(files(dir.path(), Some("probe")), std::slice::from_ref(&path));
        assert_eq!(files(dir.path(), Some("another")), Vec::<PathBuf>::new());
        let text = fs::read_to_string(path).unwrap();
        assert!(text.starts_with(
            "# probe | gpu Test (sm_90) | driver 1.2 | recorded 1970-01-01\n= short: 20 words, all\n00000000 004f1bbc "
        ));
        assert!(text.contains("\n= long: 1000 words, checksums of 16\n"), "{text}");
        assert!(text.contains("\n= close: 1000 words, every 9\n00000000 41100000 "), "{text}");
    }

    #[test]
    fn a_changed_word_is_named() {
        let faults = after("004f1bbc", "004f1bbd");
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert!(faults[0].starts_with("short, word 1: expected 004f1bbd (recorded in "), "{faults:?}");
        assert!(faults[0].ends_with("sm_90/probe.txt), found 004f1bbc; 1 of 20 differ"), "{faults:?}");
        // 9 and 10 are within twice the bound, 9 and 11 are not.
        assert_eq!(after("41100000", "41200000"), [""; 0]);
        let faults = after("41100000", "41300000");
        assert!(faults[0].starts_with("close, word 9: expected 41300000 (1.1e1) (recorded"), "{faults:?}");
    }

    #[test]
    fn a_changed_word_changes_its_checksum() {
        let dir = tempfile::tempdir().unwrap();
        let golden = Golden::read(&recorded(dir.path())).unwrap();
        let mut long = cases().remove(1);
        // All NaNs are equal.
        long.found[100] = 0x7e01_0000;
        let message = long.check_golden(&golden).unwrap_err();
        assert!(message.starts_with("long, words 96 to 111: expected checksum "), "{message}");
        assert!(message.ends_with("; 1 of 63 differ"), "{message}");
        let [a, b] = [0x7e01_0000, 0xfc01_0000].map(|word| {
            long.found[100] = word;
            Excerpt::for_case(&long).of(&long)
        });
        assert_eq!(a, b);
    }

    #[test]
    fn a_malformed_golden_file_is_refused() {
        let refused = |from: &str, to: &str, message: &str| {
            let faults = after(from, to);
            assert!(faults[0].contains(message), "{faults:?}");
        };
        refused(
            "driver",
            "drive",
            "probe.txt:1: expected `# <probe> | gpu … | driver … | recorded …`, found",
        );
        refused(
            "004f1bbc",
            "04f1bbc",
            "probe.txt:3: expected a word of 8 hexadecimal digits, found \"04f1bbc\"",
        );
        refused("004f1bbc", "", "expected `= short: 20 words, all` and 20 words, found 19; record it again");
        refused(
            "= long",
            "= longer",
            "expected `= long: 1000 words, checksums of 16` and 63 words, found no such",
        );
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        assert_eq!(date(951_782_400), "2000-02-29");
        assert_eq!(date(951_868_800), "2000-03-01");
        assert_eq!(date(1_795_305_599), "2026-11-21");
        assert_eq!(date(4_107_542_400), "2100-03-01");
    }
}
